"""What is loaded into which process: the gateway, the replica and `--help` stay light."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "vllm", "safetensors", "numpy")


def loaded(statement: str) -> set[str]:
    """The top-level modules a fresh interpreter holds after ``statement``."""
    ran = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import sys\n{statement}\nprint(*{{name.partition('.')[0] for name in sys.modules}})",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(ran.stdout.split())


@pytest.mark.parametrize(
    "statement",
    [
        "import appliance.gateway.api, appliance.gateway.engine, appliance.store, appliance.driver.doctor",
        "import appliance.worker.replica, appliance.worker.zygote, appliance.worker.process",
        "from appliance.runners import KINDS, runner_class\nfor kind in KINDS: runner_class(kind)",
    ],
    ids=["gateway", "replica", "runners"],
)
def test_no_process_but_the_host_imports_torch(statement: str) -> None:
    assert not loaded(statement) & set(HEAVY)


def test_what_ray_starts_imports_no_torch() -> None:
    found = loaded("import appliance.gateway.app, appliance.driver.main, appliance.cluster.ray")
    assert "ray" in found
    assert not found & {"torch", "transformers", "vllm", "safetensors"}


def test_the_driver_of_postgresql_is_imported_only_with_store_url() -> None:
    assert "psycopg" not in loaded("import appliance.gateway.app, appliance.driver.main, appliance.store")


def test_help_is_light() -> None:
    statement = (
        "from appliance.cli.application import app\n"
        "from typer.testing import CliRunner\n"
        "assert CliRunner().invoke(app, ['--help']).exit_code == 0"
    )
    assert not loaded(statement) & {"ray", "pydantic", "httpx", "starlette", *HEAVY}
