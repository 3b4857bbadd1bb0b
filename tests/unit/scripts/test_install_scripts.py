"""scripts/install, scripts/preflight and scripts/serve, with a uv that only records how it is called."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
#: Programs that the scripts may use, besides uv and Python.
PROGRAMS = [
    "awk",
    "bash",
    "cat",
    "cut",
    "df",
    "dirname",
    "find",
    "flock",
    "getconf",
    "grep",
    "head",
    "ln",
    "mkdir",
    "rm",
    "sed",
    "sh",
    "sha256sum",
    "sort",
    "tail",
    "touch",
    "uname",
    "xargs",
]
UV = f"""#!/bin/bash
[[ $1 != --version ]] || {{ echo "uv 0.14.0" && exit; }}
echo "index=$UV_DEFAULT_INDEX $*" >> "$LOG"
folder=${{!#}}
case "$1 $2" in
    venv*) mkdir -p "$folder/bin" && ln -sf {sys.executable} "$folder/bin/python" ;;
    "pip install")
        ln -sf "$APPLIANCE" .venv/bin/appliance
        ;;
esac
"""


class Checkout:
    """A copy of the scripts, with lock files of one line."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "a checkout"
        self.bin = folder / "bin"
        self.log = folder / "log"
        for part in ("scripts", "requirements", "docs", "docker", "appliance", "scripts/manual"):
            (self.root / part).mkdir(parents=True)
        for name in ("install", "preflight", "serve"):
            shutil.copy(ROOT / "scripts" / name, self.root / "scripts" / name)
        for name in ("cpu", "gpu", "dev", "docs", "quantization"):
            (self.root / "requirements" / f"{name}.lock").write_text(f"{name}==1\n")
        for name in ("pyproject.toml", "mkdocs.yml", "models.yaml"):
            (self.root / name).touch()
        self.bin.mkdir()
        for name in PROGRAMS:
            path = shutil.which(name)
            assert path is not None, name
            (self.bin / name).symlink_to(path)
        self.program("uv", UV)
        self.program("appliance", '#!/bin/bash\necho "appliance $*"\n')
        self.program("python3", f'#!/bin/bash\nexec {sys.executable} "$@"\n')

    def program(self, name: str, text: str) -> None:
        (self.bin / name).unlink(missing_ok=True)
        (self.bin / name).write_text(text)
        (self.bin / name).chmod(0o755)

    def run(
        self, script: str, *arguments: str, **variables: str
    ) -> tuple[subprocess.CompletedProcess[str], list[str]]:
        """Run a script. Return the result, and the calls of uv."""
        self.log.write_text("")
        environment = {"PATH": str(self.bin), "LOG": str(self.log), "APPLIANCE": str(self.bin / "appliance")}
        command = [str(self.root / "scripts" / script), *arguments]
        ran = subprocess.run(
            command,
            cwd=self.root,
            env={**environment, **variables},
            capture_output=True,
            text=True,
            check=False,
        )
        return ran, self.log.read_text().splitlines()


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def synced(calls: list[str]) -> list[str]:
    """The calls that install the packages of the appliance."""
    return [call for call in calls if " pip sync --python .venv/" in call]


def of_sync(calls: list[str]) -> str:
    (call,) = synced(calls)
    return call


def test_users_get_no_development_tools(checkout: Checkout) -> None:
    ran, calls = checkout.run("install", "--cpu")
    assert ran.returncode == 0, ran.stderr
    assert of_sync(calls).endswith(" requirements/cpu.lock")
    assert "--require-hashes" in of_sync(calls)
    assert not synced(checkout.run("install", "--cpu")[1])


def test_packages_for_quantization_stay(checkout: Checkout) -> None:
    def installed(calls: list[str]) -> bool:
        return any(call.endswith("--requirements requirements/quantization.lock") for call in calls)

    assert installed(checkout.run("install", "--cpu", "--quantization")[1])
    assert not synced(checkout.run("install", "--cpu")[1])
    (checkout.root / "requirements" / "quantization.lock").write_text("quantization==2\n")
    assert installed(checkout.run("install", "--cpu")[1])


def test_development_tools_stay(checkout: Checkout) -> None:
    checkout.run("install", "--cpu")
    assert of_sync(checkout.run("install", "--cpu", "--dev")[1]).endswith(
        " requirements/cpu.lock requirements/dev.lock"
    )
    assert not synced(checkout.run("install", "--cpu")[1])


def test_the_index_of_pip_is_used_unless_uv_has_its_own(checkout: Checkout) -> None:
    _, calls = checkout.run("install", "--cpu", PIP_INDEX_URL="https://a.example/simple")
    assert of_sync(calls).startswith("index=https://a.example/simple ")
    index = {"PIP_INDEX_URL": "https://a.example/simple", "UV_DEFAULT_INDEX": "https://b.example/simple"}
    _, calls = checkout.run("install", "--gpu", **index)
    assert of_sync(calls).startswith("index=https://b.example/simple ")


def test_torch_comes_from_a_folder_or_from_an_index(checkout: Checkout, tmp_path: Path) -> None:
    _, calls = checkout.run("install", "--cpu")
    assert "--extra-index-url https://download.pytorch.org/whl/cpu " in of_sync(calls)
    checkout.run("install", "--gpu")
    _, calls = checkout.run("install", "--cpu", APPLIANCE_TORCH_INDEX="https://a.example/torch")
    assert "--extra-index-url https://a.example/torch " in of_sync(calls)
    checkout.run("install", "--gpu")
    (tmp_path / "torch-1+cpu-any.whl").touch()
    _, calls = checkout.run("install", "--cpu", PIP_FIND_LINKS=str(tmp_path))
    assert "--extra-index-url" not in of_sync(calls)


def test_uv_downloads_python_where_none_fits(checkout: Checkout) -> None:
    checkout.program("python3", "#!/bin/bash\nexit 1\n")
    ran, calls = checkout.run("install", "--cpu")
    assert ran.returncode == 0, ran.stderr
    assert calls[0].endswith(" venv --quiet --python 3.12 .venv")
    assert checkout.run("install", "--python", "3.10")[0].returncode == 2


def test_gpus_need_an_older_python(checkout: Checkout) -> None:
    ran, calls = checkout.run("install", "--gpu", "--python", "3.13")
    assert (ran.returncode, calls) == (1, [])
    assert "use --python 3.12" in ran.stderr


def test_a_python_that_fits_is_used(checkout: Checkout) -> None:
    _, calls = checkout.run("install", "--cpu")
    assert calls[0].endswith(f" venv --quiet --python {checkout.bin / 'python3'} .venv")


@pytest.mark.parametrize("there", ["none", "too old"])
def test_without_uv_and_python_the_installer_of_uv_is_run(checkout: Checkout, there: str) -> None:
    checkout.program("new-uv", UV)
    if there == "none":
        (checkout.bin / "uv").unlink()
    else:
        checkout.program("uv", "#!/bin/bash\necho uv 0.1.0\n")
    checkout.program("python3", "#!/bin/bash\nexit 1\n")
    place = checkout.bin / "new-uv"
    checkout.program(
        "curl", f'#!/bin/bash\necho "curl $*" >> "$LOG"\necho \'ln -s {place} "$UV_UNMANAGED_INSTALL/uv"\'\n'
    )
    ran, calls = checkout.run("install", "--cpu")
    assert ran.returncode == 0, ran.stderr
    assert calls[0].startswith("curl ")
    assert "https://astral.sh/uv/" in calls[0]
    of_sync(calls)


def test_serve_divides_its_arguments(checkout: Checkout) -> None:
    ran, calls = checkout.run("serve", "--cpu", "--no-ui", "--port", "9", "--home", "a folder")
    assert ran.stdout.splitlines()[-1] == "appliance serve --no-ui --port 9 --home a folder"
    assert "requirements/cpu.lock" in of_sync(calls)
    assert "usage: scripts/serve" in checkout.run("serve", "--help")[0].stdout


def test_a_taken_port_is_named_before_the_installation(checkout: Checkout) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        (checkout.root / "models.yaml").write_text(f"server:\n  port: {port}\n")
        for arguments in (("--port", str(port)), ()):
            ran, calls = checkout.run("serve", "--cpu", *arguments)
            assert (ran.returncode, calls) == (1, [])
            assert f"missing: port {port}: another program listens there" in ran.stderr
        assert checkout.run("serve", "--cpu", APPLIANCE_PORT="9")[0].returncode == 0


@pytest.mark.parametrize(
    ("program", "text", "says"),
    [
        (
            "uname",
            "[[ $1 == -s ]] && echo Linux || echo riscv64",
            "an x86-64 or arm64 processor: this one is riscv64",
        ),
        ("uname", "[[ $1 == -s ]] && echo Darwin || echo x86_64", "Linux: this system is Darwin"),
        ("df", "printf 'Avail\\n2048\\n'", "free disk space: the packages need 6 GiB"),
        ("getconf", "echo glibc 2.30", "glibc 2.31 or newer: this system has 2.30"),
        ("getconf", "exit 1", "glibc: this system has another C library"),
    ],
)
def test_what_is_missing_is_named(checkout: Checkout, program: str, text: str, says: str) -> None:
    checkout.program(program, f"#!/bin/bash\n{text}\n")
    ran, calls = checkout.run("install", "--cpu")
    assert (ran.returncode, calls) == (1, [])
    assert f"missing: {says}" in ran.stderr


def test_only_what_stops_the_installation_is_an_error(checkout: Checkout) -> None:
    ran, _ = checkout.run("install", "--gpu")
    assert ran.returncode == 0, ran.stderr
    assert "warning: there is no C compiler" in ran.stderr
    assert os.path.lexists(checkout.root / ".uv" / "bin" / "uv")


def bundle(folder: Path, top: str) -> Path:
    """Write an archive with a script that prints how it is called."""
    script = folder / top / "serve"
    script.parent.mkdir(parents=True)
    script.write_text('#!/bin/bash\necho "$0 $*"\n')
    script.chmod(0o755)
    file = folder / "a bundle.tar"
    subprocess.run(["tar", "--create", "--file", file, "--directory", folder, top], check=True)
    return file


def test_a_bundle_is_unpacked_once_and_served(checkout: Checkout, tmp_path: Path) -> None:
    for name in ("tar", "du", "mv"):
        program = shutil.which(name)
        assert program is not None
        (checkout.bin / name).symlink_to(program)
    top = "appliance-0.1.0-cpu-20300101-000000"
    file = bundle(tmp_path / "made", top)
    ran, calls = checkout.run("serve", "--bundle", str(file), "--port", "9")
    served = f"{checkout.root}/scripts/../.bundle/{top}/serve --port 9"
    assert ran.stdout.splitlines() == [f"unpacking {file} (1 MiB) into .bundle/{top}", served]
    assert calls == []
    ran, _ = checkout.run("serve", "--bundle", str(file), "--port", "9")
    assert ran.stdout.splitlines() == [served]


def test_a_file_that_is_no_bundle_is_refused(checkout: Checkout, tmp_path: Path) -> None:
    for name in ("tar", "du", "mv"):
        program = shutil.which(name)
        assert program is not None
        (checkout.bin / name).symlink_to(program)
    other = bundle(tmp_path / "made", "something")
    ran, _ = checkout.run("serve", "--bundle", str(other))
    assert (ran.returncode, ran.stderr) == (
        1,
        f"scripts/serve: {other} is not a bundle: make one with `appliance bundle`\n",
    )
    other.write_text("no archive")
    assert "is not a bundle" in checkout.run("serve", "--bundle", str(other))[0].stderr
    ran, _ = checkout.run("serve", "--bundle", str(tmp_path / "none.tar"))
    assert (ran.returncode, "there is no file" in ran.stderr) == (2, True)
    ran, _ = checkout.run("serve", "--bundle", str(other), "--gpu")
    assert (ran.returncode, "remove --gpu" in ran.stderr) == (2, True)
    checkout.program("df", "#!/bin/bash\nprintf 'Avail\\n0\\n'\n")
    whole = bundle(tmp_path / "again", "appliance-1-cpu-2")
    ran, _ = checkout.run("serve", "--bundle", str(whole))
    assert (ran.returncode, "needs 1 MiB of disk space, and the checkout has 0 MiB" in ran.stderr) == (
        1,
        True,
    )
    assert not (checkout.root / ".bundle" / "appliance-1-cpu-2").exists()
