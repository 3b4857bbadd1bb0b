"""A YAML file as plain values, and the line that each of them stands on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import yaml

from appliance.errors import ConfigError

Place = tuple[str | int, ...]  # the keys and positions that lead to a value


class Document(msgspec.Struct, frozen=True):
    """What a file holds. Lines count from 1; a mapping's entry stands where its key does."""

    data: Any
    lines: dict[Place, int]

    def line(self, place: Place) -> int:
        """The line of the value, or of the nearest one around it."""
        while place and place not in self.lines:
            place = place[:-1]
        return self.lines.get(place, 1)


def read(path: Path) -> Document:
    """Read one YAML document.

    Raises:
        ConfigError: the file cannot be read or is not YAML, or a key is given twice; names the line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", file=str(path)) from error
    except UnicodeDecodeError as error:
        raise ConfigError("is not UTF-8 text", file=str(path)) from error
    try:
        return _Reader(text, str(path)).document()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = error.problem or error.context or "is not YAML"
        raise ConfigError(
            f"is not YAML: {problem}", file=str(path), line=mark.line + 1 if mark else None
        ) from error
    except yaml.YAMLError as error:
        raise ConfigError(f"is not YAML: {' '.join(str(error).split())}", file=str(path)) from error


class _Reader:
    """Builds the values of one file from its nodes, as PyYAML's safe loader would."""

    def __init__(self, text: str, file: str) -> None:
        self._loader = yaml.SafeLoader(text)
        self._file = file
        self._lines: dict[Place, int] = {}
        self._checked: set[int] = set()  # mappings whose own keys were looked at before a merge changed them
        self._open: set[int] = set()  # nodes being built, to find an anchor inside itself

    def document(self) -> Document:
        root = self._loader.get_single_node()
        data = None if root is None else self._build(root, ())
        return Document(data, self._lines)

    def _build(self, node: yaml.Node, place: Place) -> Any:
        self._lines.setdefault(place, node.start_mark.line + 1)
        if id(node) in self._open:
            raise self._refuse(node, "an anchor cannot be used inside itself")
        self._open.add(id(node))
        try:
            if isinstance(node, yaml.MappingNode):
                return self._mapping(node, place)
            if isinstance(node, yaml.SequenceNode):
                return [self._build(item, (*place, index)) for index, item in enumerate(node.value)]
            return self._scalar(node)
        finally:
            self._open.remove(id(node))

    def _mapping(self, node: yaml.MappingNode, place: Place) -> dict[str, Any]:
        self._check_keys(node)
        self._loader.flatten_mapping(node)  # `<<: *anchor`; what the mapping says itself comes last and wins
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = self._key(key_node)
            self._lines[(*place, key)] = key_node.start_mark.line + 1
            values[key] = self._build(value_node, (*place, key))
        return values

    def _check_keys(self, node: yaml.MappingNode) -> None:
        if id(node) in self._checked:
            return
        self._checked.add(id(node))
        seen: dict[str, int] = {}
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key, line = self._key(key_node), key_node.start_mark.line + 1
            if key in seen:
                raise ConfigError(
                    f"the key is given twice, first on line {seen[key]}; remove one of the two",
                    file=self._file,
                    line=line,
                    key=key,
                )
            seen[key] = line

    def _key(self, node: yaml.Node) -> str:
        key = self._scalar(node) if isinstance(node, yaml.ScalarNode) else None
        if not isinstance(key, str):
            raise self._refuse(node, "a key must be text; put it in quotes")
        return key

    def _scalar(self, node: yaml.Node) -> Any:
        try:
            return self._loader.construct_object(node)
        except ValueError as error:  # such as the 31st of February
            raise self._refuse(node, f"{node.value!r} is no value ({error}); put it in quotes") from error

    def _refuse(self, node: yaml.Node, message: str) -> ConfigError:
        return ConfigError(message, file=self._file, line=node.start_mark.line + 1)
