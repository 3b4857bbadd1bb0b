"""Run by the Python of a Cog project's own environment, in its folder: prints what it takes and gives.

Nothing of the appliance is imported here. Arguments: a handler, such as ``predict.py:Predictor``.
"""

from __future__ import annotations

import ast
import json
import sys
import warnings
from pathlib import Path
from typing import Any

HANDLERS = ("run", "predict", "train")


def main(handler: str) -> dict[str, Any]:
    """The project's interface, and how many predictions it runs at a time."""
    warnings.simplefilter("ignore")
    file, _, name = handler.partition(":")
    module = file.removesuffix(".py").replace("/", ".")
    sys.path.insert(0, str(Path.cwd()))
    from cog import _inspector  # type: ignore[import-not-found]  # it is in the project's environment only

    found = _inspector.create_predictor(module, name)
    loaded = getattr(sys.modules[module], name)
    methods = [getattr(loaded, each) for each in HANDLERS if hasattr(loaded, each)]
    method = methods[0] if methods else loaded
    optional = defaults_of_none(Path(file), name)
    properties: dict[str, Any] = {}
    components: dict[str, Any] = {}
    required = []
    for field in sorted(found.inputs.values(), key=lambda field: field.order):
        properties[field.name] = described(field, components)
        may_be_none = "OPTIONAL" in field.type.repetition.name or field.name in optional
        if field.default is None and not may_be_none:
            required.append(field.name)
    whole = {"type": "object", "title": "Input", "properties": properties}
    return {
        "interface": {
            "input": {**whole, "required": required} if required else whole,
            "output": found.output.json_type(),
            "components": components,
        },
        "concurrency": int(getattr(method, "__cog_concurrent_max__", 1)),
    }


def described(field: Any, components: dict[str, Any]) -> dict[str, Any]:
    """One input as JSON Schema; choices become a component of its own, as Cog writes them."""
    title = field.name.replace("_", " ").title()
    shared = {
        "title": title,
        "description": field.description or title,
        "x-order": field.order,
        **({} if field.default is None else {"default": plain(field.default)}),
        **({"deprecated": True} if field.deprecated else {}),
    }
    if field.choices:
        kind = "integer" if isinstance(field.choices[0], int) else "string"
        components[field.name] = {
            "title": field.name,
            "type": kind,
            "enum": list(field.choices),
            "description": "An enumeration.",
        }
        if field.default is None:
            shared["default"] = field.choices[0]
        del shared["title"]
        return {**shared, "allOf": [{"$ref": f"#/components/schemas/{field.name}"}]}
    bounds = {
        "minimum": field.ge,
        "maximum": field.le,
        "minLength": field.min_length,
        "maxLength": field.max_length,
        "pattern": field.regex,
    }
    kind = field.type.json_type()
    if kind.get("type") == "integer":
        bounds = {key: int(value) if isinstance(value, float) else value for key, value in bounds.items()}
    return {**kind, **shared, **{key: value for key, value in bounds.items() if value is not None}}


def plain(value: Any) -> Any:
    """A default as JSON."""
    return value if isinstance(value, (str, int, float, bool, list, dict)) else str(value)


def defaults_of_none(file: Path, name: str) -> set[str]:
    """The inputs whose default is written as None: those are optional, whatever their type says.

    At run time ``Input(description=...)`` and ``Input(default=None)`` are the same; in the source not.
    """
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and node.name == name:
            methods = [part for part in node.body if getattr(part, "name", "") in HANDLERS]
            return {found for method in methods for found in _nones(method)}
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name == name:
            return set(_nones(node))
    return set()


def _nones(function: Any) -> list[str]:
    arguments = [*function.args.posonlyargs, *function.args.args]
    defaults = [*function.args.defaults]
    pairs = [*zip(reversed(arguments), reversed(defaults), strict=False)]  # the last ones have defaults
    pairs += [*zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True)]
    return [argument.arg for argument, default in pairs if default is not None and _is_none(default)]


def _is_none(default: ast.expr) -> bool:
    if isinstance(default, ast.Constant):
        return default.value is None
    if not isinstance(default, ast.Call):
        return False
    given = [each.value for each in default.keywords if each.arg == "default"] + default.args[:1]
    return any(isinstance(each, ast.Constant) and each.value is None for each in given)


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1])))
