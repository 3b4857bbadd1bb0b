"""Script that writes the schemas of a project for a Cog version before 0.17 to a file, as JSON.

The Python of the project's environment runs it, in the folder of the project, so it imports nothing from the
appliance and runs on Python 3.8. Argument: the file. These versions of Cog make the schemas themselves, from
the types of the loaded project; ``cog build`` called them in the same way (``cog.command.openapi_schema``).
"""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import sys
from pathlib import Path
from typing import Any

REF = "#/components/schemas/"


def main() -> dict[str, Any]:
    """Return the interface of the project, of its ``train`` if it has one, and its concurrency."""
    sys.path[0] = str(Path.cwd())
    document, parameters, settings = described("predict")
    found: dict[str, Any] = {"interface": interface(document, "Input", "Output")}
    found["concurrency"] = int(getattr(settings, "max_concurrency", 1))
    trains = settings.get("train") if isinstance(settings, dict) else settings.predictor_train_ref
    if trains:
        if "TrainingInput" in document["components"]["schemas"]:  # since Cog 0.9.0
            training = interface(document, "TrainingInput", "TrainingOutput")
            found["training"] = {"interface": training, "path": "/trainings"}
        elif "mode" in parameters:
            document, _, _ = described("train")
            found["training"] = {"interface": interface(document, "Input", "Output"), "path": "/predictions"}
    return found


def described(mode: str) -> Any:
    """Return the OpenAPI document, the names of the parameters of Cog's ``create_app``, and Cog's config."""
    from cog.server import http  # type: ignore[import-not-found]  # only in the project's environment

    parameters = inspect.signature(http.create_app).parameters
    options: dict[str, Any] = {"shutdown_event": None}
    if "is_build" in parameters:
        options["is_build"] = True
    if mode == "train":
        options["mode"] = mode
    if "cog_config" in parameters:  # since Cog 0.14
        from cog.config import Config  # type: ignore[import-not-found]  # as above

        settings = Config()
        app = http.create_app(cog_config=settings, **options)
    else:
        from cog.predictor import load_config  # type: ignore[import-not-found]  # as above

        settings = load_config()
        app = http.create_app(settings, **options)
    result = getattr(app.state, "setup_result", None)
    if result is not None and "fail" in str(getattr(result, "status", "")).lower():
        raise SystemExit("Cog cannot load the project")  # it has printed the reason
    return app.openapi(), parameters, settings


def interface(document: dict[str, Any], input: str, output: str) -> dict[str, Any]:
    """Return two schemas of a document, and the components that they refer to."""
    schemas = without_titles_of_references(document["components"]["schemas"])
    names: set[str] = set()
    references(schemas[input], schemas, names)
    references(schemas[output], schemas, names)
    components = {name: schemas[name] for name in sorted(names)}
    return {
        "input": {"properties": {}, **schemas[input]},
        "output": schemas[output],
        "components": components,
    }


def references(schema: Any, schemas: dict[str, Any], names: set[str]) -> None:
    """Add the names of all components that ``schema`` refers to, directly or not, to ``names``."""
    parts: list[Any] = schema if isinstance(schema, list) else []
    if isinstance(schema, dict):
        parts = list(schema.values())
        name = str(schema.get("$ref", ""))[len(REF) :]
        if name and name not in names:
            names.add(name)
            references(schemas[name], schemas, names)
    for part in parts:
        references(part, schemas, names)


def without_titles_of_references(schema: Any) -> Any:
    """Remove titles beside a ``$ref``, as ``cog build`` does."""
    if isinstance(schema, dict):
        return {
            key: without_titles_of_references(part)
            for key, part in schema.items()
            if not (key == "title" and "$ref" in schema and isinstance(part, str))
        }
    return [without_titles_of_references(part) for part in schema] if isinstance(schema, list) else schema


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(main()), encoding="utf-8")
    with contextlib.suppress(Exception):  # the project may have replaced the streams
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(0)  # skips the project's threads and exit handlers
