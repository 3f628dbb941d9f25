"""The units: as systemd itself reads them, and against our settings."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.deploy.conftest import DEPLOY, SERVICES, SETTINGS, names_in, program

from banksman import settings

UNITS = DEPLOY / "systemd"
COMMON = UNITS / "banksman-.service.d" / "common.conf"
INSTANCES = [file.name.replace("@.", "@1.") for file in sorted(UNITS.glob("*.service"))]


def words(file: Path) -> list[tuple[str, str]]:
    lines = [line for line in file.read_text().splitlines() if "=" in line and not line.startswith("#")]
    return [(name, value) for name, _, value in (line.partition("=") for line in lines)]


def test_there_is_one_for_every_service() -> None:
    started = {
        value.split()[-1] for file in UNITS.glob("*.service") for name, value in words(file) if name == "ExecStart"
    }
    assert started == {*SERVICES, "migrate"}


def test_every_name_is_a_setting() -> None:
    for file in [*UNITS.glob("*.service"), COMMON, UNITS / "banksman.env"]:
        assert names_in(file.read_text()) <= SETTINGS, file.name


def test_the_environment_file_is_one_that_services_take(tmp_path: Path) -> None:
    given = dict(words(UNITS / "banksman.env"))
    (tmp_path / "empty.yaml").write_text("")
    for concern in settings.CONCERNS:
        settings.load(concern, given, tmp_path / "empty.yaml")
    assert not {name for name in given if re.search("PASSWORD|TOKEN|SECRET", name)}


@pytest.mark.parametrize("file", sorted(UNITS.glob("*.service")), ids=lambda file: file.name)
def test_a_secret_is_a_credential(file: Path) -> None:
    told = words(COMMON) + words(file)
    credentials = {value.partition(":")[0] for name, value in told if name == "LoadCredential"}
    given = [pair for name, value in told if name == "Environment" for pair in value.split()]
    used = {pair.partition("=%d/")[2] for pair in given if "=%d/" in pair}
    assert used == credentials
    assert all(re.search(r"_FILE=%d/", pair) for pair in given if re.search("PASSWORD|TOKEN|SECRET", pair))
    for source in (value.partition(":")[2] for name, value in told if name == "LoadCredential"):
        assert source.startswith("/etc/banksman/secrets/")


def test_each_unit_has_a_user_of_its_own() -> None:
    """One user for all could read what is in another's memory and among its credentials, below /proc/PID/root."""
    every = [(name, value) for file in UNITS.rglob("*.*") if file.is_file() for name, value in words(file)]
    assert ("DynamicUser", "yes") in every
    assert not {"User", "Group", "SupplementaryGroups"} & {name for name, _ in every}


def test_workers_names_differ_between_machines() -> None:
    """Two members of a Kafka group under one name take it from each other."""
    for kind in ("notifier", "processors@", "archiver@"):
        told = [value for name, value in words(UNITS / f"banksman-{kind}.service") if name == "Environment"]
        (name,) = [value.partition("=")[2] for value in told if value.startswith("BANKSMAN_WORKER=")]
        assert "%m" in name, kind
        assert ("%i" in name) == kind.endswith("@"), kind


def test_what_a_service_can_do_without_need_not_be_there() -> None:
    """Slack's token, and Kafka's password with client certificates: systemd would not start the unit for want of a file."""
    for file in (COMMON, UNITS / "banksman-notifier.service"):
        assert [value for name, value in words(file) if name == "SetCredential"] == [
            f"{'kafka_password' if file == COMMON else 'slack_token'}:\\n"
        ]


def test_nothing_is_writable() -> None:
    told = dict(words(COMMON))
    assert told["ProtectSystem"] == "strict"
    assert told["NoNewPrivileges"] == "yes"
    assert told["DynamicUser"] == "yes"
    every = [name for file in UNITS.rglob("*.*") if file.is_file() for name, _ in words(file)]
    assert not {"ReadWritePaths", "StateDirectory", "CacheDirectory", "LogsDirectory"} & set(every)


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The units where systemd looks for them, with a program that is there."""
    for file in UNITS.rglob("*"):
        if file.is_file() and file.suffix in (".service", ".target", ".conf"):
            to = tmp_path / file.relative_to(UNITS)
            to.parent.mkdir(exist_ok=True)
            to.write_text(file.read_text().replace("/opt/banksman/bin/", f"{Path(sys.executable).parent}/"))
    return tmp_path


def analyze(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"SYSTEMD_UNIT_PATH": f"{folder}:"}
    argv = [program("systemd-analyze"), *arguments]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, env=env)


def test_systemd_reads_them(installed: Path) -> None:
    ran = analyze(installed, "verify", "banksman.target", *INSTANCES)
    assert (ran.returncode, ran.stderr) == (0, "")
    unit = installed / "banksman-enforcer.service"
    unit.write_text(unit.read_text().replace("Restart=always", "Restart=somehow"))
    assert "ignoring: somehow" in analyze(installed, "verify", unit.name).stderr  # it does say so


def test_what_is_enabled_starts_with_the_machine(installed: Path) -> None:
    """The page's own line: services hang on the target, and the target on the machine."""
    root = installed / "root"
    units = root / "etc" / "systemd" / "system"
    units.mkdir(parents=True)
    for file in installed.glob("banksman*"):
        if file.is_file():
            (units / file.name).write_text(file.read_text())
    page = (DEPLOY.parent / "docs" / "deployment.md").read_text()
    (line,) = re.findall(r"^    systemctl enable --now (.+)$", page, re.MULTILINE)
    ran = subprocess.run(
        [program("systemctl"), f"--root={root}", "enable", *line.split()], capture_output=True, text=True, timeout=30
    )
    assert ran.returncode == 0, ran.stderr
    assert (units / "multi-user.target.wants" / "banksman.target").is_symlink()
    wanted = {link.name for link in (units / "banksman.target.wants").iterdir()}
    assert wanted == {one for one in INSTANCES if "migrate" not in one}


def test_a_service_may_have_a_kafka_user_of_its_own(installed: Path) -> None:
    """The page's drop-in is read after the common one, and what it sets takes the place of what stands there."""
    page = (DEPLOY.parent / "docs" / "deployment.md").read_text()
    (where, text) = re.findall(r"`/etc/systemd/system/(\S+\.conf)`:\n\n((?:    .+\n)+)", page)[0]
    assert where.rpartition("/")[2] > COMMON.name
    folder = installed / where.rpartition("/")[0]
    folder.mkdir()
    (installed / where).write_text(re.sub(r"^    ", "", text, flags=re.MULTILINE))
    ran = analyze(installed, "verify", folder.name.removesuffix(".d"))
    assert (ran.returncode, ran.stderr) == (0, "")
    ids = [value.partition(":")[0] for name, value in words(installed / where) if name == "LoadCredential"]
    assert ids == ["kafka_password"]
    files = [value for name, value in words(COMMON) if name == "EnvironmentFile"]
    assert files == ["/etc/banksman/banksman.env", "-/etc/banksman/%p.env"]  # the latter has the last word


@pytest.mark.parametrize("unit", sorted(UNITS.glob("*.service")), ids=lambda file: file.name)
def test_systemd_finds_little_exposed(installed: Path, unit: Path) -> None:
    """By its own scale: below 2 is "OK", the best is 0, a unit without any of it has 9.6."""
    ran = analyze(installed, "security", "--offline=true", "--threshold=20", "--no-pager", str(installed / unit.name))
    assert ran.returncode == 0, ran.stdout[-300:] + ran.stderr
