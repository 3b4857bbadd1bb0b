"""Makes Cog images without a container engine, from the Python of this machine and an old version of Cog."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any, Final

_PYTHON: Final = f"python{sys.version_info.major}.{sys.version_info.minor}"
_UNUSED: Final = (
    "test",
    "idlelib",
    "ensurepip",
    "tkinter",
    "site-packages",
    "__pycache__",
    "config-*",
    "lib2to3",
)
_LAYER: Final = "application/vnd.oci.image.layer.v1.tar+gzip"
_MACHINES: Final = {"x86_64": "amd64", "aarch64": "arm64"}


class CogImages:
    """Makes images in OCI layouts in ``folder``; each has Python and the same version of Cog."""

    def __init__(self, folder: Path, cog: str, more: tuple[str, ...] = ()) -> None:
        self.folder = folder
        self._cog = cog
        self.packages = folder / "packages"
        """Folder with Cog and its dependencies, for Python on this machine."""
        uv = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--python", sys.executable]
        subprocess.run(
            [*uv, "--target", str(self.packages), f"cog=={cog}", "setuptools<80", *more], check=True
        )
        self._base = self._add_blob(folder, _tar(self._base_files()))

    def make(
        self,
        name: str,
        project: Path,
        *,
        labels: dict[str, str] | None = None,
        config: dict[str, Any] | None = None,
        removed: tuple[str, ...] = (),
    ) -> Path:
        """Make an image of a project, and return its layout, with the tag ``latest``.

        ``labels`` replace those of Cog; ``config`` has further settings. ``removed`` are paths that the last
        layer deletes.
        """
        layout = self.folder / name
        layout.mkdir()
        (layout / "blobs").mkdir()
        shutil.copytree(self.folder / "blobs", layout / "blobs", dirs_exist_ok=True, copy_function=os.link)
        files = [
            (f"src/{file.relative_to(project)}", file)
            for file in sorted(project.rglob("*"))
            if file.is_file()
        ]
        layers = [self._base, self._add_blob(layout, _tar(files))]
        if removed:
            whiteouts = [(str(Path(path).with_name(f".wh.{Path(path).name}")), b"") for path in removed]
            layers.append(self._add_blob(layout, _tar(whiteouts)))
        document = {
            "architecture": _MACHINES.get(platform.machine(), platform.machine()),
            "os": "linux",
            "config": {
                "Env": ["PATH=/usr/local/bin:/usr/bin:/bin", "GREETING=hello"],
                "WorkingDir": "/src",
                "Entrypoint": ["/sbin/tini", "--"],
                "Cmd": ["python", "-m", "cog.server.http"],
                "Labels": self.labels(project) if labels is None else labels,
                **(config or {}),
            },
            "rootfs": {"type": "layers", "diff_ids": [layer["diff"] for layer in layers]},
        }
        config_blob = self._add_json(layout, document)
        manifest = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", **config_blob},
            "layers": [
                {"mediaType": _LAYER, "digest": each["digest"], "size": each["size"]} for each in layers
            ],
        }
        described = {
            "mediaType": manifest["mediaType"],
            **self._add_json(layout, manifest),
            "annotations": {"org.opencontainers.image.ref.name": "latest"},
        }
        (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [described]}))
        (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
        return layout

    def labels(self, project: Path) -> dict[str, str]:
        """Return the labels that ``cog build`` gives an image of the project."""
        schema = subprocess.run(
            [sys.executable, "-m", "cog.command.openapi_schema"],
            cwd=project,
            env=self.environment(),
            capture_output=True,
            text=True,
            check=True,
        )
        return {
            "run.cog.version": self._cog,
            "run.cog.config": json.dumps({"predict": "predict.py:Predictor"}),
            "run.cog.openapi_schema": json.dumps(json.loads(schema.stdout[schema.stdout.index("{") :])),
        }

    def environment(self) -> dict[str, str]:
        """Return variables with which the Python of this machine finds this version of Cog."""
        return {**os.environ, "PYTHONPATH": str(self.packages), "GREETING": "hello"}

    def _base_files(self) -> list[tuple[str, Path | bytes | str]]:
        """Return the files of the base: Python, a shell, the libraries that both need, and Cog."""
        base = Path(sys.base_prefix)
        ignored = shutil.ignore_patterns(*_UNUSED)
        interpreter = Path(os.path.realpath(sys.executable))
        files: list[tuple[str, Path | bytes | str]] = [
            ("usr/local/bin/python", interpreter),
            ("bin/sh", Path("/bin/sh").resolve()),
            ("etc/ssl/certs/ca-certificates.crt", Path("/etc/ssl/certs/ca-certificates.crt")),
            ("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n"),
        ]
        library = base / "lib" / _PYTHON
        binaries = [interpreter, Path("/bin/sh").resolve()]
        for here, folders, names in os.walk(library):
            skipped = ignored(here, [*folders, *names])
            folders[:] = [each for each in folders if each not in skipped]
            for each in names:
                file = Path(here, each)
                files.append((f"usr/local/lib/{_PYTHON}/{file.relative_to(library)}", file))
                binaries += [file] if file.suffix == ".so" else []
        for file in self.packages.rglob("*"):
            if file.is_file() and "__pycache__" not in file.parts:
                inside = f"usr/local/lib/{_PYTHON}/site-packages/{file.relative_to(self.packages)}"
                files.append((inside, file))
                binaries += [file] if file.suffix == ".so" else []
        found = subprocess.run(
            ["ldd", *map(str, binaries)], capture_output=True, text=True, check=False
        ).stdout
        paths = set(re.findall(r"(?:=> |\t)(/\S+) \(", found))
        files += [(path.lstrip("/"), Path(os.path.realpath(path))) for path in sorted(paths)]
        return files

    def _add_blob(self, layout: Path, data: bytes) -> dict[str, Any]:
        """Store a layer; return its digest and size, and the digest of its uncompressed data."""
        stored = self._add(layout, gzip.compress(data, 1, mtime=0))
        return {**stored, "diff": f"sha256:{hashlib.sha256(data).hexdigest()}"}

    def _add_json(self, layout: Path, document: Any) -> dict[str, Any]:
        return self._add(layout, json.dumps(document).encode())

    def _add(self, layout: Path, data: bytes) -> dict[str, Any]:
        digest = hashlib.sha256(data).hexdigest()
        folder = layout / "blobs" / "sha256"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / digest).write_bytes(data)
        return {"digest": f"sha256:{digest}", "size": len(data)}


def _tar(files: list[Any]) -> bytes:
    """Return a tar archive of pairs of a path and its content: a file or bytes."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        for name, content in files:
            member = tarfile.TarInfo(name)
            bytes_ = content if isinstance(content, bytes) else content.read_bytes()
            member.size = len(bytes_)
            member.mode = 0o644 if isinstance(content, bytes) else content.stat().st_mode & 0o777
            archive.addfile(member, io.BytesIO(bytes_))
    return data.getvalue()
