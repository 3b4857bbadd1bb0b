"""Sources that name images, and what is read from the configuration of an image."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from appliance import weights
from appliance.config import CogModel, ImageSource
from appliance.domain.errors import WeightsError
from appliance.weights import cog_image

DIGEST = "sha256:" + "0123456789abcdef" * 4
SCHEMAS = {
    "Input": {
        "type": "object",
        "properties": {"mode": {"allOf": [{"$ref": "#/components/schemas/mode"}], "x-order": 0}},
    },
    "Output": {"$ref": "#/components/schemas/Answer", "title": "Output"},
    "Answer": {"type": "object", "properties": {"kind": {"$ref": "#/components/schemas/Kind"}}},
    "Kind": {"type": "string", "enum": ["a"]},
    "mode": {"type": "string", "enum": ["x", "y"]},
    "PredictionRequest": {"type": "object"},
}


def configuration(**changes: Any) -> dict[str, Any]:
    config = {
        "Env": ["A=1", "B=x=y"],
        "WorkingDir": "/src",
        "Entrypoint": ["/sbin/tini", "--"],
        "Cmd": ["python", "-m", "cog.server.http"],
        "Labels": {
            "run.cog.version": "0.8.6",
            "run.cog.config": json.dumps({"concurrency": {"max": 3}}),
            "run.cog.openapi_schema": json.dumps({"components": {"schemas": SCHEMAS}}),
        },
    }
    return {"config": {**config, **changes}}


def describe(document: dict[str, Any]) -> Any:
    return cog_image._describe(ImageSource(image="r8.im/a/b:v1"), DIGEST, document)


@pytest.mark.parametrize(
    ("image", "transport", "repository", "digest"),
    [
        ("r8.im/a/b", "docker://r8.im/a/b", "r8.im/a/b", None),
        ("localhost:5000/b:v1", "docker://localhost:5000/b:v1", "localhost:5000/b", None),
        (f"r8.im/a/b@{DIGEST}", f"docker://r8.im/a/b@{DIGEST}", "r8.im/a/b", DIGEST),
        (f"h:5000/a/b:v1@{DIGEST}", f"docker://h:5000/a/b@{DIGEST}", "h:5000/a/b", DIGEST),
    ],
)
def test_images_of_registries_are_named_with_tag_or_digest(
    image: str, transport: str, repository: str, digest: str | None
) -> None:
    source = ImageSource(image=image)
    assert (source.transport_reference, source.repository) == (transport, repository)
    assert (source.digest, source.local) == (digest, None)


@pytest.mark.parametrize("image", ["oci-archive:/a/b.tar", "docker-archive:/a/b.tar", "oci:/a/b:tag"])
def test_images_on_this_machine_are_named_by_their_path(image: str) -> None:
    source = ImageSource(image=image)
    assert source.transport_reference == image
    assert source.local == Path("/a/b" + (".tar" if "archive" in image else ""))


@pytest.mark.parametrize(
    "image", ["", "a b", "containers-storage:/x", "oci:relative", "-x/y", "r8.im/a@sha256:12", "dir:/x"]
)
def test_other_sources_are_refused(image: str) -> None:
    with pytest.raises(ValidationError):
        ImageSource(image=image)


def test_only_an_image_has_the_option_network() -> None:
    shared = {"name": "a/b", "kind": "cog", "options": {"network": True}}
    image = CogModel.model_validate({**shared, "source": {"image": "r8.im/a/b"}})
    folder = CogModel.model_validate({**shared, "source": {"path": "/x"}})
    assert list(image.conflicts()) == []
    assert [key for key, _ in folder.conflicts()] == ["options.network"]


def test_the_configuration_of_an_image_describes_the_model() -> None:
    found = describe(configuration())
    assert found.command == ("python", "-m", "cog.server.http")
    assert found.environment == {"A": "1", "B": "x=y"}
    assert (found.folder, found.concurrency, found.cog) == ("/src", 3, "0.8.6")
    assert found.interface["input"] == SCHEMAS["Input"]
    assert found.interface["output"] == SCHEMAS["Output"]
    assert set(found.interface["components"]) == {"mode", "Answer", "Kind"}


def test_the_labels_of_older_versions_are_read() -> None:
    labels = configuration()["config"]["Labels"]
    old = {
        "org.cogmodel.cog_version": "0.4.4",
        "org.cogmodel.openapi_schema": labels["run.cog.openapi_schema"],
    }
    assert (describe(configuration(Labels=old)).cog, describe(configuration(Labels=old)).concurrency) == (
        "0.4.4",
        1,
    )


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (configuration(Labels=None), "no label run.cog.openapi_schema"),
        (configuration(Labels={"run.cog.openapi_schema": "{}"}), "cannot be read: KeyError"),
        (configuration(Labels={"run.cog.openapi_schema": "["}), "cannot be read: JSONDecodeError"),
        (configuration(Cmd=["bash"]), "is bash, which does not start Cog's server"),
        ({**configuration(), "architecture": "s390x"}, "is for s390x, but this machine is"),
    ],
)
def test_an_image_that_cog_has_not_built_is_refused(document: dict[str, Any], message: str) -> None:
    assert platform.machine() != "s390x"
    with pytest.raises(WeightsError, match=message):
        describe(document)


def test_links_at_places_where_the_sandbox_mounts_are_refused_or_removed(tmp_path: Path) -> None:
    source, image, outside = ImageSource(image="r8.im/a/b"), tmp_path / "image", tmp_path / "outside"
    (image / "etc").mkdir(parents=True)
    outside.mkdir()
    (image / "etc" / "resolv.conf").symlink_to(outside / "file")
    cog_image._prepare(source, image)
    assert sorted(path.name for path in image.iterdir()) == [
        "dev",
        "etc",
        "proc",
        "root",
        "run",
        "tmp",
        "usr",
    ]
    assert list((image / "etc").iterdir()) == []
    for place in ("usr/bin/nvidia-smi", "run/nvidia-driver"):
        (image / place).symlink_to(outside)
    cog_image._prepare(source, image)
    assert not any(path.is_symlink() for path in image.rglob("*")), (
        "the driver of the machine is mounted there"
    )
    (image / "usr" / "bin").rmdir()
    (image / "usr" / "bin").symlink_to(outside)
    with pytest.raises(WeightsError, match="has a link at /usr/bin, where the sandbox mounts a folder"):
        cog_image._prepare(source, image)
    assert list(outside.iterdir()) == []


@pytest.mark.parametrize(("missing", "present"), [("skopeo", ()), ("umoci", ("skopeo",))])
def test_a_missing_program_is_named_with_its_package(
    missing: str, present: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in present:
        (programs / name).write_text(SKOPEO)
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(programs))
    if present:
        document = configuration()
        blob = {**document, "config": {**document["config"], "digest": "x"}}
        monkeypatch.setattr(cog_image, "_blob", lambda *_: blob)
    model = CogModel.model_validate(
        {"name": "a/b", "kind": "cog", "source": {"image": f"r8.im/a/b@{DIGEST}"}}
    )
    with pytest.raises(WeightsError, match=f"install the Debian package {missing}"):
        weights.pull(tmp_path / "home", model)
    assert not weights.present(tmp_path / "home", model)


SKOPEO = """#!/bin/sh
layout=${4#oci:}
layout=${layout%:image}
/bin/mkdir -p "$layout"
echo '{"manifests": [{"digest": "sha256:x"}]}' > "$layout/index.json"
"""


def test_an_image_in_a_layout_that_changed_is_another_image(tmp_path: Path) -> None:
    layout = tmp_path / "layout"
    layout.mkdir()
    (layout / "index.json").write_text("{}")
    source = ImageSource(image=f"oci:{layout}:latest")
    before = cog_image.folder(tmp_path, source)
    assert cog_image.folder(tmp_path, source) == before
    (layout / "index.json").write_text('{"manifests": []}')
    assert cog_image.folder(tmp_path, source) != before
