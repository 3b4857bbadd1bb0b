"""Generate example programs that call a model with the values in the form."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
from jinja2 import Environment, FileSystemLoader

from appliance.runners import KINDS, operations
from appliance.ui.output import RenderedOutput

#: Marks names of shell variables while the rest of the text is escaped; no input contains it.
_MARK: Final = "\ue000\ue0ff"


class LocalFile(msgspec.Struct, frozen=True):
    """A file that the user has uploaded in the form. The example programs open it by its name."""

    path: str

    @property
    def name(self) -> str:
        return Path(self.path).name


class ExampleCall(msgspec.Struct, frozen=True, kw_only=True):
    """The API call that the example programs make."""

    model: str  # owner/name, or owner/name:version
    kind: str | None
    base_url: str
    input: Mapping[str, Any]  # files are of type LocalFile
    output: RenderedOutput

    @property
    def files(self) -> list[LocalFile]:
        return [*dict.fromkeys(value for value in _values(self.input) if isinstance(value, LocalFile))]


def python(call: ExampleCall) -> str:
    return _environment.get_template("python.txt").render(call=call)


def javascript(call: ExampleCall) -> str:
    return _environment.get_template("javascript.txt").render(call=call)


def curl(call: ExampleCall) -> str:
    variables = {file: f"FILE{number}" for number, file in enumerate(call.files, 1)}
    _, version, _ = call.model.partition(":")
    path = "predictions" if version else f"models/{call.model}/predictions"
    asked = {"version": call.model} if version else {}
    body = json.dumps({**asked, "input": _named(call.input, variables)}, indent=2, ensure_ascii=False)
    # In a here-document only these three characters are special to the shell.
    body = re.sub(r"[\\$`]", r"\\\g<0>", body)
    for variable in variables.values():
        body = body.replace(f"{_MARK}{variable}", f"${variable}")
    template = _environment.get_template("curl.txt")
    return template.render(call=call, variables=variables, path=path, body=body)


def openai(call: ExampleCall) -> str | None:
    """Return a program with OpenAI's client for Python; None if OpenAI's API has no such kind of model."""
    supported = KINDS[call.kind].operations if call.kind in KINDS else frozenset()
    operation = next((each for each in operations.OPENAI if each in supported), None)
    if operation is None:
        return None
    messages = [{"role": "user", "content": call.input.get("prompt", "")}]
    if call.input.get("system_prompt"):
        messages.insert(0, {"role": "system", "content": call.input["system_prompt"]})
    return _environment.get_template("openai.txt").render(call=call, operation=operation, messages=messages)


def _values(value: Any) -> list[Any]:
    match value:
        case Mapping():
            return [part for each in value.values() for part in _values(each)]
        case list() | tuple():
            return [part for each in value for part in _values(each)]
    return [value]


def _python(value: Any, indent: int = 0) -> str:
    inner = " " * (indent + 4)
    match value:
        case LocalFile():
            return f'open({_python(value.name)}, "rb")'
        case str():
            return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\x7f")
        case Mapping() if value:
            rows = "".join(
                f"{inner}{_python(str(key))}: {_python(part, indent + 4)},\n" for key, part in value.items()
            )
            return f"{{\n{rows}{' ' * indent}}}"
        case list() | tuple() if value:
            return f"[{', '.join(_python(part, indent) for part in value)}]"
    return repr(value)


def _javascript(value: Any, indent: int = 0) -> str:
    inner = " " * (indent + 2)
    match value:
        case LocalFile():
            return f"await readFile({json.dumps(value.name)})"
        case Mapping() if value:
            rows = "".join(
                f"{inner}{json.dumps(key)}: {_javascript(part, indent + 2)},\n" for key, part in value.items()
            )
            return f"{{\n{rows}{' ' * indent}}}"
        case list() | tuple():
            return f"[{', '.join(_javascript(part, indent) for part in value)}]"
    return json.dumps(value, ensure_ascii=False)


def _named(value: Any, names: Mapping[LocalFile, str]) -> Any:
    """Return ``value`` with each file replaced by its shell variable, marked with ``_MARK``."""
    match value:
        case LocalFile():
            return f"{_MARK}{names[value]}"
        case Mapping():
            return {key: _named(part, names) for key, part in value.items()}
        case list() | tuple():
            return [_named(part, names) for part in value]
    return value


_environment: Final = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates" / "snippets"),
    autoescape=False,  # noqa: S701 - programs, not HTML; a page shows them as text
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
_environment.filters |= {"python": _python, "javascript": _javascript, "shell": shlex.quote}
