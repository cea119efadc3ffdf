"""Packed files (`.fwz`): every tensor of a compressed network, entropy-coded, bitwise; nothing kept aside but its class."""

from featherweight.files.packed.accounting import Storage, storage
from featherweight.files.packed.container import largest_file, pack, read, sections, unpack
from featherweight.files.packed.files import load, write
from featherweight.files.packed.rounding import rounded

__all__ = ["Storage", "largest_file", "load", "pack", "read", "rounded", "sections", "storage", "unpack", "write"]
