"""The operations of the API for people: groups, fields and examples, from the OpenAPI document."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

#: Levels of objects in a body whose fields are listed.
_DEPTH: Final = 2
_JSON: Final = "application/json"
_METHODS_WITHOUT_BODY: Final = ("get", "delete")
_EXAMPLES: Final[Mapping[str, Any]] = {
    "string": "…",
    "integer": 1,
    "number": 1.0,
    "boolean": True,
    "array": [],
    "object": {},
}


class DocumentedField(NamedTuple):
    """A parameter, or a field of a body: ``name`` is a path such as "messages.role"."""

    name: str
    type: str
    place: str  # path, query, header or body
    required: bool
    description: str


class DocumentedOperation(NamedTuple):
    """An operation of the API."""

    id: str
    method: str
    path: str  # with the base path, such as "/v1/predictions"
    summary: str
    fields: Sequence[DocumentedField]
    media: str  # media type of the body; empty without a body
    responses: Sequence[tuple[str, str]]  # status, and what it means
    curl: str
    open: bool  # whether no token is needed

    @property
    def words(self) -> str:
        """The text in which a search looks."""
        return f"{self.id} {self.method} {self.path} {self.summary}".casefold()


def groups(document: Mapping[str, Any], base_url: str) -> list[tuple[str, list[DocumentedOperation]]]:
    """Return the operations by tag, in the order of the document. ``base_url`` is the appliance's URL."""
    found: dict[str, list[DocumentedOperation]] = {}
    components = document["components"]["schemas"]
    for path, methods in document["paths"].items():
        for method, described in methods.items():
            whole = path if "servers" in described else f"/v1{path}"
            made = _operation(method, whole, described, components, base_url)
            found.setdefault(described["tags"][0], []).append(made)
    return list(found.items())


def _operation(
    method: str, path: str, described: Mapping[str, Any], components: Mapping[str, Any], base_url: str
) -> DocumentedOperation:
    content = described.get("requestBody", {}).get("content", {})
    media = next(iter(content), "")
    body = content[media]["schema"] if media else {}
    parameters = [
        DocumentedField(
            each["name"],
            _type(each["schema"], components),
            each["in"],
            each.get("required", False),
            each.get("description", ""),
        )
        for each in described.get("parameters", ())
    ]
    needs_token = described.get("security") != []
    return DocumentedOperation(
        id=described["operationId"],
        method=method.upper(),
        path=path,
        summary=described["summary"],
        fields=[*parameters, *_fields(body, components, "", _DEPTH)],
        media=media,
        responses=[(status, each["description"]) for status, each in described["responses"].items()],
        curl=_curl(method, f"{base_url}{path}", media, _example(body, components), needs_token=needs_token),
        open=not needs_token,
    )


def _resolved(schema: Mapping[str, Any], components: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the schema that a reference, or the one choice besides null, stands for."""
    if "$ref" in schema:
        return _resolved(components[schema["$ref"].rpartition("/")[2]], components)
    choices = [each for each in schema.get("anyOf", ()) if each.get("type") != "null"]
    return _resolved(choices[0], components) if len(choices) == 1 else schema


def _fields(
    schema: Mapping[str, Any], components: Mapping[str, Any], prefix: str, depth: int
) -> Iterator[DocumentedField]:
    found = _resolved(schema, components)
    if found.get("type") == "array":
        found = _resolved(found.get("items", {}), components)
    for name, each in found.get("properties", {}).items():
        if each.get("deprecated"):
            continue
        inner = _resolved(each, components)
        text = each.get("description") or inner.get("description", "")
        required = name in found.get("required", ())
        yield DocumentedField(f"{prefix}{name}", _type(each, components), "body", required, text)
        if depth > 1:
            yield from _fields(each, components, f"{prefix}{name}.", depth - 1)


def _type(schema: Mapping[str, Any], components: Mapping[str, Any]) -> str:
    """Return the type of a value in the words of JSON Schema."""
    if "$ref" in schema:
        return _type(_resolved(schema, components), components)
    if "enum" in schema:
        return " | ".join(json.dumps(each) for each in schema["enum"])
    if "anyOf" in schema:
        types = [_type(each, components) for each in schema["anyOf"] if each.get("type") != "null"]
        return " | ".join(dict.fromkeys(types))
    kind = schema.get("type", "any")
    if kind == "array":
        inner = _type(schema.get("items", {}), components)
        return f"array of {inner}"
    return f"{kind} ({schema['format']})" if "format" in schema else str(kind)


def _example(schema: Mapping[str, Any], components: Mapping[str, Any]) -> Any:
    """Return a value with all required fields."""
    found = _resolved(schema, components)
    if found.get("enum"):
        return found["enum"][0]
    if "anyOf" in found:
        return _example(found["anyOf"][0], components)
    properties, required = found.get("properties", {}), found.get("required", ())
    if required:
        return {name: _example(properties.get(name, {}), components) for name in required}
    return _EXAMPLES.get(str(found.get("type")), {})


def _curl(method: str, url: str, media: str, body: Any, *, needs_token: bool) -> str:
    """Return a command for the shell; placeholders of the path stay in braces."""
    lines = [f"curl -X {method.upper()} {shlex.quote(url)}"]
    if method in _METHODS_WITHOUT_BODY:
        lines = [f"curl {'-X DELETE ' if method == 'delete' else ''}{shlex.quote(url)}"]
    if needs_token:
        lines.append('-H "Authorization: Bearer $REPLICATE_API_TOKEN"')
    if media == "multipart/form-data":
        given = body if isinstance(body, dict) else {}
        lines += [f"-F {shlex.quote(f'{name}={_form_value(name, value)}')}" for name, value in given.items()]
    elif media:
        text = json.dumps(body, ensure_ascii=False) if media == _JSON else "…"
        lines += [f'-H "Content-Type: {media}"', f"-d {shlex.quote(text)}"]
    return " \\\n  ".join(lines)


def _form_value(name: str, value: Any) -> str:
    return f"@{name}" if name in {"content", "file", "image"} else str(value)
