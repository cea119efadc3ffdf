"""Allocators: how one budget is spread over many targets. Of counts (`counts`), or of any menu of sizes and costs (`choices`)."""

from featherweight.allocate.counts import ALLOCATORS, Allocator, lamp, magnitude, uniform

__all__ = ["ALLOCATORS", "Allocator", "lamp", "magnitude", "uniform"]
