"""YAML text to plain values, safely and within limits of size, nesting and repetition."""

from __future__ import annotations

import re
from typing import Any

import yaml

from alignment.errors import ConfigError

MAX_BYTES = 1_000_000
MAX_VALUES = 10_000
"""Values in one text; what an alias repeats counts again. Nine lines of aliases can stand for 10^10 values."""
MAX_DEPTH = 50
SURROGATE = re.compile("[\ud800-\udfff]")
_LONGEST_NUMBER = 400
"""Characters; telling that a longer text is no number takes time that grows with its square."""


class _Loader(yaml.SafeLoader):
    """Safe YAML in which `1e-5` is a number, a key may stand only once, and nothing grows beyond the limits."""

    def __init__(self, text: str, where: str) -> None:
        super().__init__(text)
        self.name = where
        self._values = self._depth = 0
        self._finished: dict[int, tuple[int, int]] = {}
        """The number of values in each finished node, and its depth."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Read one node, counting its values."""
        event, before = self.peek_event(), self._values  # type: ignore[no-untyped-call]
        line = event.start_mark.line + 1
        self._depth += 1
        self._count(1, 0, line)
        node = super().compose_node(parent, index)
        if isinstance(event, yaml.AliasEvent):
            if id(node) not in self._finished:
                raise ConfigError(f"{self.name}:{line}: *{event.anchor} stands within &{event.anchor}; write it out")
            self._values = before
            self._count(*self._finished[id(node)], line)
        else:
            parts = node.value if isinstance(node, yaml.CollectionNode) else []
            inner = (part for pair in parts for part in (pair if isinstance(pair, tuple) else (pair,)))
            depth = 1 + max((self._finished[id(part)][1] for part in inner), default=0)
            self._finished[id(node)] = (self._values - before, depth)
        self._depth -= 1
        return node

    def _count(self, values: int, depth: int, line: int) -> None:
        self._values += values
        if self._values > MAX_VALUES:
            raise ConfigError(
                f"{self.name}:{line}: more than {MAX_VALUES:,} values, counting what aliases repeat; name fewer"
            )
        if self._depth + max(depth - 1, 0) > MAX_DEPTH:
            raise ConfigError(f"{self.name}:{line}: lists or mappings more than {MAX_DEPTH} deep; close one earlier")

    def resolve(self, kind: type[yaml.Node], value: Any, implicit: Any) -> str:
        """The tag of a plain value; a very long one is a text."""
        if kind is yaml.ScalarNode and len(value) > _LONGEST_NUMBER:
            return "tag:yaml.org,2002:str"
        tag: str = super().resolve(kind, value, implicit)  # type: ignore[no-untyped-call]
        return tag

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:
        """A value. The halves in which JSON writes an emoji are put together; one alone can be written nowhere."""
        value = super().construct_scalar(node)
        if not isinstance(value, str) or not SURROGATE.search(value):
            return value
        try:
            return value.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError:
            where = f"{self.name}:{node.start_mark.line + 1}"
            raise ConfigError(f"{where}: half a character in {value[:80]!a}; take it out") from None

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            where = f"{key.start_mark.name}:{key.start_mark.line + 1}"
            if not isinstance(key, yaml.ScalarNode):
                raise ConfigError(f"{where}: a key must be a word, found a list or mapping; write `key: value`")
            if key.value in seen:
                raise ConfigError(f"{where}: key '{key.value}' stands twice; keep one of them")
            seen.add(key.value)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


# YAML 1.1 reads 1e-5 as a string because it has no dot; YAML 1.2 and everybody else reads a number.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*\.?\d*|\.\d+)([eE][-+]?\d+)?$"),
    list("-+0123456789."),
)


def parse_yaml(text: str, where: str) -> Any:
    """The values of a YAML text.

    Args:
        where: the file or key, for errors.

    Raises:
        ConfigError: it is not valid YAML, or beyond a limit; the line is named.
    """
    if len(text) > MAX_BYTES:
        raise ConfigError(f"{where}: {len(text):,} characters, at most {MAX_BYTES:,} are read; is it a config?")
    try:
        return _Loader(text, where).get_single_data()
    except ConfigError:
        raise
    except RecursionError:
        raise ConfigError(f"{where}: nested too deeply; at most {MAX_DEPTH} levels are read") from None
    # ValueError: a date that is none, say; AttributeError: PyYAML's, of `!!int ""`
    except (yaml.YAMLError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{where}: not valid YAML: {reason:.500}") from None
