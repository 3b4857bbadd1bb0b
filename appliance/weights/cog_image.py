"""Pulls Cog images with skopeo, and unpacks them with umoci, as a user without root.

    <home>/weights/image/<digest>-<name>/root         the files of the image
    <home>/weights/image/<digest>-<name>/image.json   its description, see ``runners.cog.image``
    <home>/weights/image/tag-<hash>-<name>            link to the image of a tag or archive when it was pulled

The folder of an image exists only when it is complete, and is named after the digest of the image's manifest.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec

from appliance.config import CogModel, ImageCogOptions, ImageSource
from appliance.domain.errors import WeightsError
from appliance.domain.interface import REF
from appliance.runners.child_environment import without_secrets
from appliance.runners.cog.image import DESCRIPTION, ROOT, ImageDescription, description
from appliance.runners.cog.sandbox import DRIVER_FOLDER, NVIDIA_SMI

_TIMEOUT: Final = 4 * 3600.0  # seconds for one command; images have many GiB
_TAIL: Final = 500  # characters of the output of a command in an error message
_TAG: Final = "image"  # tag of the only image in a layout
#: Prefixes of the labels of Cog, newest first, and the names of the label with the version.
_LABELS: Final = (("run.cog.", "version"), ("org.cogmodel.", "cog_version"))
_MACHINES: Final = {"x86_64": "amd64", "aarch64": "arm64"}
#: Programs that only reap processes, which bubblewrap does too. They move the command into a new process
#: group, where its memory would not be measured.
_REAPERS: Final = frozenset({"tini", "dumb-init", "tini-static"})
#: Folders of the image that the sandbox mounts on, or that contain such a place.
_MOUNT_POINTS: Final = ("proc", "dev", "etc", "run", "usr", "usr/bin")
_MESSAGE: Final = re.compile(r'level=fatal msg="((?:[^"\\]|\\.)*)"')


def root(home: Path) -> Path:
    return home / "weights" / "image"


def folder(home: Path, source: ImageSource) -> Path:
    """Return the folder of the image, or the link to it; it may not exist yet."""
    if source.digest is not None:
        return root(home) / _folder_name(source, source.digest)
    identity = source.image
    archive = source.local
    if archive is not None and archive.is_dir():
        archive = archive / "index.json"  # which changes with every image of a layout
    if archive is not None and archive.exists():
        status = archive.stat()  # a changed archive is another image
        identity += f"\0{status.st_size}\0{status.st_mtime_ns}"
    return root(home) / f"tag-{hashlib.sha256(identity.encode()).hexdigest()[:16]}-{_name(source)}"


def pull(home: Path, source: ImageSource, work: Path, say: Callable[[str], None]) -> Path:
    """Pull and unpack an image, unless it is present; return its folder, or the link to it.

    ``work`` is a folder for unfinished files, which no other process may use.

    Raises:
        WeightsError: a program is missing, the image cannot be pulled, or it is not a Cog image.
    """
    target = folder(home, source)
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove(work)
    work.mkdir()
    try:
        digest = _pull(source, work, say)
        complete = root(home) / _folder_name(source, digest)
        try:
            (work / "unpacked").rename(complete)
        except OSError:
            if not complete.exists():  # otherwise the same image was pulled with another name
                raise
        if complete != target:
            target.unlink(missing_ok=True)
            target.symlink_to(complete.name)
    finally:
        _remove(work)
    return target


def completed(model: CogModel, folder: Path) -> CogModel:
    """Return ``model`` with the options that its image, in ``folder``, determines.

    Raises:
        WeightsError: the image is not unpacked, or its description is damaged.
    """
    image = folder.resolve()
    options = model.options.model_dump() | {"image": str(image)}
    options["concurrency"] = model.options.concurrency or description(image).concurrency
    return model.model_copy(update={"options": ImageCogOptions.model_validate(options)})


def _pull(source: ImageSource, work: Path, say: Callable[[str], None]) -> str:
    """Pull an image, and unpack it to ``work/unpacked``; return its digest."""
    reference, digest, layout = source.transport_reference, source.digest, work / "layout"
    if source.local is None and digest is None:
        say("looking up the digest of the image")
        digest = _skopeo(source, "inspect", "--no-tags", "--format", "{{.Digest}}", reference).strip()
        reference = ImageSource(image=f"{source.repository}@{digest}").transport_reference
    say("pulling the image")
    _skopeo(source, "copy", "--quiet", reference, f"oci:{layout}:{_TAG}")
    index = json.loads((layout / "index.json").read_bytes())
    manifest = _blob(layout, _only(index))
    found = _describe(source, digest or _only(index), _blob(layout, manifest["config"]["digest"]))
    say("unpacking the image")
    unpacked = work / "unpacked"
    unpacked.mkdir()
    _run(source, "umoci", "raw", "unpack", "--rootless", "--image", f"{layout}:{_TAG}", str(unpacked / ROOT))
    _prepare(source, unpacked / ROOT)
    (unpacked / DESCRIPTION).write_bytes(msgspec.json.format(msgspec.json.encode(found)))
    return found.digest


def _prepare(source: ImageSource, folder: Path) -> None:
    """Make the folders that the sandbox mounts on, and that programs expect.

    bubblewrap would follow links at these places, and might create files outside of the image.

    Raises:
        WeightsError: the image has links at these places.
    """
    for name in _MOUNT_POINTS:
        if (folder / name).is_symlink():
            raise WeightsError(
                f"the image {source.image} has a link at /{name}, where the sandbox mounts a "
                "folder: build an image without this link"
            )
        (folder / name).mkdir(exist_ok=True)
    for name in ("tmp", "root"):
        if not os.path.lexists(folder / name):
            (folder / name).mkdir()
    for name in ("hosts", "resolv.conf"):  # the sandbox has its own
        (folder / "etc" / name).unlink(missing_ok=True)
    for name in (NVIDIA_SMI, DRIVER_FOLDER):  # with GPUs the sandbox has those of the machine
        if (place := folder / name.lstrip("/")).is_symlink():
            place.unlink()


def _describe(source: ImageSource, digest: str, document: dict[str, Any]) -> ImageDescription:
    """Return the description of an image from its configuration ``document``.

    Raises:
        WeightsError: the image is for other machines, or is not a Cog image.
    """
    machine = _MACHINES.get(platform.machine(), platform.machine())
    if document.get("architecture", machine) != machine:
        raise WeightsError(
            f"the image {source.image} is for {document['architecture']}, but this machine is {machine}: "
            "name an image for this machine"
        )
    config = document.get("config") or {}
    labels = config.get("Labels") or {}
    prefix, version = next(
        (each for each in _LABELS if f"{each[0]}openapi_schema" in labels), (_LABELS[0][0], "")
    )
    if not version:
        raise WeightsError(
            f"the image {source.image} has no label run.cog.openapi_schema: "
            "name an image that `cog build` made"
        )
    try:
        interface = _interface(json.loads(labels[f"{prefix}openapi_schema"]))
        settings = json.loads(labels.get(f"{prefix}config") or "{}")
        concurrency = int((settings.get("concurrency") or {}).get("max") or 1)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(
            f"the labels {prefix}openapi_schema and {prefix}config of the image {source.image} cannot be "
            f"read: {type(error).__name__}: {error}: build the image again with `cog build`"
        ) from error
    command = [*(config.get("Entrypoint") or ()), *(config.get("Cmd") or ())]
    if command and Path(command[0]).name in _REAPERS:
        command = command[command.index("--") + 1 :] if "--" in command else command[1:]
    if "cog.server.http" not in command:
        raise WeightsError(
            f"the command of the image {source.image} is {' '.join(command) or 'empty'}, which does not "
            "start Cog's server (python -m cog.server.http): name an image that `cog build` made"
        )
    variables = dict(each.partition("=")[::2] for each in config.get("Env") or ())
    return ImageDescription(
        digest=digest,
        reference=source.image,
        cog=labels.get(f"{prefix}{version}") or "",
        command=tuple(command),
        environment=variables,
        folder=config.get("WorkingDir") or "/",
        concurrency=concurrency,
        interface=interface,
    )


def _interface(document: dict[str, Any]) -> dict[str, Any]:
    """Return the schemas of inputs and output of an OpenAPI document, with those that they refer to."""
    schemas = document["components"]["schemas"]
    found: dict[str, Any] = {}
    pending: list[Any] = [schemas["Input"], schemas["Output"]]
    while pending:
        match pending.pop():
            case dict() as value:
                name = str(value.get("$ref", "")).removeprefix(REF)
                if name and name not in found:
                    found[name] = schemas[name]
                    pending.append(schemas[name])
                pending += value.values()
            case list() as values:
                pending += values
    return {
        "input": {"properties": {}, **schemas["Input"]},
        "output": schemas["Output"],
        "components": found,
    }


def _only(index: dict[str, Any]) -> str:
    """Return the digest of the only manifest in the index of a layout."""
    return str(index["manifests"][0]["digest"])


def _blob(layout: Path, digest: str) -> Any:
    algorithm, _, digits = digest.partition(":")
    return json.loads((layout / "blobs" / algorithm / digits).read_bytes())


def _skopeo(source: ImageSource, *arguments: str) -> str:
    return _run(source, "skopeo", *arguments)


def _run(source: ImageSource, program: str, *arguments: str) -> str:
    """Run a program, and return what it printed.

    Raises:
        WeightsError: the program is missing, takes too long or fails; the message has its reason.
    """
    try:
        result = subprocess.run(
            [program, *arguments],
            env=without_secrets(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT,
            check=False,
        )
    except FileNotFoundError as error:
        raise WeightsError(
            f"the image {source.image} cannot be pulled: {program} is not installed: "
            f"install the Debian package {program}"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise WeightsError(
            f"the image {source.image}: {program} did not end within {_TIMEOUT:g} s"
        ) from error
    if result.returncode != 0:
        fatal = _MESSAGE.findall(result.stderr)
        reason = fatal[-1].replace('\\"', '"') if fatal else (result.stderr or result.stdout).strip()[-_TAIL:]
        advice = "correct source.image"
        if source.local is None:
            advice += f", or log in with: skopeo login {source.repository.partition('/')[0]}"
        raise WeightsError(
            f"the image {source.image} cannot be {'unpacked' if program == 'umoci' else 'pulled'}: "
            f"{reason or f'{program} ended with code {result.returncode}'}: {advice}"
        )
    return result.stdout


def _folder_name(source: ImageSource, digest: str) -> str:
    return f"{digest.partition(':')[2][:16]}-{_name(source)}"


def _name(source: ImageSource) -> str:
    """Return the last part of the name of the image or the archive, for names of folders."""
    last = (source.local.name if source.local is not None else source.repository).rpartition("/")[2]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", last).removesuffix(".tar") or "image"


def _remove(path: Path) -> None:
    """Remove a folder, with inner folders that their owner may not change."""
    for here, folders, _ in os.walk(path):
        for name in folders:
            inner = Path(here, name)
            if not inner.is_symlink():
                inner.chmod(0o700)
    shutil.rmtree(path, ignore_errors=True)
