"""The systemd unit, checked by systemd's own tool where it is installed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import msgspec
import pytest

from appliance.domain.errors import ApplianceError
from appliance.driver.systemd_unit import UnitSettings, unit

ANALYZE = shutil.which("systemd-analyze")
SETTINGS = UnitSettings(
    user="root",
    command=["/bin/true", "serve", "--config", "/etc/models.yaml"],
    home=Path("/var/lib/appliance"),
    variables=Path("/etc/appliance.env"),
    port=8000,
    drain_timeout=30.0,
)


def lines(settings: UnitSettings) -> list[str]:
    return unit(settings).splitlines()


@pytest.mark.skipif(ANALYZE is None, reason="systemd-analyze is missing (Debian: systemd)")
@pytest.mark.parametrize("folder", ["appliance", "with spaces, a $HOME, 100 %h and a ;"])
def test_systemd_accepts_the_unit(tmp_path: Path, folder: str) -> None:
    assert ANALYZE is not None
    program = tmp_path / folder / "appliance"
    program.parent.mkdir()
    program.symlink_to("/bin/true")
    file = tmp_path / "appliance.service"
    command = [str(program), "serve", "--config", '/etc/"quoted" and \\x41/models.yaml']
    settings = msgspec.structs.replace(
        SETTINGS, command=command, home=program.parent, variables=program.parent / "variables"
    )
    file.write_text(unit(settings))
    ran = subprocess.run(
        [ANALYZE, "verify", "--man=no", "--recursive-errors=no", str(file)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")


@pytest.mark.skipif(ANALYZE is None, reason="systemd-analyze is missing (Debian: systemd)")
def test_systemd_rates_the_unit_as_protected(tmp_path: Path) -> None:
    assert ANALYZE is not None
    file = tmp_path / "appliance.service"
    file.write_text(unit(msgspec.structs.replace(SETTINGS, user="daemon")))
    ran = subprocess.run(
        [ANALYZE, "security", "--offline=yes", "--threshold=45", str(file)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_words_with_special_characters_stay_one_word() -> None:
    special = msgspec.structs.replace(
        SETTINGS,
        command=["/opt/my appliance/appliance", "serve", "--config", '/a "b" $c 1%\\'],
        home=Path("/srv/a b"),
        variables=Path("/etc/100 %"),
    )
    assert 'ExecStart="/opt/my appliance/appliance" serve --config "/a \\"b\\" $$c 1%%\\\\"' in lines(special)
    assert 'ReadWritePaths="/srv/a b"' in lines(special)
    assert "EnvironmentFile=-/etc/100 %%" in lines(special)


def test_a_line_break_cannot_add_a_key() -> None:
    with pytest.raises(ApplianceError, match=r"'root\\nExecStart=/bin/sh' cannot be in a systemd unit"):
        unit(msgspec.structs.replace(SETTINGS, user="root\nExecStart=/bin/sh"))


def test_a_program_that_systemd_cannot_start() -> None:
    with pytest.raises(ApplianceError, match=r"systemd cannot start /it.s/appliance: .* install"):
        unit(msgspec.structs.replace(SETTINGS, command=["/it's/appliance"]))


def test_predictions_have_time_to_end() -> None:
    assert "TimeoutStopSec=90" in lines(SETTINGS)
    assert "TimeoutStopSec=661" in lines(msgspec.structs.replace(SETTINGS, drain_timeout=600.5))


@pytest.mark.parametrize(("port", "capability"), [(8000, ""), (443, "CAP_NET_BIND_SERVICE")])
def test_only_a_privileged_port_needs_a_capability(port: int, capability: str) -> None:
    wanted = {f"CapabilityBoundingSet={capability}", f"AmbientCapabilities={capability}"}
    assert wanted <= set(lines(msgspec.structs.replace(SETTINGS, port=port)))
