"""JSON and YAML of settings, as a stranger may write them: plain data of a bounded size, and nothing else.

YAML's anchors, aliases and merge keys are refused, since a few lines of them stand for gigabytes; so are keys that are given
twice, of which readers silently take one. Settings are a few kilobytes: the bounds are far above that and below what hurts.
"""

from __future__ import annotations

import json
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from featherweight.errors import InputError, short
from featherweight.files import storage

LARGEST_FILE = 2**18  # bytes
MOST_NODES = 10_000  # values, names included
DEEPEST = 32
LARGEST_NUMBER = 2**53  # JSON's readers agree on whole numbers below it
LONGEST_NUMBER = 40  # characters


class NotationError(InputError):
    """Text that is not JSON or YAML of settings."""


def read(path: Path) -> Any:
    """The data in a .json, .yaml or .yml file. Raises InputError."""
    try:
        content = storage.read(path, LARGEST_FILE, follow=True)
    except OSError as error:
        raise InputError(f"cannot read the recipe {path}: {error.strerror}") from None
    is_json = path.suffix == ".json"
    try:
        text = content.decode()
        return from_json(text) if is_json else from_yaml(text)
    except (UnicodeDecodeError, NotationError) as error:
        raise InputError(f"the recipe {path} is not {'JSON' if is_json else 'YAML'} of settings: {error}") from None


def from_json(text: str) -> Any:
    """The data of a JSON text. Raises NotationError."""
    try:
        data = json.loads(text, object_pairs_hook=_unique)
    except RecursionError:
        raise NotationError(f"it is nested deeper than {DEEPEST}") from None
    except ValueError as error:
        raise NotationError(str(error)[:200]) from None
    _check(data)
    return data


def from_yaml(text: str) -> Any:
    """The data of a YAML text. Raises NotationError."""
    try:
        data = yaml.load(text, Loader=_Plain)  # a SafeLoader that takes less
    except (ValueError, OverflowError, yaml.YAMLError) as error:
        raise NotationError(str(error)[:500]) from None
    _check(data)
    return data


class _Plain(yaml.SafeLoader):
    """Scalars, lists and mappings: no anchor, alias, merge key or key given twice, and each bounded."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.nodes = self.depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise NotationError(f"anchors and aliases are refused, given {short(event.anchor)}: write the value out each time")
        self.nodes, self.depth = self.nodes + 1, self.depth + 1
        if self.nodes > MOST_NODES or self.depth > DEEPEST:
            raise NotationError(f"it holds more than {MOST_NODES} values, or is nested deeper than {DEEPEST}")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:
        numeric = node.tag in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
        if numeric and isinstance(node.value, str) and len(node.value) > LONGEST_NUMBER:
            raise NotationError(f"a number of {len(node.value)} characters")
        return super().construct_scalar(node)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                raise NotationError("merge keys (<<) are refused: write the values out")
            if not isinstance(key, yaml.ScalarNode) or key.value in seen:
                raise NotationError(f"the key {short(key.value)} is no word, or is given twice")
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise NotationError(f"the key {short(next(key for key in keys if keys.count(key) > 1))} is given twice")
    return found


def _check(data: Any) -> None:
    """Raises NotationError for data larger or deeper than settings are."""
    waiting, nodes = [(data, 1)], 0
    while waiting:
        value, depth = waiting.pop()
        nodes += 1
        if nodes > MOST_NODES or depth > DEEPEST:
            raise NotationError(f"it holds more than {MOST_NODES} values, or is nested deeper than {DEEPEST}")
        if isinstance(value, int) and abs(value) >= LARGEST_NUMBER:
            raise NotationError(f"the number {short(value)} is beyond 2^53")
        if isinstance(value, list | dict):
            parts = [*value, *value.values()] if isinstance(value, dict) else value
            waiting += [(part, depth + 1) for part in parts[:MOST_NODES]]
