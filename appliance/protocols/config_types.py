"""Bodies of the ``/admin/config`` routes that read, check and write models.yaml, as structs."""

from __future__ import annotations

from typing import Annotated, Final

from msgspec import Meta, Struct

from appliance.protocols.admin_types import ReloadResponse
from appliance.protocols.request_types import Request

_FILE: Final = "models.yaml, or a file models.d/*.yaml in the same folder; by default models.yaml"
#: Characters of a text; the appliance reads no config file of more bytes.
_LONGEST: Final = 1024 * 1024


class ConfigCheckRequest(Request, kw_only=True):
    """A new text of a config file, to be checked."""

    text: Annotated[str, Meta(max_length=_LONGEST)]
    file: Annotated[str | None, Meta(description=_FILE)] = None


class ConfigWriteRequest(ConfigCheckRequest, kw_only=True):
    """A new text of a config file, to be applied."""

    checksum: Annotated[str, Meta(description="That of the text that was edited; else the status is 409")]


class ConfigFileResponse(Struct, kw_only=True):
    """A config file."""

    file: Annotated[str, Meta(description="Name of the file")]
    files: Annotated[tuple[str, ...], Meta(description="Names of all config files")]
    path: Annotated[str, Meta(description="Absolute path on the machine of the appliance")]
    text: Annotated[str, Meta(description="The text as it is in the file, with references to variables")]
    checksum: Annotated[str, Meta(description="SHA-256 of the text")]
    not_writable: Annotated[str | None, Meta(description="Why the appliance cannot write the file")]
    secrets: Annotated[tuple[str, ...], Meta(description="Keys whose secret values are in the text")]


class ConfigProblem(Struct, kw_only=True):
    """A mistake in a config file."""

    file: Annotated[str | None, Meta(description="Name of the file")]
    line: Annotated[int | None, Meta(description="Line, counted from 1")]
    model: str | None
    key: str | None
    message: str


class ConfigCheckResponse(Struct, kw_only=True):
    """What a new text of a config file would change."""

    problems: Annotated[tuple[ConfigProblem, ...], Meta(description="If any, the text cannot be applied")]
    diff: Annotated[str, Meta(description="Unified diff of the file")]
    changes: Annotated[ReloadResponse | None, Meta(description="Null if there are problems")]


class ConfigWriteResponse(Struct, kw_only=True):
    """A config file that was written and applied."""

    checksum: str
    reload: ReloadResponse


class ConfigEntryResponse(Struct, kw_only=True):
    """The entry of a model in its config file."""

    model: str
    file: Annotated[str, Meta(description="Name of the file")]
    first_line: Annotated[int, Meta(description="First line of the entry, counted from 1")]
    last_line: int
    text: Annotated[str, Meta(description="Lines of the entry")]
    collections: Annotated[tuple[str, ...], Meta(description="Slugs of the collections that list the model")]


REQUESTS: Final = (ConfigCheckRequest, ConfigWriteRequest)
RESPONSES: Final = (ConfigFileResponse, ConfigCheckResponse, ConfigWriteResponse, ConfigEntryResponse)
