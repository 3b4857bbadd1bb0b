"""`appliance push`."""

from __future__ import annotations

import json
import os
import signal
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any, BinaryIO, Final, Literal

import msgspec
import typer

from appliance.cli.options import JsonOption
from appliance.cli.remote import UrlOption, connected
from appliance.domain.errors import ApplianceError, NotFound
from appliance.domain.ignore_rules import IgnoreRules
from appliance.domain.units import readable_bytes

if TYPE_CHECKING:
    from appliance.cli.client import Client
    from appliance.protocols.response_types import BuildResponse, FileResponse

#: Names that are not uploaded, in addition to those in .dockerignore.
_NOT_UPLOADED: Final = frozenset(
    {
        ".git", ".hg", ".cog", ".venv", "venv", "__pycache__", "node_modules", ".DS_Store",
        ".mypy_cache", ".pytest_cache", ".ruff_cache", ".ipynb_checkpoints",
    }
)  # fmt: skip
_POLL_INTERVAL: Final = 0.5  # seconds between requests for the state of a build


def push(
    folder: Annotated[Path, typer.Argument(help="Folder of the Cog project, which contains cog.yaml.")],
    model: Annotated[
        str, typer.Argument(help="owner/name of the model. It is created if it does not exist.")
    ],
    memory: Annotated[str | None, typer.Option(help="Memory to reserve, such as 4GiB.")] = None,
    public: Annotated[bool, typer.Option("--public", help="Make a newly created model public.")] = False,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Upload a Cog project to a running appliance, which builds it as a new version of a model.

    The token needs the scope admin, and models.yaml must have code.cog: true. .git, environments, caches and
    files in .dockerignore (or else in .gitignore) are not uploaded. The default of --memory is 1 GiB plus the
    size of the project's weights. Ctrl-C cancels the build.

    Example: appliance push ./my-model me/my-model --memory 4GiB
    """
    if not (folder / "cog.yaml").is_file():
        raise ApplianceError(f"{folder} is not a Cog project: the file cog.yaml is missing in it")
    owner, slash, name = model.partition("/")
    if not (owner and slash and name):
        raise ApplianceError(f"{model} is not the name of a model: write owner/name")
    client = connected(url)
    _ensure_model(client, owner, name, public=public)
    with tempfile.TemporaryFile() as archive:
        _pack(folder, archive)
        upload = _upload(client, archive, f"{name}.tar.gz")
    body = {"source": upload.urls.get, **({} if memory is None else {"memory": memory})}
    build = _build(client.post(f"/v1/models/{model}/versions", body))
    try:
        build = _wait(client, build)
    except KeyboardInterrupt:
        build = _build(client.post(f"/v1/builds/{build.id}/cancel"))
    client.send("DELETE", f"/v1/files/{upload.id}")
    if build.status == "canceled":
        typer.echo(f"\nbuild {build.id} is canceled", err=True)
        raise typer.Exit(128 + signal.SIGINT)
    if build.status != "succeeded":
        raise ApplianceError(f"the build failed: {build.error}")
    typer.echo(json.dumps(msgspec.to_builtins(build), indent=2) if as_json else f"{model}:{build.version}")


def _ensure_model(client: Client, owner: str, name: str, *, public: bool) -> None:
    from appliance.protocols.response_types import HardwareResponse

    try:
        client.get(f"/v1/models/{owner}/{name}")
    except NotFound:
        visibility = "public" if public else "private"
        hardware = client.get_as(list[HardwareResponse], "/v1/hardware")[0].sku
        client.post(
            "/v1/models",
            {"owner": owner, "name": name, "visibility": visibility, "hardware": hardware},
        )
        typer.echo(f"created the {visibility} model {owner}/{name}", err=True)


def _pack(folder: Path, archive: IO[bytes]) -> None:
    left_out = _ignore_rules(folder)
    try:
        with tarfile.open(fileobj=archive, mode="w:gz", compresslevel=6) as packed:
            for file, inside in sorted(_files(folder, Path(), left_out)):
                packed.add(file, inside.as_posix(), recursive=False)
    except OSError as error:
        raise ApplianceError(f"{error.filename or folder} cannot be read: {error.strerror}") from error


def _files(folder: Path, inside: Path, left_out: IgnoreRules) -> Iterator[tuple[Path, Path]]:
    for file in folder.iterdir():
        path = inside / file.name
        if file.name in _NOT_UPLOADED or file.suffix == ".pyc":
            continue
        if file.is_dir() and not file.is_symlink():
            yield from _files(file, path, left_out)
        elif not left_out.ignored(path.as_posix()):
            yield file, path


def _ignore_rules(folder: Path) -> IgnoreRules:
    """Return the rules of .dockerignore, or those of .gitignore if there is no .dockerignore."""
    names: tuple[tuple[str, Literal["docker", "git"]], ...] = (
        (".dockerignore", "docker"),
        (".gitignore", "git"),
    )
    for name, syntax in names:
        file = folder / name
        if file.is_file():
            if syntax == "git":
                typer.echo(
                    "files in .gitignore are not uploaded: .dockerignore replaces .gitignore", err=True
                )
            return IgnoreRules(file.read_text(encoding="utf-8", errors="replace"), syntax)
    return IgnoreRules("")


def _upload(client: Client, archive: BinaryIO, name: str) -> FileResponse:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

    from appliance.protocols import api_client
    from appliance.protocols.response_types import FileResponse

    total = archive.seek(0, os.SEEK_END)
    archive.seek(0)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    progress = Progress(*columns, console=Console(stderr=True), transient=True)
    with progress, progress.wrap_file(archive, total, description="uploading") as watched:
        uploaded = api_client.convert(client.upload(name, watched, "application/gzip"), FileResponse)
    typer.echo(f"uploaded {readable_bytes(total)}", err=True)
    return uploaded


def _build(response: Any) -> BuildResponse:
    from appliance.protocols import api_client
    from appliance.protocols.response_types import BuildResponse

    return api_client.convert(response, BuildResponse)


def _wait(client: Client, build: BuildResponse) -> BuildResponse:
    shown = 0
    while True:
        sys.stderr.write(build.logs[shown:])
        sys.stderr.flush()
        shown = len(build.logs)
        if build.completed_at is not None:
            return build
        time.sleep(_POLL_INTERVAL)
        build = _build(client.get(f"/v1/builds/{build.id}"))
