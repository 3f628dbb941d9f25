from __future__ import annotations

from pathlib import Path

import pytest

from banksman import settings
from banksman.errors import InvalidSetting


def test_defaults_are_loopback() -> None:
    assert settings.load(settings.Kafka, {}).kafka == "127.0.0.1:9092"
    assert settings.load(settings.Enforcer, {}).enforcer_host == "127.0.0.1"


def test_the_environment_beats_the_file(tmp_path: Path) -> None:
    file = tmp_path / "banksman.yaml"
    file.write_text("kafka: a:1\npartitions: 8\n")
    environ = {"BANKSMAN_CONFIG": str(file), "BANKSMAN_KAFKA": "b:2"}
    made = settings.load(settings.Kafka, environ)
    assert (made.kafka, made.partitions) == ("b:2", 8)


@pytest.mark.parametrize(
    ("environ", "written", "names"),
    [
        ({"BANKSMAN_PARTITIONS": "x"}, "", "BANKSMAN_PARTITIONS"),
        ({"BANKSMAN_PARTITIONS": "0"}, "", "BANKSMAN_PARTITIONS"),
        ({"BANKSMAN_KAFKA_SECURITY": "TLS"}, "", "BANKSMAN_KAFKA_SECURITY"),
        ({}, "partitions: many", "banksman.yaml: partitions"),
        ({}, "partition: 3", "banksman.yaml: partition"),
        ({}, "- a", "BANKSMAN_CONFIG"),
        ({}, "a: [", "BANKSMAN_CONFIG"),
        ({"BANKSMAN_CONFIG": "/nowhere/x.yaml"}, "", "BANKSMAN_CONFIG"),
    ],
)
def test_errors_name_the_setting(environ: dict[str, str], written: str, names: str, tmp_path: Path) -> None:
    file = tmp_path / "banksman.yaml"
    file.write_text(written)
    with pytest.raises(InvalidSetting) as caught:
        settings.load(settings.Kafka, {"BANKSMAN_CONFIG": str(file)} | environ)
    assert names in str(caught.value)


def test_every_field_is_described_and_its_own() -> None:
    names = [name for concern in settings.CONCERNS for name in concern.__struct_fields__]
    assert len(names) == len(set(names))
    for concern in settings.CONCERNS:
        for name in concern.__struct_fields__:
            meta = concern.__annotations__[name]
            assert "_about(" in meta, name


def test_secrets_are_not_shown(tmp_path: Path) -> None:
    made = settings.load(settings.Kafka, {"BANKSMAN_KAFKA_PASSWORD": "hunter2"})
    assert "hunter2" not in repr(made)
    assert "hunter2" not in str(made)


def test_a_password_may_stand_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "pw").write_text("hunter2\n")
    environ = {"BANKSMAN_KAFKA_SECURITY": "SASL_PLAINTEXT", "BANKSMAN_KAFKA_PASSWORD_FILE": str(tmp_path / "pw")}
    assert settings.load(settings.Kafka, environ).client()["sasl_plain_password"] == "hunter2"
    environ["BANKSMAN_KAFKA_PASSWORD_FILE"] = str(tmp_path / "none")
    with pytest.raises(InvalidSetting, match="BANKSMAN_KAFKA_PASSWORD_FILE"):
        settings.load(settings.Kafka, environ).client()
