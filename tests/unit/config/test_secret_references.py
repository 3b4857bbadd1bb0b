"""Variables from which models.yaml takes secrets are kept from models."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance import config as configuration
from appliance.config import yaml_source
from appliance.config.secret_references import secret_variables
from appliance.domain.errors import ConfigError
from appliance.runners import child_environment
from appliance.runners.child_environment import take_secrets, without_secrets


@pytest.fixture(autouse=True)
def nothing_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child_environment, "_hidden", set())


ENVIRONMENT = {
    "S3_ID": "AKIA1234",
    "S3_SECRET": "secret of the bucket",
    "SIGN_ON": "secret of the provider",
    "INDEX": "https://user:password@example.org/simple",
    "INDEX_PASSWORD": "another-password",
    "SIGNED": "parameter",
    "HEADER": "header",
    "VENDOR_KEY": "key of a vendor",
    "LIBRARIES": "/opt/lib",
    "REGION": "us-east-1",
    "HOST": "example.org",
    "UNUSED_TOKEN": "unused",
    "PGPASSWORD": "of the database",
    "DATABASE_URL": "postgres://user:hidden@example.org/x",
    "USER": "someone",
}


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("files: {s3: {access_key_id: '${S3_ID}', region: '${REGION}'}}", {"S3_ID"}),
        ("files: {s3: {secret_access_key: '${S3_SECRET:-none}'}}", {"S3_SECRET"}),
        ("files: {s3: {secret_access_key: '${NOT_SET:-none}'}}", set()),
        ("sign_on: {oidc: {client_secret: '${SIGN_ON}', issuer: 'https://${HOST}'}}", {"SIGN_ON"}),
        ("sign_on: {oidc: {client_secret_file: '${LIBRARIES}/secret'}}", set()),
        ("telemetry: {headers: {authorization: 'Bearer ${HEADER}'}}", {"HEADER"}),
        ("telemetry: {endpoint: 'https://${HOST}/?token=${SIGNED}'}", {"SIGNED"}),
        ("models: [{environment: {index: '${INDEX}'}}]", {"INDEX"}),
        ("models: [{source: {git: 'https://${USER}:${INDEX_PASSWORD}@${HOST}/x'}}]", {"INDEX_PASSWORD"}),
        (
            "models: [{options: {environment: {A: '${VENDOR_KEY}', LD_LIBRARY_PATH: '${LIBRARIES}:/x'}}}]",
            {"VENDOR_KEY"},
        ),
        ("models: [{options: {environment: {API_TOKEN: '${HEADER}'}}}]", {"HEADER"}),
        ("models: [{options: {environment: {PGPASSWORD: '${PGPASSWORD}'}}}]", {"PGPASSWORD"}),
        ("models: [{options: {environment: {DATABASE: '${DATABASE_URL}'}}}]", {"DATABASE_URL"}),
        ("models: [{options: {environment: {PATH_OF_KEYS: '${USER}'}}}]", set()),
    ],
)
def test_the_variables_of_secrets_are_found(text: str, names: set[str]) -> None:
    document = yaml_source.parse(text, "models.yaml", ENVIRONMENT)
    assert document.problems == ()
    assert secret_variables(document, ENVIRONMENT) == names


def test_child_processes_do_not_inherit_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    file = tmp_path / "models.yaml"
    file.write_text(
        "files: {s3: {url: 's3://bucket', region: '${REGION}', access_key_id: '${S3_ID}',"
        " secret_access_key: '${S3_SECRET}'}}\nmodels: [{name: a/b, kind: echo}]\n"
    )
    loaded = configuration.load(file)
    assert loaded.files.s3 is not None
    assert loaded.files.s3.secret_access_key == "secret of the bucket"
    assert not {"S3_ID", "S3_SECRET"} & without_secrets().keys()
    assert without_secrets()["REGION"] == "us-east-1"
    taken = take_secrets()
    assert taken["S3_SECRET"] == "secret of the bucket"
    assert configuration.referenced_variables(file, {**ENVIRONMENT}) == {"REGION", "S3_ID", "S3_SECRET"}
    with pytest.raises(ConfigError, match="S3_SECRET is not set"):
        configuration.load(file)
