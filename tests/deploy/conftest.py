"""The files of `deploy/`, read, and the programs of others that read them, where they are here."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import dockerfile
import pytest
import yaml

from banksman import settings

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
COMPOSE = ROOT / "docker-compose.yml"
CHART = DEPLOY / "helm" / "banksman"
SERVICES = ("enforcer", "console", "archiver", "processors", "notifier")
SETTINGS = {f"BANKSMAN_{name.upper()}" for concern in settings.CONCERNS for name in concern.__struct_fields__}
OF_COMPOSE = {"BANKSMAN_IMAGE", "BANKSMAN_UID", "BANKSMAN_GID"}
"""Names that docker-compose.yml itself reads; no service sees them."""


class _Compose(yaml.SafeLoader):
    """A list that is to take the other's place is still a list."""


def _overriding(loader: yaml.SafeLoader, node: yaml.Node) -> list[Any]:
    assert isinstance(node, yaml.SequenceNode)
    return loader.construct_sequence(node, deep=True)


_Compose.add_constructor("!override", _overriding)


def read_compose(file: Path = COMPOSE) -> dict[str, Any]:
    """As it is written: anchors are resolved, `extends` and variables are not."""
    told: dict[str, Any] = yaml.load(file.read_text(), _Compose)
    return told


def program(name: str) -> str:
    """The path of a program of others; the test is skipped where it is not there."""
    found = shutil.which(name, path=os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", ""))))
    if not found:
        how = "it comes with systemd" if name.startswith("system") else "`make tools` builds it, with Go"
        pytest.skip(f"{name} is not here ({how}): what can be checked without it is, in the tests beside this one")
    return found


@functools.cache
def image_environment() -> dict[str, str]:
    """The ENV of the image's last stage, without PATH."""
    last = [one for one in _instructions() if one.cmd.upper() == "ENV"][-1]
    pairs = [word.strip('"') for word in last.value if word != "="]
    return {name: value for name, value in zip(pairs[::2], pairs[1::2], strict=True) if name != "PATH"}


def _instructions() -> list[dockerfile.Command]:
    return list(dockerfile.parse_file(str(DEPLOY / "image" / "Dockerfile")))


def rendered_chart(*more: str, version: str = "1.33.0") -> list[dict[str, Any]]:
    """What `helm template` makes of the chart and its example."""
    return [one for one in yaml.load_all(_rendered(*more, version=version), yaml.CSafeLoader) if one]


@functools.cache
def _rendered(*more: str, version: str) -> str:
    ran = helm(
        "template", "banksman", str(CHART), "--kube-version", version, "-f", str(CHART.parent / "example.yaml"), *more
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def helm(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([program("helm"), *words], capture_output=True, text=True, timeout=60)


def rendered_compose(*more: Path) -> dict[str, Any]:
    """What Docker's own `compose config` makes of the files."""
    files = [word for file in (COMPOSE, *more) for word in ("-f", str(file))]
    variables = {"BANKSMAN_UID": "10001", "BANKSMAN_GID": "10001", "KAFKA_CLUSTER_ID": "x" * 22}
    argv = [program("docker-compose"), *files, "--profile", "*", "config", "--format", "json"]
    ran = subprocess.run(
        argv, capture_output=True, text=True, timeout=60, cwd=ROOT, env=os.environ | variables
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    told: dict[str, Any] = json.loads(ran.stdout)
    return told


def names_in(text: str) -> set[str]:
    """Every BANKSMAN_… in a text."""
    return set(re.findall(r"\bBANKSMAN_[A-Z0-9_]*[A-Z0-9]\b", text))
