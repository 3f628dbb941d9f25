"""docker-compose.yml and its variants: by Compose's schema, as Docker's own program renders them, and against our settings."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from tests.deploy.conftest import (
    COMPOSE,
    DEPLOY,
    OF_COMPOSE,
    ROOT,
    SERVICES,
    SETTINGS,
    names_in,
    program,
    read_compose,
    rendered_compose,
)
from tests.deploy.running import MAKE_SECRETS, make_secrets

from banksman import settings
from banksman.local import jars
from banksman.signing import load_secret

THREE, METRICS = DEPLOY / "compose" / "three-brokers.yml", DEPLOY / "compose" / "metrics.yml"
OURS = (*SERVICES, "migrate", "check")


def schema() -> Any:
    vendored = resources.files("check_jsonschema.builtin_schemas.vendor").joinpath("compose-spec.json")
    return yaml.safe_load(vendored.read_text())


@pytest.mark.parametrize("file", [COMPOSE, THREE, METRICS], ids=lambda file: file.name)
def test_by_the_schema_of_compose(file: Path) -> None:
    validator = jsonschema.Draft7Validator(schema())
    wrong = [
        f"{'/'.join(map(str, error.path))}: {error.message}" for error in validator.iter_errors(read_compose(file))
    ]
    assert wrong == []
    broken = read_compose(file) | {"services": {"x": {"image": 7}}}
    assert list(validator.iter_errors(broken))  # the schema does say no


@pytest.mark.parametrize("file", [COMPOSE, THREE, METRICS], ids=lambda file: file.name)
def test_every_name_is_a_setting(file: Path) -> None:
    assert names_in(file.read_text()) - OF_COMPOSE - SETTINGS == set()


@pytest.mark.parametrize("name", SERVICES)
def test_every_value_is_one_that_the_service_takes(name: str, tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("")
    environment = {key: str(value) for key, value in read_compose()["services"][name]["environment"].items()}
    for concern in settings.CONCERNS:
        settings.load(concern, environment, tmp_path / "empty.yaml")


def test_images_are_pinned() -> None:
    every = [*read_compose()["services"].values(), *read_compose(METRICS)["services"].values()]
    images = {one["image"] for one in every if "image" in one} - {read_compose()["x-banksman"]["image"]}
    assert len(images) == 4
    for image in images:
        assert re.fullmatch(r"[\w./-]+:v?\d+\.\d+\.\d+(\.\d+)?", image), image
    assert f"apache/kafka:{jars.KAFKA}" in images  # the release that every test of ours runs on
    assert re.fullmatch(r"\$\{BANKSMAN_IMAGE:-banksman:\d+\.\d+\.\d+\}", read_compose()["x-banksman"]["image"])


def hardened(name: str, service: dict[str, Any]) -> list[str]:
    """What is missing."""
    wrong = []
    if service.get("cap_drop") != ["ALL"] or service.get("cap_add"):
        wrong.append(f"{name} keeps capabilities")
    if "no-new-privileges:true" not in service.get("security_opt", ()):
        wrong.append(f"{name} may get more privileges")
    if service.get("privileged") or service.get("network_mode") or service.get("pid"):
        wrong.append(f"{name} shares something with the machine")
    if name in OURS and (not service.get("read_only") or str(service.get("user", "root")).startswith(("0", "root"))):
        wrong.append(f"{name} is root, or may write")
    for port in service.get("ports", ()):
        where = port if isinstance(port, str) else f"{port.get('host_ip')}:{port['published']}:{port['target']}"
        if not where.startswith("127.0.0.1:"):
            wrong.append(f"{name} listens beyond this machine: {where}")
    for variable, value in service.get("environment", {}).items():
        if re.search("PASSWORD|TOKEN|SECRET", variable) and not re.search(r"_FILE$", variable):
            wrong.append(f"{name}: {variable} is a secret in the environment")
        if re.search("PASSWORD|TOKEN|SECRET", variable) and not str(value).startswith("/run/secrets/"):
            wrong.append(f"{name}: {variable} is no secret of compose's")
    return wrong


@pytest.mark.parametrize("file", [COMPOSE, METRICS], ids=lambda file: file.name)
def test_every_container_is_hardened(file: Path) -> None:
    for name, service in read_compose(file)["services"].items():
        if "image" in service:
            assert hardened(name, service) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"cap_add": ["SYS_ADMIN"]}, "keeps capabilities"),
        ({"ports": ["7700:7700"]}, "listens beyond"),
        ({"read_only": False}, "may write"),
        ({"user": "0:0"}, "is root"),
        ({"environment": {"BANKSMAN_KAFKA_PASSWORD": "hunter2"}}, "is a secret in the environment"),
    ],
)
def test_what_is_not_hardened_is_seen(change: dict[str, Any], said: str) -> None:
    assert any(said in wrong for wrong in hardened("enforcer", read_compose()["services"]["enforcer"] | change))


def test_a_service_has_the_secrets_that_it_reads_and_no_others() -> None:
    every = read_compose()
    for name in OURS:
        service = every["services"][name]
        has = set(service.get("secrets", ()))
        reads = {value.rpartition("/")[2] for key, value in service["environment"].items() if key.endswith("_FILE")}
        if name == "migrate":  # it signs nothing
            reads.discard("banksman_secret")
        assert has == reads, name
    assert "clickhouse_password" not in every["services"]["console"]["secrets"]  # it only asks
    for name, secret in every["secrets"].items():
        assert secret == {"file": f"deploy/compose/secrets/{name}"}


def test_nobody_is_started_before_what_it_rests_on() -> None:
    every = read_compose()["services"]
    for name in SERVICES:
        assert every[name]["depends_on"] == {"migrate": {"condition": "service_completed_successfully"}}
    for name in every["migrate"]["depends_on"]:
        assert every[name]["healthcheck"]["test"][0] == "CMD"
    assert set(every["migrate"]["depends_on"]) == {"kafka", "clickhouse"}


def test_kafka_and_clickhouse_cannot_be_reached_from_the_machine() -> None:
    every = read_compose()
    assert every["networks"]["servers"] == {"internal": True}
    for name in ("kafka", "clickhouse"):
        assert every["services"][name]["networks"] == ["servers"]
        assert "ports" not in every["services"][name]


@pytest.mark.parametrize("variant", [(), (THREE,)], ids=["one", "three"])
def test_agents_meet_nobody_but_enforcers(variant: tuple[Path, ...]) -> None:
    """Their network is plain HTTP on a bridge: no console, no login of Grafana's, no notifier is on it."""
    services = rendered_compose(*variant)["services"]
    there = {name for name, one in services.items() if "agents" in one["networks"]}
    assert there == {name for name in services if name.startswith("enforcer")}
    assert all(set(services[name]["networks"]) == {"servers", "agents"} for name in there)
    assert not (read_compose()["networks"]["agents"] or {}).get("internal")  # or its port on the machine would be none


def test_the_secrets_are_made_once_and_are_what_the_services_read(tmp_path: Path) -> None:
    folder = make_secrets(tmp_path)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    named = {Path(one["file"]).name for one in read_compose()["secrets"].values()}
    assert {file.name for file in folder.iterdir()} == named
    read_elsewhere = {"kafka_jaas", "clickhouse_users", "grafana_admin_password", "grafana_clickhouse_password"}
    for file in folder.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == (0o444 if file.name in read_elsewhere else 0o600), file.name
    if os.geteuid() == 0:  # then they are the image's user's, and the one who runs the test may not be that
        os.chown(folder / "banksman_secret", 0, 0)
    assert load_secret(folder / "banksman_secret").current == 1
    before = {file.name: file.read_text() for file in folder.iterdir()}
    for name in ("kafka_password", "clickhouse_password", "clickhouse_reader_password", "grafana_admin_password"):
        assert len(before[name].strip()) >= 24
    shared = re.findall(r'(?:user_service|(?<!_)password)="(\S+)";?', before["kafka_jaas"])
    assert (
        shared[1:] == [before["kafka_password"].strip()] * 2
    )  # the broker's own comes first; then who `service` is, twice
    environment = (tmp_path / ".env").read_text()
    assert set(re.findall(r"^(\w+)=", environment, re.MULTILINE)) == {
        "BANKSMAN_UID",
        "BANKSMAN_GID",
        "KAFKA_CLUSTER_ID",
    }
    assert not any(secret.strip() and secret.strip() in environment for secret in before.values())
    script = folder.parent / "make_secrets.py"
    ran = subprocess.run([sys.executable, "-I", str(script)], capture_output=True, text=True, timeout=30)
    assert "nothing was made again" in ran.stdout
    assert {file.name: file.read_text() for file in folder.iterdir()} == before


def test_an_env_of_somebodys_own_gets_what_it_does_not_say(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("COMPOSE_FILE=docker-compose.yml\nBANKSMAN_UID=0\nKAFKA_CLUSTER_ID=")
    folder = make_secrets(tmp_path)
    before = (tmp_path / ".env").read_text()
    said = re.findall(r"^(\w+)=(.+)$", before, re.MULTILINE)
    assert [name for name, _ in said] == ["COMPOSE_FILE", "BANKSMAN_UID", "BANKSMAN_GID", "KAFKA_CLUSTER_ID"]
    assert dict(said)["BANKSMAN_UID"] == "0"
    assert len(dict(said)["KAFKA_CLUSTER_ID"]) == 22
    script = folder.parent / "make_secrets.py"
    ran = subprocess.run([sys.executable, "-I", str(script)], capture_output=True, text=True, timeout=30)
    assert "nothing was made again" in ran.stdout
    assert (tmp_path / ".env").read_text() == before


def test_clickhouse_has_our_two_users_and_no_other(tmp_path: Path) -> None:
    import hashlib
    import xml.etree.ElementTree as ET

    folder = make_secrets(tmp_path)
    users = ET.parse(folder / "clickhouse_users").getroot().find("users")
    assert users is not None
    known = settings.ClickHouse()
    assert {user.tag for user in users} == {"default", known.clickhouse_user, known.clickhouse_reader}
    assert users.find("default").attrib == {"remove": "1"}  # type: ignore[union-attr]
    for name, file in (("admin", "clickhouse_password"), ("analyst", "clickhouse_reader_password")):
        stored = users.findtext(f"{name}/password_sha256_hex")
        assert stored == hashlib.sha256((folder / file).read_text().strip().encode()).hexdigest()
        assert users.find(f"{name}/no_password") is None
        assert users.find(f"{name}/access_management") is None
    assert [query.text for query in users.iterfind("analyst/grants/query")] == [
        f"GRANT SELECT ON {known.clickhouse_database}.*"
    ]


def test_secrets_and_env_are_not_committed_and_not_sent_to_the_engine() -> None:
    for path in (".env", "deploy/compose/secrets/banksman_secret", "admin.token", "banksman_kafka.tar.gz"):
        assert subprocess.run(["git", "check-ignore", "-q", path], cwd=ROOT).returncode == 0, path
    assert not re.search(r"^!(deploy|deploy/compose|\.env)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE)


def test_grafana_asks_as_the_reader() -> None:
    told = yaml.safe_load((DEPLOY / "compose" / "grafana" / "clickhouse.yml").read_text())
    (source,) = told["datasources"]
    assert source["jsonData"]["username"] == settings.ClickHouse().clickhouse_reader
    (most,) = re.findall(r"<max_execution_time><min>1</min><max>(\d+)</max>", MAKE_SECRETS.read_text())
    assert int(source["jsonData"]["queryTimeout"]) + 5 <= int(most)  # what its plugin asks for
    secrets = read_compose()["services"]["grafana"]["secrets"]
    assert re.search(r"\$__file\{/run/secrets/(\w+)\}", source["secureJsonData"]["password"])[1] in secrets  # type: ignore[index]


def test_as_docker_renders_it() -> None:
    told = rendered_compose()
    for name, service in told["services"].items():
        assert hardened(name, service) == []
        for volume in service.get("volumes", ()):
            if volume["type"] == "bind":
                assert volume["read_only"], volume
                assert Path(volume["source"]).exists(), volume
    assert told["services"]["console"]["ports"][0]["host_ip"] == "127.0.0.1"


def blocks(heading: str) -> str:
    """The indented lines of a section of docs/deployment.md."""
    section = (ROOT / "docs" / "deployment.md").read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    lines = [line[4:] for line in section.splitlines() if line.startswith("    ")]
    assert lines, heading
    return "\n".join(lines)


def test_every_command_of_the_page_is_about_the_whole_deployment(tmp_path: Path) -> None:
    """With -f in one command, the next without it would make one broker of three."""
    page = (ROOT / "docs" / "deployment.md").read_text()
    assert not re.search(r"docker compose [^\n]*-f ", page)
    (files,) = re.findall(r"^echo (COMPOSE_FILE=\S+) >> \.env$", blocks("Three brokers"), re.MULTILINE)
    environment = tmp_path / "env"
    environment.write_text(f"{files}\nBANKSMAN_UID=1\nBANKSMAN_GID=1\nKAFKA_CLUSTER_ID={'x' * 22}\n")
    argv = [program("docker-compose"), "--env-file", str(environment), "config", "--services"]
    ran = subprocess.run(argv, capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert ran.returncode == 0, ran.stderr
    assert {"kafka", "kafka-2", "kafka-3", "enforcer-3"} <= set(ran.stdout.split())


DOCKER = """\
#!/bin/sh
# Volumes are folders here, and a container's mounts are where they come from.
case "$1 $2" in
    "compose "*) echo "$@" >> calls;;
    "volume ls") ls "$VOLUMES";;
    "run --rm")
        script=${10}
        for mount in "$4" "$6"; do
            mount=${mount%:ro}
            from=${mount%:*}
            case $from in /*) ;; *) from=$VOLUMES/$from;; esac
            script=$(echo "$script" | sed "s#${mount##*:}\\([ /]\\)#$from\\1#g")
        done
        exec sh -c "$script";;
    *) exit 64;;
esac
"""


def test_a_backup_is_whole_ones_own_and_comes_back(tmp_path: Path) -> None:
    """The commands of the page, with a `docker` whose volumes are folders: every volume, secrets and .env too."""
    volumes, here = tmp_path / "volumes", tmp_path / "here"
    names = ("banksman_kafka", "banksman_kafka-2", "banksman_clickhouse")
    for name in names:
        (volumes / name).mkdir(parents=True)
        (volumes / name / "data").write_text(name)
    here.mkdir()
    secrets = make_secrets(here)
    (tmp_path / "docker").write_text(DOCKER)
    (tmp_path / "docker").chmod(0o755)
    env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "VOLUMES": str(volumes)}
    backup, _, restore = blocks("Backup").partition("docker compose start")

    def shell(commands: str) -> None:
        ran = subprocess.run(
            ["sh", "-eu", "-c", commands], capture_output=True, text=True, timeout=60, env=env, cwd=here
        )
        assert ran.returncode == 0, ran.stderr

    shell(backup)
    kept = {file.name: stat.S_IMODE(file.stat().st_mode) for file in here.glob("*.tar.gz")}
    assert kept == {f"{name}.tar.gz": 0o600 for name in (*names, "banksman_secrets")}
    before = (secrets / "banksman_secret").read_text(), (here / ".env").read_text()
    (secrets / "banksman_secret").unlink()
    (here / ".env").unlink()
    for name in names:
        (volumes / name / "data").unlink()
        (volumes / name / "later").write_text("of a time that is not to be any more")
    shell(restore)
    assert before == ((secrets / "banksman_secret").read_text(), (here / ".env").read_text())
    for name in names:
        assert [(file.name, file.read_text()) for file in (volumes / name).iterdir()] == [("data", name)]
    assert (here / "calls").read_text().split("\n")[0] == "compose stop"


def test_three_brokers_as_docker_renders_them() -> None:
    one, three = rendered_compose()["services"], rendered_compose(THREE, METRICS)["services"]
    for name, service in three.items():
        assert hardened(name, service) == []
    brokers = [three[name]["environment"] for name in ("kafka", "kafka-2", "kafka-3")]
    assert [one["KAFKA_NODE_ID"] for one in brokers] == ["1", "2", "3"]
    assert len({one["KAFKA_ADVERTISED_LISTENERS"] for one in brokers}) == 3
    assert len({one["KAFKA_CONTROLLER_QUORUM_VOTERS"] for one in brokers}) == 1
    assert {one["KAFKA_MIN_INSYNC_REPLICAS"] for one in brokers} == {"2"}
    assert len({volume["source"] for name in ("kafka", "kafka-2", "kafka-3") for volume in three[name]["volumes"]}) == 3
    for name in three:
        kind = re.sub(r"-\d$", "", name)
        if kind in SERVICES or kind == "migrate":
            assert three[name]["environment"]["BANKSMAN_KAFKA"] == "kafka:9092,kafka-2:9092,kafka-3:9092", name
            assert three[name]["environment"]["BANKSMAN_REPLICATION"] == "3", name
            assert three[name]["command"] == one[kind]["command"]
            assert {secret["source"] for secret in three[name]["secrets"]} == {
                s["source"] for s in one[kind]["secrets"]
            }
    assert sum(name.startswith("enforcer") for name in three) == 3
    for kind in ("processors", "archiver"):
        workers = [three[name]["environment"]["BANKSMAN_WORKER"] for name in three if name.startswith(kind)]
        assert len(workers) == len(set(workers)) == 2
    published = [port["published"] for service in three.values() for port in service.get("ports", ())]
    assert len(published) == len(set(published))
    assert set(three["migrate"]["depends_on"]) == {"kafka", "kafka-2", "kafka-3", "clickhouse"}
    hosts = three["enforcer"]["environment"]["BANKSMAN_HOSTS"].split(",")
    assert {name for name in three if re.sub(r"-\d$", "", name) in SERVICES} == set(hosts)
