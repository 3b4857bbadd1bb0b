"""Answers held against the OpenAPI document that is served, and against Replicate's where that is at hand."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema

PUBLISHED = Path(__file__).parents[3] / "shared" / "replicate-openapi.json"


class Contract:
    """Looks at every answer of the clients that it watches."""

    def __init__(self, served: dict[str, Any]) -> None:
        self._documents = [served]
        if PUBLISHED.exists():
            self._documents.append(_as_3_1(json.loads(PUBLISHED.read_text())))
        self.seen: set[str] = set()  # operations that were answered with success

    def check(self, reply: httpx.Response) -> None:
        """An event hook for httpx."""
        reply.read()
        path = re.sub(r"^(/v1)+", "", reply.request.url.path).rstrip("/")
        for document in self._documents:
            operation = _operation(document, reply.request.method.lower(), path)
            if operation is None:
                continue
            self._check(document, operation, reply)
            if reply.is_success:
                self.seen.add(operation["operationId"])

    def _check(self, document: dict[str, Any], operation: dict[str, Any], reply: httpx.Response) -> None:
        told = f"{reply.request.method} {reply.request.url} -> {reply.status_code}"
        answer = operation["responses"].get(str(reply.status_code))
        if answer is None:
            assert reply.status_code >= 400, f"{told}: no such answer is described"
            return
        kind = reply.headers.get("content-type", "").partition(";")[0]
        content = answer.get("content", {})
        schema = content.get(kind, content.get("application/json", {})).get("schema")
        if schema is None or "json" not in kind:
            return
        body = reply.json()
        if document is not self._documents[0]:
            body = _with_output(body)
        validator = jsonschema.Draft202012Validator(
            {**schema, "components": document["components"]},
            format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER,
        )
        problems = [f"{error.json_path}: {error.message}" for error in validator.iter_errors(body)]
        assert problems == [], f"{told}: {problems}"


def operations(document: dict[str, Any]) -> Iterator[str]:
    """The ids of all operations of Replicate's API; the others have a server of their own."""
    for methods in document["paths"].values():
        for operation in methods.values():
            if "servers" not in operation:
                yield operation["operationId"]


def _operation(document: dict[str, Any], method: str, path: str) -> dict[str, Any] | None:
    for template, methods in document["paths"].items():
        if method in methods and re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", template), path):
            found: dict[str, Any] = methods[method]
            return found
    return None


def _as_3_1(value: Any) -> Any:
    """Replicate's document is OpenAPI 3.0, where null is a word of its own."""
    if isinstance(value, list):
        return [_as_3_1(part) for part in value]
    if not isinstance(value, dict):
        return value
    converted = {key: _as_3_1(part) for key, part in value.items() if key != "nullable"}
    return {"anyOf": [converted, {"type": "null"}]} if value.get("nullable") is True else converted


def _with_output(body: Any) -> Any:
    """Add the null output that Replicate's document requires: streaming clients take null for output."""
    if isinstance(body, dict) and "results" in body:
        return {**body, "results": [_with_output(one) for one in body["results"]]}
    under_way = isinstance(body, dict) and body.get("status") in {"starting", "processing"}
    if under_way and "destination" not in body:  # of a training it is not required
        return {"output": None, **body}
    return body
