"""Do all answer, do they say that they are well, do replicas agree, is the whole path open?"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
from collections import defaultdict
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from findings import TIMEOUT_S, Finding, Place, ask, why

if TYPE_CHECKING:
    from collections.abc import Iterator

DOCTOR_S = 90.0


def speaks_tls(place: Place, ca: str | None) -> Iterator[Finding]:
    """TLS with a certificate of its name, and nothing else."""
    if not place.secure:
        yield Finding(place.name, "FAILED", f"{place} is plain HTTP, and TLS was asked for")
        return
    context = ssl.create_default_context(cafile=ca)
    try:
        with (
            socket.create_connection((place.host, place.port), TIMEOUT_S) as plain,
            context.wrap_socket(plain, server_hostname=place.host) as secured,
        ):
            spoken = secured.version()
    except OSError as error:
        yield Finding(place.name, "FAILED", f"{place}: no TLS connection: {why(error)}")
        return
    try:
        answer = ask(Place(place.name, f"http://{place.host}:{place.port}"), "GET", "/healthz", ca=None)
    except (OSError, http.client.HTTPException):
        yield Finding(place.name, "ok", f"{place} speaks {spoken}, with a certificate of its name, and nothing else")
    else:
        yield Finding(place.name, "FAILED", f"{place} answers {answer.status} without TLS, too")


def answers(place: Place, ca: str | None) -> Iterator[Finding]:
    """`/healthz` and `/readyz`."""
    for path, fine in (("/healthz", "turns"), ("/readyz", "does its work")):
        try:
            answer = ask(place, "GET", path, ca=ca)
        except (OSError, http.client.HTTPException) as error:
            yield Finding(place.name, "FAILED", f"{place} does not answer: {why(error)}")
            return
        if answer.status != 200:
            yield Finding(
                place.name, "FAILED", f"{place}{path}: {answer.status} {answer.json.get('detail', '')}".rstrip()
            )
            return
        if path == "/readyz":
            yield Finding(place.name, "ok", f"{place} {fine}")


def replicas_agree(enforcers: list[Place], consoles: list[Place], token: str, ca: str | None) -> Iterator[Finding]:
    """Every enforcer sees as many as there are, under the same policies; all services are of one version."""
    told: dict[Place, Any] = {}
    for place in enforcers + consoles:
        try:
            answer = ask(place, "GET", "/v1/status", ca=ca, headers={"Authorization": f"Bearer {token}"})
        except (OSError, http.client.HTTPException) as error:
            yield Finding("replicas", "FAILED", f"{place} does not answer: {why(error)}")
            continue
        if answer.status != 200:
            yield Finding("replicas", "FAILED", f"{place}/v1/status: {answer.status} {answer.json.get('detail', '')}")
            continue
        told[place] = answer.json
    versions = _by(told, lambda status: status["version"])
    if len(versions) == 1:
        yield Finding("versions", "ok", f"all are {next(iter(versions))}")
    elif versions:
        yield Finding("versions", "FAILED", f"more than one: {_listed(versions)}")
    of_enforcers = {place: told[place] for place in enforcers if place in told}
    if not of_enforcers:
        return
    ids = _by(of_enforcers, lambda status: status["replica"])
    for replica, places in ids.items():
        if len(places) > 1:
            yield Finding(
                "replicas", "FAILED", f"{' and '.join(map(str, places))} are one and the same replica, {replica}"
            )
    live = _by(of_enforcers, lambda status: len(status["replicas"]))
    if set(live) == {len(ids)}:
        yield Finding("replicas", "ok", f"each of {len(ids)} enforcers sees {len(ids)}")
    elif len(live) == 1 and len(enforcers) == 1:
        yield Finding(
            "replicas", "ok", f"the one that was asked sees {next(iter(live))}; name the others with --enforcer"
        )
    else:
        yield Finding("replicas", "FAILED", f"{len(ids)} were asked; they see {_listed(live)}")
    policies = _by(of_enforcers, lambda status: ", ".join(sorted(one["policy_version"] for one in status["policies"])))
    if len(policies) > 1:
        yield Finding("policies", "FAILED", f"replicas have different ones in force: {_listed(policies)}")
    elif not next(iter(policies)):
        yield Finding("policies", "FAILED", "none is in force, so everything is denied")
    else:
        yield Finding("policies", "ok", f"in force everywhere: {next(iter(policies))}")


def _by(told: dict[Place, Any], what: Any) -> dict[Any, list[Place]]:
    groups: defaultdict[Any, list[Place]] = defaultdict(list)
    for place, status in told.items():
        groups[what(status)].append(place)
    return dict(groups)


def _listed(groups: dict[Any, list[Place]]) -> str:
    return "; ".join(f"{value or 'none'} at {', '.join(map(str, places))}" for value, places in groups.items())


def doctor(enforcer: Place, console: Place, token: str, ca: str | None) -> Iterator[Finding]:
    """`banksman doctor`: every step, and a probe through the whole path."""
    command = shutil.which("banksman")
    argv = [command] if command else [sys.executable, "-m", "banksman.cli.main"]
    if not command and not find_spec("banksman"):
        yield Finding("doctor", "skipped", "there is no `banksman` here: `pip install .` in its clone")
        return
    environment = {name: value for name, value in os.environ.items() if name != "BANKSMAN_OPERATOR_TOKEN_FILE"} | {
        "BANKSMAN_URL": enforcer.url, "BANKSMAN_CONSOLE_URL": console.url, "BANKSMAN_OPERATOR_TOKEN": token,
        **({"BANKSMAN_CA_FILE": ca} if ca else {}),
    }  # fmt: skip
    try:
        ran = subprocess.run(  # noqa: S603 - our own command
            [*argv, "doctor", "--json"], capture_output=True, text=True, check=False, timeout=DOCTOR_S, env=environment
        )
    except subprocess.TimeoutExpired:
        yield Finding("doctor", "FAILED", f"`banksman doctor` did not end within {DOCTOR_S:g} s")
        return
    try:
        steps = json.loads(ran.stdout)["steps"]
    except (ValueError, KeyError):
        yield Finding("doctor", "FAILED", f"`banksman doctor` ended with {ran.returncode}: {ran.stderr.strip()[-500:]}")
        return
    for step in steps:
        if step["state"] == "failed":
            mend = f" -> {step['do']}" if step["do"] else ""
            yield Finding(f"doctor: {step['name']}", "FAILED", f"{step['text']}{mend}")
    left_out = [step["name"] for step in steps if step["state"] == "skipped"]
    if left_out:
        yield Finding("doctor", "skipped", f"not looked at: {', '.join(left_out)}")
    if not ran.returncode:
        yield Finding("doctor", "ok", f"{len(steps) - len(left_out)} steps: the whole path is open")
