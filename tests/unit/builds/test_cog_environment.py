"""The steps of a build that look for a Python, for system packages, and at the project's commands."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.builds import cog_environment, cog_yaml, project, system_packages
from appliance.builds.build_process import BuildProcess
from appliance.builds.cog_yaml import ShellCommand
from appliance.domain.errors import WeightsError
from appliance.runners.cog import search_paths


@pytest.fixture
def lines() -> list[str]:
    return []


@pytest.fixture
def build(tmp_path: Path, lines: list[str]) -> BuildProcess:
    (tmp_path / "project").mkdir()
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    (tmp_path / "venv" / "lib" / "python3.8" / "site-packages").mkdir(parents=True)
    return BuildProcess("cog/local", tmp_path, lines.append, {"OF_COG_YAML": "set"})


@pytest.mark.parametrize(
    "text", ["apt-get update", "cd /tmp && apt install -y jq", "true; sudo make install", "(ldconfig)"]
)
def test_a_command_that_changes_the_system_is_refused(build: BuildProcess, text: str) -> None:
    with pytest.raises(WeightsError, match=r"build.run\[3\] calls \S+, which changes the whole system"):
        cog_environment._run(ShellCommand(key="build.run[3]", text=text), build)


def test_a_command_runs_in_the_project_and_writes_programs_into_the_build(
    build: BuildProcess, lines: list[str]
) -> None:
    text = (
        "echo $OF_COG_YAML > /src/said; pwd; echo '#!/bin/sh' > /usr/local/bin/tool; "
        "chmod +x /usr/local/bin/tool; echo /usr/local/bin/python3 /usr/local/bin/pip-tool; "
        "touch /usr/local/lib/python3.8/site-packages/module.py; echo my/src"
    )
    cog_environment._run(ShellCommand(key="build.run[0]", text=text), build)
    cog_environment._run(ShellCommand(key="build.run[1]", text="command -v tool"), build)
    assert (build.folder / "project" / "said").read_text() == "set\n"
    assert (build.folder / "venv" / "lib" / "python3.8" / "site-packages" / "module.py").exists()
    assert f"{build.folder}/venv/bin/python3 {build.folder}/system/usr/local/bin/pip-tool" in lines
    for line in (str(build.folder / "project"), str(build.folder / "system/usr/local/bin/tool"), "my/src"):
        assert line in lines


def test_a_command_that_fails_is_named_with_what_it_printed(build: BuildProcess) -> None:
    with pytest.raises(WeightsError, match=r"build.run\[2\] \(echo oh no; exit 3\) ended with code 3: oh no"):
        cog_environment._run(ShellCommand(key="build.run[2]", text="echo oh no; exit 3"), build)


def test_a_python_that_cannot_be_had_is_named_with_what_to_do(
    build: BuildProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cog.yaml").write_text("predict: p.py:P\nbuild: {python_version: '3.9'}\n")
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setenv("UV_OFFLINE", "1")
    monkeypatch.setenv("UV_PYTHON_INSTALL_DIR", str(tmp_path / "pythons"))
    said = "build.python_version 3.9 is not on this machine, and cannot be downloaded: install it"
    with pytest.raises(WeightsError, match=said):
        cog_environment._interpreter(cog_yaml.read("cog/local", tmp_path), build)


def test_another_patch_of_the_python_is_noted(
    build: BuildProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cog.yaml").write_text("predict: p.py:P\nbuild: {python_version: '3.9.1'}\n")
    for patch in (17, 18):
        program = tmp_path / "versions" / f"3.9.{patch}" / "bin" / "python3.9"
        program.parent.mkdir(parents=True)
        program.write_text(f"#!/bin/sh\necho 3.9.{patch}\n")
        program.chmod(0o755)
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    assert cog_environment._interpreter(cog_yaml.read("cog/local", tmp_path), build) == str(program)
    assert build.notes == ["build.python_version 3.9.1: Python 3.9.18 is used"]


def tools(folder: Path, monkeypatch: pytest.MonkeyPatch, **programs: str) -> None:
    """Put shell scripts in place of the programs of Debian."""
    folder.mkdir()
    for name, script in {"dpkg-query": "exit 1", "apt-cache": "echo found", **programs}.items():
        program = folder / name.replace("_", "-")
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_a_missing_system_package_is_unpacked_with_its_dependencies(
    build: BuildProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: list[str]
) -> None:
    simulated = "Inst libtool1 (2.0 Debian:12 [amd64])\\nInst tool [0.9] (1.0 Debian:12 [amd64])"
    tools(
        tmp_path / "tools",
        monkeypatch,
        apt_get=f'if [ $1 = install ]; then printf "{simulated}\\nConf tool"; '
        "else shift 3; for each; do echo $each > $each.deb; done; fi",
        dpkg_deb="mkdir -p $3/usr/bin $3/usr/lib/own; cp $2 $3/usr/bin; touch $3/usr/lib/own/libtool.so.1",
    )
    system_packages.install(("tool",), build)
    system = build.folder / "system"
    assert sorted(file.name for file in (system / "usr/bin").iterdir()) == [
        "libtool1=2.0.deb",
        "tool=1.0.deb",
    ]
    assert "unpacked libtool1 tool; the maintainer scripts of packages are not run" in lines
    assert build.notes == []
    found = search_paths.with_programs({"PATH": "/bin"}, build.folder)
    assert found["PATH"].split(":") == [str(build.folder / "venv/bin"), str(system / "usr/bin"), "/bin"]
    assert found["LD_LIBRARY_PATH"] == str(system / "usr/lib/own")


@pytest.mark.parametrize(
    ("apt_get", "said"),
    [
        ("echo E: Unable to locate >&2; exit 100", "apt-get cannot install them: E: Unable to locate"),
        ("echo 'Inst libc6 [2.36] (2.40 Debian:13 [amd64])'", "they need another version of libc6"),
    ],
)
def test_a_system_package_that_cannot_be_unpacked_is_noted_with_the_command(
    build: BuildProcess,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    lines: list[str],
    apt_get: str,
    said: str,
) -> None:
    tools(tmp_path / "tools", monkeypatch, apt_get=apt_get, dpkg_deb="exit 1")
    system_packages.install(("tool", "other=1.0"), build)
    assert any(said in line for line in lines)
    (note,) = build.notes
    assert note.endswith("sudo apt-get update && sudo apt-get install --no-install-recommends tool other=1.0")


def test_a_system_package_is_not_an_option_of_apt(build: BuildProcess) -> None:
    with pytest.raises(WeightsError, match="'-o=x' is not the name of a package"):
        system_packages.install(("-o=x",), build)


def test_scripts_of_a_finished_build_name_its_place(tmp_path: Path) -> None:
    script = tmp_path / "venv" / "bin" / "tool"
    script.parent.mkdir(parents=True)
    script.write_text("#!/old/venv/bin/python\n")
    binary = script.with_name("binary")
    binary.write_bytes(b"\x7fELF/old/venv")
    project.relocate(tmp_path, Path("/old"), Path("/new"))
    assert script.read_text() == "#!/new/venv/bin/python\n"
    assert binary.read_bytes() == b"\x7fELF/old/venv"
