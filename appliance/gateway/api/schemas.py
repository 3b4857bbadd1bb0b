"""The schemas of the served OpenAPI document: what requests hold, and what answers do. Pure data."""

from __future__ import annotations

from typing import Any, Final

from appliance.domain.prediction import WEBHOOK_EVENTS, Status

Schema = dict[str, Any]

_TEXT: Final[Schema] = {"type": "string"}
_TIME: Final[Schema] = {"type": "string", "format": "date-time"}
_ADDRESS: Final[Schema] = {"type": "string", "format": "uri"}
_NUMBER: Final[Schema] = {"type": "integer"}
_ANY_OBJECT: Final[Schema] = {"type": "object"}
_STATUSES: Final = tuple(status.value for status in Status)


def ref(name: str) -> Schema:
    """A reference to one of ``COMPONENTS``."""
    return {"$ref": f"#/components/schemas/{name}"}


def said(schema: Schema, description: str) -> Schema:
    """``schema`` with a description."""
    return {**schema, "description": description}


def nullable(schema: Schema) -> Schema:
    """``schema`` or null."""
    return {"anyOf": [schema, {"type": "null"}]}


def several(items: Schema) -> Schema:
    """An array."""
    return {"type": "array", "items": items}


def one_of(*values: str) -> Schema:
    """One of a few texts."""
    return {"type": "string", "enum": list(values)}


def thing(
    required: dict[str, Schema], optional: dict[str, Schema] | None = None, *, open: bool = True
) -> Schema:
    """An object with these properties; an ``open`` one may have others."""
    whole: Schema = {"type": "object", "properties": {**required, **(optional or {})}}
    if required:
        whole["required"] = list(required)
    return whole if open else {**whole, "additionalProperties": False}


def page(item: str) -> Schema:
    """A page of a list."""
    link = nullable(_ADDRESS)
    return thing(
        {
            "next": said(link, "Address of the page that follows"),
            "previous": said(link, "Address of the page before"),
            "results": several(ref(item)),
        }
    )


_PROBLEM: Final[dict[str, Schema]] = {"detail": said(_TEXT, "What is wrong, for people")}
_PROBLEM_MORE: Final[dict[str, Schema]] = {
    "title": _TEXT,
    "status": _NUMBER,
    "type": _TEXT,
    "instance": _TEXT,
}

_PREDICTION: Final[dict[str, Schema]] = {
    "id": said({"type": "string", "pattern": "^[a-z0-9]{26}$"}, "26 lowercase letters and digits"),
    "model": said(_TEXT, "owner/name"),
    "version": said(_TEXT, "64 hex digits"),
    "input": said(_ANY_OBJECT, "Exactly what the caller gave"),
    "logs": _TEXT,
    "error": said(nullable({"type": "string", "minLength": 1}), "Why it failed; null unless it did"),
    "status": one_of(*_STATUSES),
    "created_at": _TIME,
    "data_removed": said({"type": "boolean"}, "Whether input, output and logs were removed"),
    "source": one_of("api", "web"),
}
_PREDICTION_MORE: Final[dict[str, Schema]] = {
    "output": {"description": "Any JSON; absent until there is some"},
    "started_at": _TIME,
    "completed_at": _TIME,
    "deadline": said(_TIME, "When Cancel-After ends it"),
    "parent": said(_TEXT, "The prediction that asked for this one while it ran"),
    "parts": said(several(_TEXT), "The predictions that this one has asked for; in GET of one only"),
    "metrics": thing(
        {},
        {
            "predict_time": said({"type": "number"}, "Seconds that it ran"),
            "total_time": said({"type": "number"}, "Seconds from its creation to its end"),
            "input_token_count": _NUMBER,
            "output_token_count": _NUMBER,
        },
    ),
    "webhook": _ADDRESS,
    "webhook_events_filter": several(one_of(*WEBHOOK_EVENTS)),
}
_WEBHOOK: Final[dict[str, Schema]] = {
    "webhook": said(_ADDRESS, "Where events are posted, signed"),
    "webhook_events_filter": said(several(one_of(*WEBHOOK_EVENTS)), "Which events; all when absent"),
}
_INPUT: Final[dict[str, Schema]] = {
    "input": said(_ANY_OBJECT, "The model's inputs; files are http, https or data URLs")
}
_IGNORED: Final[dict[str, Schema]] = {
    "stream": said({"type": "boolean", "deprecated": True}, "Without effect: all can be streamed"),
    "webhook_completed": said({"deprecated": True}, "Without effect"),
}
_MODEL_WORDS: Final[dict[str, Schema]] = {
    "description": nullable(_TEXT),
    "github_url": nullable(_TEXT),
    "paper_url": nullable(_TEXT),
    "license_url": nullable(_TEXT),
}
_NAME: Final[Schema] = {"type": "string", "pattern": r"^[a-z0-9]([a-z0-9._-]*[a-z0-9])?$", "maxLength": 100}
_RELEASE: Final[dict[str, Schema]] = {
    "model": said(_TEXT, "owner/name"),
    "version": {"type": "string", "pattern": "^[0-9a-f]{64}$"},
    "hardware": said({"type": "string", "minLength": 1}, "A SKU of GET /hardware"),
    "min_instances": {"type": "integer", "minimum": 0, "maximum": 5},
    "max_instances": {"type": "integer", "minimum": 0, "maximum": 20},
}
_ACCOUNT: Final[Schema] = thing(
    {"type": one_of("user", "organization"), "username": _TEXT, "name": _TEXT},
    {"github_url": _ADDRESS, "avatar_url": _ADDRESS},
)

COMPONENTS: Final[dict[str, Schema]] = {
    "Problem": thing(_PROBLEM, _PROBLEM_MORE),
    "InvalidInput": thing(
        {
            **_PROBLEM,
            "invalid_fields": several(
                thing(
                    {
                        "type": _TEXT,
                        "field": said(_TEXT, "Dotted, from the body's root"),
                        "description": _TEXT,
                    }
                )
            ),
        },
        _PROBLEM_MORE,
    ),
    "Throttled": thing({**_PROBLEM, "retry_after": said(_NUMBER, "Seconds")}, _PROBLEM_MORE),
    "Account": _ACCOUNT,
    "Hardware": thing({"name": _TEXT, "sku": _TEXT}),
    "Collection": thing({"name": _TEXT, "slug": _TEXT, "description": _TEXT}),
    "CollectionDetail": thing(
        {
            "name": _TEXT,
            "slug": _TEXT,
            "description": _TEXT,
            "full_description": said(nullable(_TEXT), "Markdown"),
            "models": several(ref("Model")),
        }
    ),
    "Version": thing(
        {
            "id": {"type": "string", "pattern": "^[0-9a-f]{64}$"},
            "created_at": _TIME,
            "cog_version": _TEXT,
            "openapi_schema": said(_ANY_OBJECT, "Inputs and output, as an OpenAPI document"),
        }
    ),
    "Model": thing(
        {
            "url": _ADDRESS,
            "owner": _TEXT,
            "name": _TEXT,
            **_MODEL_WORDS,
            "visibility": one_of("public", "private"),
            "is_official": {"type": "boolean"},
            "run_count": said(_NUMBER, "How often it was asked"),
            "cover_image_url": nullable(_TEXT),
            "default_example": nullable(ref("Prediction")),
            "latest_version": nullable(ref("Version")),
        },
        {"created_at": _TIME, "weights_url": nullable(_TEXT)},
    ),
    "ModelCreation": thing(
        {"owner": _NAME, "name": _NAME, "visibility": one_of("public", "private"), "hardware": _TEXT},
        {**_MODEL_WORDS, "cover_image_url": nullable(_TEXT)},
        open=False,
    ),
    "ModelUpdate": thing(
        {},
        {**_MODEL_WORDS, "readme": nullable(_TEXT), "weights_url": nullable(_TEXT)},
        open=False,
    ),
    "Prediction": thing(
        {
            **_PREDICTION,
            "urls": thing({"get": _ADDRESS, "cancel": _ADDRESS, "web": _ADDRESS}, {"stream": _ADDRESS}),
        },
        {
            **_PREDICTION_MORE,
            "deployment": said(_TEXT, "owner/name of the deployment it was made through"),
            "operation": said(_TEXT, "What was asked for, if it was through another API"),
        },
    ),
    "PredictionCreation": thing(_INPUT, {**_WEBHOOK, **_IGNORED}, open=False),
    "VersionPredictionCreation": thing(
        {"version": said(_TEXT, "owner/name, owner/name:version, or a version id"), **_INPUT},
        {**_WEBHOOK, **_IGNORED},
        open=False,
    ),
    "Training": thing(
        {**_PREDICTION, "urls": thing({"get": _ADDRESS, "cancel": _ADDRESS, "web": _ADDRESS})},
        {
            **_PREDICTION_MORE,
            "destination": said(_TEXT, "The model that gets the new version"),
            "output": thing({}, {"version": said(_TEXT, "owner/name:version"), "weights": _ADDRESS}),
        },
    ),
    "TrainingCreation": thing(
        {"destination": said(_TEXT, "owner/name of a model of yours"), **_INPUT},
        {**_WEBHOOK, **_IGNORED, "version": said(_TEXT, "Without effect: it is in the address")},
        open=False,
    ),
    "Deployment": thing(
        {
            "owner": _TEXT,
            "name": _TEXT,
            "current_release": thing(
                {
                    "number": {"type": "integer", "minimum": 1},
                    "model": _TEXT,
                    "version": _TEXT,
                    "created_at": _TIME,
                    "created_by": ref("Account"),
                    "configuration": thing(
                        {"hardware": _TEXT, "min_instances": _NUMBER, "max_instances": _NUMBER}
                    ),
                }
            ),
        }
    ),
    "DeploymentCreation": thing({"name": _NAME, **_RELEASE}, open=False),
    "DeploymentUpdate": thing({}, _RELEASE, open=False),
    "VersionCreation": thing(
        {"source": said(_TEXT, "urls.get of an upload: a tar archive of the project, compressed or not")},
        {"memory": said({"anyOf": [_NUMBER, _TEXT]}, "Bytes to reserve for it, or text such as 4GiB")},
        open=False,
    ),
    "Build": thing(
        {
            "id": _TEXT,
            "model": said(_TEXT, "owner/name"),
            "version": said(nullable(_TEXT), "64 hex digits, once it has succeeded"),
            "status": one_of("starting", "processing", "succeeded", "failed", "canceled"),
            "step": said(nullable(_TEXT), "The current step of the build, or what the build waits for"),
            "logs": _TEXT,
            "error": nullable(_TEXT),
            "created_at": _TIME,
            "completed_at": nullable(_TIME),
            "urls": thing({"get": _ADDRESS, "cancel": _ADDRESS}),
        }
    ),
    "File": thing(
        {
            "id": _TEXT,
            "name": _TEXT,
            "content_type": _TEXT,
            "size": said(_NUMBER, "Bytes"),
            "etag": _TEXT,
            "checksums": thing({"sha256": _TEXT, "md5": _TEXT}),
            "metadata": _ANY_OBJECT,
            "created_at": _TIME,
            "expires_at": _TIME,
            "urls": thing({"get": said(_ADDRESS, "This description; as an input of a model, the file")}),
        }
    ),
    "FileCreation": thing(
        {"content": {"type": "string", "contentMediaType": "application/octet-stream"}},
        {
            "filename": {"type": "string", "maxLength": 255},
            "type": said(_TEXT, "Media type"),
            "metadata": said(_ANY_OBJECT, "Kept with the file"),
        },
    ),
    "SearchResults": thing(
        {
            "query": _TEXT,
            "models": several(
                thing(
                    {
                        "model": ref("Model"),
                        "metadata": thing(
                            {
                                "generated_description": _TEXT,
                                "tags": several(_TEXT),
                                "score": {"type": "number"},
                            }
                        ),
                    }
                )
            ),
            "collections": several(
                thing({"name": _TEXT, "slug": _TEXT, "description": _TEXT, "models": several(_TEXT)})
            ),
            "pages": several(thing({"name": _TEXT, "href": _TEXT})),
        }
    ),
    "WebhookSecret": thing({"key": {"type": "string", "pattern": "^whsec_[A-Za-z0-9+/=]+$"}}),
    **{
        f"{name}Page": page(name)
        for name in (
            *("Build", "Collection", "Model", "Prediction", "Version", "Training", "Deployment", "File"),
        )
    },
}
