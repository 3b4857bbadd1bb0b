"""Read YAML files as plain values, and remember the line of each value for error messages."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
import yaml

from appliance.config import text_file, variables
from appliance.domain.errors import ConfigError

Place = tuple[str | int, ...]  # path to a value: keys of mappings and positions in lists

DEEPEST: Final = 50  # maximum nesting of lists and mappings
MAX_VALUES: Final = 20_000  # maximum number of values, with aliases expanded

_LARGEST_NUMBER: Final = 2**63 - 1
_LONGEST_KEY: Final = 500  # characters
_SHOWN: Final = 60  # characters of an invalid value in a message
_MERGE: Final = "tag:yaml.org,2002:merge"


class Document(msgspec.Struct, frozen=True):
    """Content of a YAML file, with the line of each value. Lines count from 1."""

    data: Any
    lines: dict[Place, int]
    #: Values that contained variables, as they are in the file. Messages show these instead of the values.
    written: dict[Place, str] = {}
    problems: tuple[tuple[Place, str], ...] = ()  # of variables and of included files
    files: dict[Place, str] = {}  # the files of models that are not in models.yaml itself

    def file(self, place: Place, main: str) -> str:
        """Return the file that has the value at ``place``: an included file, or else ``main``."""
        return self.files.get(place[:2], main)

    def line(self, place: Place) -> int:
        """Return the line of the value at ``place``, or of the innermost value that contains ``place``."""
        while place and place not in self.lines:
            place = place[:-1]
        return self.lines.get(place, 1)


def read(path: Path, environment: Mapping[str, str] | None = None) -> Document:
    """Read one YAML document; with ``environment``, replace references to variables in values.

    Raises:
        ConfigError: the file cannot be read, is not YAML, has a duplicate key, or exceeds ``DEEPEST`` or
            ``MAX_VALUES``. The error names the line.
    """
    return parse(text_file.read(path), str(path), environment)


def parse(text: str, file: str, environment: Mapping[str, str] | None = None) -> Document:
    """Read one YAML document from ``text``, as ``read``; ``file`` is its name in errors."""
    try:
        return _Reader(text, file, environment).document()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = error.problem or error.context or "is not YAML"
        raise ConfigError(
            f"is not YAML: {problem}", file=file, line=mark.line + 1 if mark else None
        ) from error
    except yaml.reader.ReaderError as error:
        raise ConfigError(
            f"is not YAML: the character U+{error.character:04X} is not allowed in it",
            file=file,
            line=text.count("\n", 0, error.position) + 1,
        ) from error
    except yaml.YAMLError as error:
        raise ConfigError(f"is not YAML: {' '.join(str(error).split())}", file=file) from error


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, with limits on nesting and on the number of values."""

    def __init__(self, text: str, refuse: Callable[[int, str], ConfigError]) -> None:
        super().__init__(text)
        self._refuse = refuse
        self._depth = 0
        self._nodes = 0
        self._merged = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]  # untyped in the stubs
        line = event.start_mark.line + 1
        self._nodes += 1
        if self._nodes > MAX_VALUES:
            raise self._refuse(line, f"has more than {MAX_VALUES:,} keys and values: write fewer")
        self._depth += 1
        if self._depth > DEEPEST:
            raise self._refuse(line, f"has more than {DEEPEST} nested lists and mappings: nest fewer")
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        super().flatten_mapping(node)
        self._merged += len(node.value)
        if self._merged > MAX_VALUES:
            line = node.start_mark.line + 1
            raise self._refuse(line, f"merge keys (<<) make more than {MAX_VALUES:,} values: write fewer")


class _Reader:
    """Converts the YAML nodes of a file to values, with the same rules as PyYAML's safe loader."""

    def __init__(self, text: str, file: str, environment: Mapping[str, str] | None) -> None:
        self._loader = _Loader(text, self._at)
        self._count = 0
        self._file = file
        self._environment = environment
        self._written: dict[Place, str] = {}
        self._problems: list[tuple[Place, str]] = []
        self._lines: dict[Place, int] = {}
        self._checked: set[int] = set()  # ids of mappings whose keys were checked before merging
        self._open: set[int] = set()  # ids of the nodes being built, to detect an anchor inside itself

    def document(self) -> Document:
        root = self._loader.get_single_node()
        data = None if root is None else self._build(root, ())
        return Document(data, self._lines, self._written, tuple(self._problems))

    def _build(self, node: yaml.Node, place: Place) -> Any:
        self._lines.setdefault(place, node.start_mark.line + 1)
        self._count += 1
        if self._count > MAX_VALUES:
            raise self._refuse(node, f"aliases make more than {MAX_VALUES:,} values: write fewer")
        if id(node) in self._open:
            raise self._refuse(node, "an anchor cannot be used inside itself: remove the alias")
        self._open.add(id(node))
        try:
            if isinstance(node, yaml.MappingNode):
                return self._mapping(node, place)
            if isinstance(node, yaml.SequenceNode):
                return [self._build(item, (*place, index)) for index, item in enumerate(node.value)]
            return self._scalar(self._expanded(node, place), self._written.get(place))
        finally:
            self._open.remove(id(node))

    def _mapping(self, node: yaml.MappingNode, place: Place) -> dict[str, Any]:
        self._check_keys(node)
        self._loader.flatten_mapping(node)  # expands `<<: *anchor`; the mapping's own keys come last
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
            if key_node.tag == _MERGE:
                continue
            key, line = self._key(key_node), key_node.start_mark.line + 1
            if key in seen:
                raise ConfigError(
                    f"the key is given twice, first on line {seen[key]}: remove one of the two",
                    file=self._file,
                    line=line,
                    key=key,
                )
            seen[key] = line

    def _key(self, node: yaml.Node) -> str:
        key = self._scalar(node) if isinstance(node, yaml.ScalarNode) else None
        if not isinstance(key, str):
            raise self._refuse(node, "a key must be text: put it in quotes")
        if len(key) > _LONGEST_KEY:
            raise self._refuse(node, f"a key has more than {_LONGEST_KEY} characters: shorten it")
        return key

    def _expanded(self, node: yaml.Node, place: Place) -> yaml.Node:
        """Return the node of a value with its variables replaced. Without quotes, it may become a number."""
        if self._environment is None or "$" not in node.value:
            return node
        try:
            value = variables.expand(node.value, self._environment)
        except ValueError as error:
            self._problems.append((place, str(error)))
            return node
        if value == node.value:
            return node
        self._written[place] = node.value
        plain = isinstance(node, yaml.ScalarNode) and node.style is None
        tag = node.tag
        if plain:
            tag = self._loader.resolve(yaml.ScalarNode, value, (True, False))  # type: ignore[no-untyped-call]
        return yaml.ScalarNode(tag, value, node.start_mark, node.end_mark, getattr(node, "style", None))

    def _scalar(self, node: yaml.Node, written: str | None = None) -> Any:
        text = node.value if written is None else written
        shown = repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}...")
        try:
            value = self._loader.construct_object(node)
        except (ValueError, ArithmeticError, LookupError, AttributeError) as error:
            # For example, 31 February. PyYAML does not check text after `!!bool` or `!!timestamp`.
            reason = f" ({error})" if isinstance(error, ValueError) and written is None else ""
            message = f"{shown} is not a valid value of its type{reason}: put it in quotes"
            raise self._refuse(node, message) from error
        if isinstance(value, str):
            return self._text(node, value)
        if isinstance(value, int) and abs(value) > _LARGEST_NUMBER:
            raise self._refuse(node, f"{shown} is too large: the largest number is {_LARGEST_NUMBER:,}")
        return value

    def _text(self, node: yaml.Node, text: str) -> str:
        """Return ``text`` with each pair of surrogate escapes joined to one character, as in JSON."""
        try:
            return text.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError as error:
            raise self._refuse(node, "has a single surrogate: write \\ud800 to \\udfff in pairs") from error

    def _refuse(self, node: yaml.Node, message: str) -> ConfigError:
        return self._at(node.start_mark.line + 1, message)

    def _at(self, line: int, message: str) -> ConfigError:
        return ConfigError(message, file=self._file, line=line)
