"""scripts/bundle/install, with a uv and a Python that only record how they are called."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
#: Records the cache that it is told to use, and writes to it as uv does.
RECORD = """
echo "${0##*/} cache=$UV_CACHE_DIR offline=$UV_OFFLINE index=${UV_DEFAULT_INDEX:-none} $*" >> "$LOG"
mkdir -p "$UV_CACHE_DIR/archive"
"""
PYTHON = f"#!/bin/bash\n{RECORD}\nexit ${{PLACE:-0}}\n"
UV = f"""#!/bin/bash
{RECORD}
[[ $1 != venv ]] || {{ mkdir -p .venv/bin && cp "$FAKE_PYTHON" .venv/bin/python; }}
"""


class Bundle:
    """An unpacked bundle without packages and weights."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "a bundle"
        self.log = folder / "log"
        self.python = folder / "fake-python"
        (self.root / "scripts").mkdir(parents=True)
        (self.root / "config").mkdir()
        (self.root / "config" / "models.yaml").write_text("models: []\n")
        shutil.copy(ROOT / "scripts" / "bundle" / "install", self.root / "install")
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        (self.root / "bundle.conf").write_text(
            f"variant=cpu\nmachine={platform.machine()}\npython={version}\nglibc=2.17\npackages_gib=0\n"
        )
        self.program(self.root / "scripts" / "preflight", "#!/bin/bash\n")
        self.program(self.root / "uv", UV)
        self.program(self.python, PYTHON)
        files = ["bundle.conf", "scripts/preflight", "uv", "config/models.yaml"]
        sums = subprocess.run(["sha256sum", *files], cwd=self.root, capture_output=True, check=True)
        (self.root / "SHA256SUMS").write_bytes(sums.stdout)

    def program(self, path: Path, text: str) -> None:
        path.write_text(text)
        path.chmod(0o755)

    def install(
        self, *arguments: str, **variables: str
    ) -> tuple[subprocess.CompletedProcess[str], list[str]]:
        """Run ./install. Return the result, and the calls of uv and Python."""
        self.log.write_text("")
        environment = {"PATH": os.environ["PATH"], "LOG": str(self.log), "FAKE_PYTHON": str(self.python)}
        environment |= {"UV_DEFAULT_INDEX": "https://a.example/simple", **variables}
        command = [str(self.root / "install"), *arguments]
        ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        return ran, self.log.read_text().splitlines()


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return Bundle(tmp_path)


def test_no_cache_stays_and_none_is_used_elsewhere(bundle: Bundle) -> None:
    ran, first = bundle.install("--python", sys.executable, "--home", "/a home")
    assert ran.returncode == 0, ran.stderr
    assert not (bundle.root / ".cache").exists()
    ran, second = bundle.install("--home", "/another home")
    assert ran.returncode == 0, ran.stderr
    assert not (bundle.root / ".cache").exists()
    used = f"cache={bundle.root}/.cache offline=1 index=none "
    assert [call.partition(" ")[0] for call in first] == ["uv", "uv", "uv", "python"]
    assert all(used in call for call in first)
    place = f"python {used}-m appliance.bundle.place {bundle.root}"
    assert second == [f"{place} /another home"]


def test_no_cache_stays_after_an_error(bundle: Bundle) -> None:
    ran, calls = bundle.install("--python", sys.executable, PLACE="1")
    assert (ran.returncode, len(calls)) == (1, 4)
    assert not (bundle.root / ".cache").exists()
    assert not (bundle.root / ".venv" / ".installed").exists()


def test_a_second_run_only_builds_environments_that_wait(bundle: Bundle) -> None:
    bundle.install("--python", sys.executable, "--home", "/a home")
    assert bundle.install()[1] == []
    (bundle.root / ".environments-pending").touch()
    ran, (call,) = bundle.install()
    assert ran.returncode == 0, ran.stderr
    assert call.endswith(f" -m appliance.bundle.place {bundle.root} /a home")
