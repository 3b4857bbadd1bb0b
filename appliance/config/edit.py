"""Change one model's entry in the text of models.yaml, and leave every other byte as it is."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

import msgspec
import yaml

from appliance.config import variables, yaml_source
from appliance.domain.errors import ConfigError

_WIDTH: Final = 4096  # characters; the dumper never folds a line


class _Node(msgspec.Struct):
    """A value in the text: characters ``start`` up to ``end``, without the comments after it."""

    start: int
    end: int
    column: int
    kind: str  # scalar, mapping, sequence or alias
    flow: bool = False
    children: list[_Node] = []  # of a mapping: key, value, key, value ...


class _Edit(NamedTuple):
    start: int
    end: int
    text: str


def add_entry(text: str, entry: Mapping[str, Any], file: str = "models.yaml") -> str:
    """Return ``text`` with one more model at the end of the list `models`.

    Values of the entry are literal: a dollar sign in them is no reference to a variable.

    Raises:
        ConfigError: the text is not YAML, has a model of this name already, or cannot take the entry.
    """
    entry = variables.escape(dict(entry))
    data = _data(text, file)
    models = _models(data, file)
    name = str(entry["name"])
    if name in _names(models):
        raise ConfigError(f"has a model {name} already: choose another name with --name", file=file)
    wanted = {**(data or {}), "models": [*models, dict(entry)]}
    return _first_valid_edit(wanted, text, _additions(text, data, entry), file, f"model {name}")


def entry_text(entry: Mapping[str, Any]) -> str:
    """Return the lines of an entry, as ``add_entry`` writes them."""
    return _block(variables.escape(dict(entry)), 2)


def entry_lines(text: str, name: str, file: str = "models.yaml") -> tuple[int, int]:
    """Return the first and the last line of a model's entry, counted from 1.

    Raises:
        ConfigError: there is no such model, or its lines also have something else.
    """
    index = _index(_models(_data(text, file), file), name, file)
    models = _list(text)
    if models.kind != "sequence" or models.flow:
        raise ConfigError("is written in one line with other models: edit the file", file=file, model=name)
    first = text.count("\n", 0, _dash(text, models, index)) + 1
    return first, text.count("\n", 0, models.children[index].end) + 1


def remove_entry(text: str, name: str, file: str = "models.yaml") -> str:
    """Return ``text`` without the entry of a model. Comments above the entry stay.

    Raises:
        ConfigError: there is no such model, or the entry cannot be removed without changing other entries.
    """
    data = _data(text, file)
    models = _models(data, file)
    index = _index(models, name, file)
    wanted = {**data, "models": [model for at, model in enumerate(models) if at != index]}
    return _first_valid_edit(wanted, text, _removals(text, index), file, f"model {name}")


def change_entry(
    text: str, name: str, path: tuple[str | int, ...], value: str, file: str = "models.yaml"
) -> str:
    """Return ``text`` with another ``value`` at a key of a model, such as ``("source", "revision")``.

    A number in ``path`` is the index of an item in a list, as in ``("adapters", 0, "source", "path")``.

    Raises:
        ConfigError: the model or the key is missing, or its value is not a plain text or number.
    """
    value = variables.escape(value)
    data = copy.deepcopy(_data(text, file))  # aliases share objects
    index = _index(_models(data, file), name, file)
    inner = data["models"][index]
    dotted = ".".join(map(str, path))
    for key in path[:-1]:
        inner = _inner(inner, key)
    if not isinstance(inner, dict) or path[-1] not in inner:
        raise ConfigError("is missing: add it", file=file, model=name, key=dotted)
    inner[path[-1]] = value
    node = _list(text).children[index]
    for key in path:
        found = _value(text, node, key)
        if found is None:
            raise ConfigError("is set through an anchor: edit it by hand", file=file, model=name, key=dotted)
        node = found
    edits = [_Edit(node.start, node.end, written) for written in (value, json.dumps(value))]
    return _first_valid_edit(data, text, iter(edits), file, f"key {dotted} of model {name}")


# -- the places of an edit -------------------------------------------------------------------------------


def _additions(text: str, data: Any, entry: Mapping[str, Any]) -> Iterator[_Edit]:
    """Yield edits that may add the entry; the first whose result has the right values is used."""
    root = _tree(text)
    if root is None:
        yield _lines_at(text, len(text), _block(entry, 2, "models:\n"))
        return
    if root.kind != "mapping":
        return
    models = _value(text, root, "models")
    if models is None and root.flow:
        comma = ", " if root.children else ""
        yield _Edit(root.end - 1, root.end - 1, f"{comma}models: [{_flow(entry)}]")
    elif models is None:
        head = " " * root.column + "models:\n"
        for at in (_line_end(text, root.end), len(text)):
            yield _lines_at(text, at, _block(entry, root.column + 2, head))
    elif models.kind == "scalar" or (models.flow and not models.children):  # nothing, null, or []
        if root.flow:
            yield _Edit(models.start, models.end, f" [{_flow(entry)}]")
            return
        before = len(text[: models.start].rstrip(" ")) if models.end > models.start else models.start
        rest = text[models.end : _line_end(text, models.end)].rstrip("\r\n")  # a comment, say
        added = _lines_at(text, _line_end(text, models.end), _block(entry, root.column + 2))
        yield _Edit(
            before, added.end, rest + (added.text if added.text[:1] in "\r\n" else _eol(text) + added.text)
        )
    elif models.kind == "sequence" and models.flow:
        last = models.children[-1].end
        yield _Edit(last, last, f", {_flow(entry)}")
    elif models.kind == "sequence":
        yield from _into_block(text, models, entry)


def _into_block(text: str, models: _Node, entry: Mapping[str, Any]) -> Iterator[_Edit]:
    last = models.children[-1]
    apart = len(models.children) > 1 and _blank_before(text, models, len(models.children) - 1)
    inside = (
        max(last.column - models.column, 2) if last.start < _line_end(text, _dash(text, models, -1)) else 2
    )
    block = _block(entry, models.column, "\n" if apart else "", inside)
    yield _lines_at(text, _entry_end(text, models, -1), block)
    yield _lines_at(text, _line_end(text, last.end), block)
    yield _lines_at(text, _after_blank_lines(text, last.end), block)  # they belong to a text with `|+`


def _removals(text: str, index: int) -> Iterator[_Edit]:
    models = _list(text)
    items = models.children
    if len(items) == 1 and models.flow:
        yield _Edit(items[0].start, models.end - 1, "")
    elif models.flow and index + 1 < len(items):
        yield _Edit(items[index].start, items[index + 1].start, "")
    elif models.flow:
        yield _Edit(items[index - 1].end, items[index].end, "")
    elif len(items) == 1:
        indent = " " * models.column
        start = text.rfind("\n", 0, _dash(text, models, 0)) + 1
        yield _Edit(start, _entry_end(text, models, 0), f"{indent or '  '}[]{_eol(text)}")
    else:
        start, end = _dash(text, models, index) - models.column, _entry_end(text, models, index)
        if index and _blank_before(text, models, index):  # the blank line above goes with the entry
            line = text.rfind("\n", 0, max(start - 1, 0)) + 1
            if not text[line:start].strip():
                yield _Edit(line, end, "")
        yield _Edit(start, end, "")


def _entry_end(text: str, models: _Node, index: int) -> int:
    """Return the end of an entry, with the following comments that are indented deeper than its dash."""
    end = _line_end(text, models.children[index].end)
    while end < len(text):
        following = text[end : (after := _line_end(text, end + 1))]
        stripped = following.lstrip(" ")
        if not stripped.startswith("#") or len(following) - len(stripped) <= models.column:
            break
        end = after
    return end


def _dash(text: str, models: _Node, index: int) -> int:
    """Return the position of the dash before an item of a block sequence."""
    line = text.rfind("\n", 0, models.children[index].start) + 1
    while True:
        at = line + models.column
        # The first dash of a nested block may follow other characters: "models: - a" is not YAML.
        if at < len(text) and text[at] == "-" and not text[line:at].strip():
            return at
        if line == 0:
            return at
        line = text.rfind("\n", 0, line - 1) + 1


def _blank_before(text: str, models: _Node, index: int) -> bool:
    """Return whether a blank line is between an item and the item before it."""
    between = text[models.children[index - 1].end : _dash(text, models, index)]
    return any(not line.strip() for line in between.split("\n")[1:-1])


def _line_end(text: str, at: int) -> int:
    """Return the start of the line after ``at``; ``at`` itself if it is the start of a line."""
    if at and text[at - 1] == "\n":
        return at
    found = text.find("\n", at)
    return len(text) if found < 0 else found + 1


def _after_blank_lines(text: str, at: int) -> int:
    end = _line_end(text, at)
    while end < len(text) and not text[end : _line_end(text, end + 1)].strip():
        end = _line_end(text, end + 1)
    return end


def _lines_at(text: str, at: int, lines: str) -> _Edit:
    """Return the edit that inserts whole lines, in the text's kind of line ends."""
    eol = _eol(text)
    start = eol if at and text[at - 1] != "\n" else ""
    return _Edit(at, at, start + lines.replace("\n", eol))


def _eol(text: str) -> str:
    return "\r\n" if "\r\n" in text else "\n"


# -- YAML text of an entry -------------------------------------------------------------------------------


def _block(entry: Mapping[str, Any], indent: int, head: str = "", inside: int = 2) -> str:
    """Return ``head`` and the lines of an entry.

    ``indent``: column of the dash; ``inside``: columns from the dash to the keys.
    """
    dumped = yaml.safe_dump(dict(entry), sort_keys=False, allow_unicode=True, width=_WIDTH)
    first, *others = dumped.rstrip("\n").split("\n")
    lines = [f"{' ' * indent}-{' ' * (inside - 1)}{first}"]
    lines += [" " * (indent + inside) + line if line else "" for line in others]
    return head + "\n".join(lines) + "\n"


def _flow(entry: Mapping[str, Any]) -> str:
    dumped = yaml.safe_dump(
        dict(entry), sort_keys=False, allow_unicode=True, width=_WIDTH, default_flow_style=True
    )
    return dumped.strip()


# -- reading the text ------------------------------------------------------------------------------------


def _first_valid_edit(wanted: Any, text: str, edits: Iterator[_Edit], file: str, what: str) -> str:
    """Return the text after the first edit that gives exactly the values ``wanted``."""
    for edit in edits:
        result = text[: edit.start] + edit.text + text[edit.end :]
        try:
            if yaml_source.parse(result, file).data == wanted:
                return result
        except ConfigError:
            continue
    raise ConfigError(
        f"cannot be edited without changing other keys: add, change or remove {what} by hand (anchors, and "
        "lists that are written in an unusual way, cannot be edited by commands)",
        file=file,
    )


def _data(text: str, file: str) -> Any:
    data = yaml_source.parse(text, file).data
    if data is not None and not isinstance(data, dict):
        raise ConfigError("should be a mapping of keys to values", file=file)
    return data


def _models(data: Any, file: str) -> list[Any]:
    models = (data or {}).get("models") or []
    if not isinstance(models, list):
        raise ConfigError("should be a list", file=file, key="models")
    return models


def _names(models: list[Any]) -> list[Any]:
    return [model.get("name") if isinstance(model, dict) else None for model in models]


def _index(models: list[Any], name: str, file: str) -> int:
    try:
        return _names(models).index(name)
    except ValueError:
        known = ", ".join(str(each) for each in _names(models) if each)
        fix = f"choose among {known}" if known else "the list `models` is empty"
        raise ConfigError(f"has no model {name}: {fix}", file=file) from None


def _list(text: str) -> _Node:
    root = _tree(text)
    models = None if root is None else _value(text, root, "models")
    assert models is not None, "the caller found models in the values"
    return models


def _inner(value: Any, key: str | int) -> Any:
    """Return the value of a key in a mapping, or the item at an index in a list; None if it is missing."""
    if isinstance(value, list) and isinstance(key, int):
        return value[key] if key < len(value) else None
    return value.get(key) if isinstance(value, dict) else None


def _value(text: str, node: _Node, key: str | int) -> _Node | None:
    """Return the value of a key, or the item at an index in a list.

    It is None if the key is missing or comes from an anchor (``<<``).
    """
    if isinstance(key, int):
        return node.children[key] if node.kind == "sequence" and key < len(node.children) else None
    if node.kind != "mapping":
        return None
    for at in range(0, len(node.children), 2):
        if text[node.children[at].start : node.children[at].end].strip("\"'") == key:
            return node.children[at + 1]
    return None


def _tree(text: str) -> _Node | None:
    """Return the values of the text with their positions; None if there is no value.

    Made from the parser's events, because composed nodes do not have the positions of aliases.
    """
    stack: list[_Node] = []
    root = None
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        start, end = event.start_mark, event.end_mark
        assert start is not None
        assert end is not None
        if isinstance(event, yaml.CollectionEndEvent):
            node = stack.pop()
            node.end = end.index if node.flow or not node.children else node.children[-1].end
            continue
        if not isinstance(event, yaml.NodeEvent):
            continue
        node = _Node(start.index, end.index, start.column, "scalar")
        if isinstance(event, yaml.CollectionStartEvent):
            node.kind = "mapping" if isinstance(event, yaml.MappingStartEvent) else "sequence"
            node.flow, node.children = bool(event.flow_style), []
        elif isinstance(event, yaml.AliasEvent):
            node.kind = "alias"
        else:
            node.end = start.index + len(text[start.index : end.index].rstrip("\r\n "))
        if stack:
            stack[-1].children.append(node)
        root = root or node
        if isinstance(event, yaml.CollectionStartEvent):
            stack.append(node)
    return root
