"""The served OpenAPI document: whole, in agreement with the routes, and with what Replicate publishes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from appliance.gateway.api import application, openapi
from tests.support.api_client import Api

DOCUMENT = openapi.document()
#: Operations under /v1 that Replicate has not.
OURS = {"models.versions.create", "builds.list", "builds.get", "builds.cancel"}
PUBLISHED = Path(__file__).parents[5] / "shared" / "replicate-openapi.json"


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Operations below /v1: those of Replicate's API."""
    for method, path, operation in all_operations(document):
        if "servers" not in operation:
            yield method, path, operation


def all_operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method, path, operation


def anonymous(path: str) -> str:
    return re.sub(r"\{\w+(:path)?\}", "{}", path)


def test_every_reference_leads_somewhere_and_every_schema_is_one() -> None:
    schemas = DOCUMENT["components"]["schemas"]
    references = set(re.findall(r'"\$ref": "#/components/schemas/(\w+)"', json.dumps(DOCUMENT)))
    assert references <= set(schemas)
    used = references | {"Problem"}
    assert set(schemas) == used
    for schema in schemas.values():
        jsonschema.Draft202012Validator.check_schema(schema)


def test_there_are_37_operations_with_names_of_their_own_and_a_few_of_ours() -> None:
    ids = [operation["operationId"] for _, _, operation in operations(DOCUMENT)]
    assert len(ids) == len(set(ids)) == 37 + len(OURS)


def test_every_parameter_of_a_path_is_declared() -> None:
    for _, path, operation in all_operations(DOCUMENT):
        declared = {each["name"] for each in operation.get("parameters", ()) if each["in"] == "path"}
        assert declared == set(re.findall(r"\{(\w+)\}", path))


def test_every_operation_has_a_route_and_every_route_of_the_api_an_operation() -> None:
    served = {
        (method.lower(), anonymous(route.path))
        for route in application.ROUTES
        for method in route.methods or ()
        if method != "HEAD"
    }
    described = {
        (method, anonymous(path if "servers" in operation else "/v1" + path))
        for method, path, operation in all_operations(DOCUMENT)
    }
    beside = {
        ("post", "/v1/models/{}/predictions"),  # LiteLLM's spelling, which Replicate takes too
        ("get", "/v1/streams/{}"),
        ("get", "/v1/files/stream/{}"),
        ("get", "/v1/openapi.json"),
        ("get", "/openapi.json"),
        ("get", "/docs"),
        ("get", "/outputs/{}/{}"),
        ("get", "/docs/{}"),
    }
    assert served - beside == described


def test_the_operations_are_those_that_replicate_publishes() -> None:
    if not PUBLISHED.exists():
        pytest.skip(f"{PUBLISHED} is not here")

    def told(document: dict[str, Any]) -> set[tuple[Any, ...]]:
        return {
            (
                method,
                anonymous(path),
                operation["operationId"],
                *sorted(status for status in operation["responses"] if status < "300"),
            )
            for method, path, operation in operations(document)
        }

    ours = {operation for operation in told(DOCUMENT) if operation[2] in OURS}
    assert {operation[2] for operation in ours} == OURS
    assert told(DOCUMENT) - ours == told(json.loads(PUBLISHED.read_text()))


def test_what_replicate_requires_is_required_here() -> None:
    if not PUBLISHED.exists():
        pytest.skip(f"{PUBLISHED} is not here")
    theirs = json.loads(PUBLISHED.read_text())["components"]["schemas"]
    ours = DOCUMENT["components"]["schemas"]
    for name, schema in {
        "schemas_collection_list_item": "Collection",
        "schemas_file_response": "File",
        "schemas_prediction_response": "Prediction",
        "schemas_search_response": "SearchResults",
        "schemas_version_prediction_request": "VersionPredictionRequest",
        "schemas_training_request": "TrainingRequest",
    }.items():
        # Output is left out until there is some: a client that polls takes null for an answer.
        assert set(theirs[name].get("required", ())) - {"output"} <= set(ours[schema]["required"])


async def test_responses_of_admin_and_compat_routes_fit_their_schemas(api: Api) -> None:
    record = await api.create(text="x")
    await api.get(f"/v1/predictions/{record['id']}")
    paths = [
        path
        for method, path, operation in all_operations(DOCUMENT)
        if method == "get" and "servers" in operation and "{" not in path
    ]
    checked = {path: path for path in paths}
    checked["/admin/predictions/{id}"] = f"/admin/predictions/{record['id']}"
    # Held by test_additions.py and test_config_files.py.
    for path in ("/admin/hub", "/admin/weights/unused", "/admin/config/file"):
        del checked[path]
    checked["/admin/usage"] = "/admin/usage?by=day,model,token"
    assert len(checked) >= 14
    for template, path in checked.items():
        reply = await api.get(path)
        assert reply.status_code == 200, path
        described = DOCUMENT["paths"][template]["get"]["responses"]["200"]["content"]
        if "application/json" in described:
            schema = {**described["application/json"]["schema"], "components": DOCUMENT["components"]}
            jsonschema.Draft202012Validator(schema).validate(reply.json())


async def test_it_is_served_with_a_page_that_needs_nothing_from_elsewhere(api: Api) -> None:
    async with Api(api.services, None) as stranger:
        assert (await stranger.get("/openapi.json")).json() == DOCUMENT
        assert (await stranger.get("/v1/openapi.json")).json() == DOCUMENT
        page = await stranger.get("/docs")
        assert page.headers["content-type"].startswith("text/html")
        for address in re.findall(r'(?:src|href)="([^"]+)"', page.text):
            assert address.startswith("/docs/")
            reply = await stranger.get(address)
            assert reply.status_code == 200
            assert len(reply.content) > 50
        assert (await stranger.get("/docs/main.py")).status_code == 404
