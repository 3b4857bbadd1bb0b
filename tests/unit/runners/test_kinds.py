"""The packages of the model kinds, which ``KINDS`` is read from."""

from __future__ import annotations

import importlib.util
from typing import get_args

import pytest

from appliance.runners import KINDS, model_configs, runner_class


@pytest.mark.parametrize("name", KINDS)
def test_a_kind_names_a_runner_and_a_known_trainer(name: str) -> None:
    assert callable(runner_class(name).interface)
    assert KINDS[name].trainer in {None, *KINDS}


@pytest.mark.parametrize("name", KINDS)
def test_the_libraries_of_a_kind_are_installed(name: str) -> None:
    assert [library for library in KINDS[name].libraries if importlib.util.find_spec(library) is None] == []


@pytest.mark.parametrize("name", model_configs())
def test_the_class_in_models_yaml_has_the_name_of_its_kind(name: str) -> None:
    assert get_args(model_configs()[name].model_fields["kind"].annotation) == (name,)


def test_trainers_are_not_kinds_of_models_yaml() -> None:
    assert set(KINDS) - set(model_configs()) == {"cog-train", "lora"}
