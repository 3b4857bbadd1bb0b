"""Environment variables of child processes."""

from __future__ import annotations

import os

import pytest

from appliance.runners.child_environment import take_secrets, without_secrets

SECRETS = {"APPLIANCE_TOKEN": "a", "REPLICATE_API_TOKEN": "b", "HF_TOKEN": "c", "AWS_SECRET_ACCESS_KEY": "d"}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**SECRETS, "RAY_AUTH_TOKEN": "d"}.items():
        monkeypatch.setenv(name, value)


def test_children_get_no_secret() -> None:
    assert not {*SECRETS, "RAY_AUTH_TOKEN"} & without_secrets().keys()
    assert without_secrets()["PATH"] == os.environ["PATH"]


def test_secrets_are_taken_except_the_one_of_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    assert take_secrets() == SECRETS
    assert not SECRETS.keys() & os.environ.keys()
    assert os.environ["RAY_AUTH_TOKEN"] == "d"
