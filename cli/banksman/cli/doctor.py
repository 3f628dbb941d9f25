"""`banksman doctor [AGENT]`."""

from __future__ import annotations

import math
import shutil
import stat
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from banksman import settings
from banksman.cli import client, health, now, show, words
from banksman.cli.health import Wrong
from banksman.cli.main import exit_code
from banksman.errors import BanksmanError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterable, Iterator

HELP = """Follow the path of an action from here to the audit log, step by step: settings, token, enforcer, Kafka, policies,
archiver, ClickHouse, console, notifier, disk. Says where it stops and what to do there. A token with the role operator also
sends a probe, a record that is told to nobody, and looks for it behind everybody. With AGENT also what stands in that
agent's way.

Exit code: 0 the whole path is open, 1 something is wrong, 2 a setting is wrong, 3 the token is missing or refused,
4 somebody does not answer."""
EXAMPLES = """
  banksman doctor
  banksman doctor claude-invoice-01
  banksman doctor --json | jq -r '.steps[] | select(.state == "failed") | .do'
"""
TIMEOUT_S = 5.0
LOOK_AGAIN_S = 1.5
PROBE_S, PROBE_AGAIN_S, NEWER_S = 10.0, 0.25, 0.3
"""How long a probe may be on its way, how often it is looked for, and by how much a mark has to be newer."""
LITTLE_BYTES = 1 << 30


@dataclass(frozen=True)
class Step:
    """One step of the path. `do`: what to do where it failed; `code`: the exit code that it means."""

    name: str
    state: Literal["ok", "failed", "skipped"]
    text: str
    do: str = ""
    code: int = 0


class Skipped(str):
    """Why a step was not taken."""

    __slots__ = ()


class Found:
    """What the steps found out, for the steps behind them."""

    def __init__(self, agent: str | None) -> None:
        self.agent = agent
        self.known = settings.Client()
        self.token = self.origin = ""
        self.enforcer = self.console = client.Answer()
        """Their `/v1/status`."""
        self.probe = client.Answer()
        """What the enforcer said of the probe."""
        self.sent = self.asked = 0.0
        """When the probe was sent, and before that the enforcer's status asked for."""

    def asks(self, service: Literal["enforcer", "console"]) -> client.Client:
        """A client of one of the two."""
        known = self.known
        base, variable = {
            "enforcer": (known.url, "BANKSMAN_URL"),
            "console": (known.console_url, "BANKSMAN_CONSOLE_URL"),
        }[service]
        return client.Client(base, self.token, variable=variable, ca_file=known.ca_file, timeout=TIMEOUT_S)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("agent", nargs="?", help="follow the path of this agent's actions")
    show.json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Do it."""
    steps: list[Step] = []
    for step in walk(args.agent):
        steps.append(step)
        if not args.json:
            show.say(f"{step.state:<8} {step.name:<11} {step.text}", show.STYLES[step.state])
            if step.do:
                show.say(f"{'':<20} -> {step.do}")
    first = next((step for step in steps if step.state == "failed"), None)
    if args.json:
        told = [{"name": one.name, "state": one.state, "text": one.text, "do": one.do or None} for one in steps]
        show.emit({"ok": first is None, "stops_at": first.name if first else None, "steps": told})
    elif first is None:
        show.say("\nthe whole path is open", "green")
    else:
        show.say(f"\nit stops at: {first.name}", "red")
    return max(step.code for step in steps)


def walk(agent: str | None) -> Iterator[Step]:
    """The steps, each as it is taken. What rests on a failed one is skipped."""
    found, failed = Found(agent), set[str]()
    for name, needs, look in PATH:
        if agent is None and name in OF_AN_AGENT:
            continue
        missing = next((one for one in needs if one in failed), None)
        if missing is not None:
            failed.add(name)
            yield Step(name, "skipped", f"rests on {missing}")
            continue
        try:
            for said in look(found):
                if isinstance(said, Skipped):
                    failed.add(name)
                    yield Step(name, "skipped", said)
                elif isinstance(said, Wrong):
                    failed.add(name)
                    yield Step(name, "failed", said.text, said.do, 1)
                else:
                    yield Step(name, "ok", said)
        except BanksmanError as error:
            failed.add(name)
            yield Step(name, "failed", str(error), _advice(error), exit_code(error))


def _settings(found: Found) -> Iterator[str | Wrong]:
    found.known = settings.load(settings.Client)
    yield f"enforcer {found.known.url}, console {found.known.console_url}"


def _token(found: Found) -> Iterator[str | Wrong]:
    token = client.find_token(found.known)
    found.token, found.origin = token.value, token.origin
    yield f"from {token.origin}"


def _token_file(found: Found) -> Iterator[str | Wrong]:
    file = Path(found.origin)
    if found.origin == "BANKSMAN_OPERATOR_TOKEN":
        return
    mode = stat.S_IMODE(file.stat().st_mode)
    if mode & 0o077:
        yield Wrong("token", f"{file} can be read by others (mode {mode:04o})", f"chmod 600 {file}")
    else:
        yield "nobody else can read it"


def _enforcer(found: Found) -> Iterator[str | Wrong]:
    found.asks("enforcer").get("/healthz")
    yield f"answers at {found.known.url}"


def _ready(found: Found) -> Iterator[str | Wrong]:
    try:
        found.asks("enforcer").get("/readyz")
        yield "Kafka acknowledges, the lease is valid: it decides"
    except client.Problem as problem:
        yield Wrong("ready", f"decides nothing: {problem.detail or problem}", health.mend(problem.detail))


def _operator(found: Found) -> Iterator[str | Wrong]:
    found.asked = time.monotonic()
    found.enforcer = found.asks("enforcer").get("/v1/status")
    yield f"the token is known; live: {show.count(len(found.enforcer['replicas']), 'enforcer')}"


def _policies(found: Found) -> Iterator[str | Wrong]:
    wrong = [one for one in health.of_enforcer(found.enforcer) if one.where == "policy"]
    yield from _or(wrong, f"in force: {words.listed(one['policy_version'] for one in found.enforcer['policies'])}")


def _records(found: Found) -> Iterator[str | Wrong]:
    wrong = [one for one in health.of_enforcer(found.enforcer) if one.where not in ("policy", "enforcer", "processors")]
    yield from _or(wrong, "every record is delivered, the enforcers agree")


def _agent(found: Found) -> Iterator[str | Wrong]:
    name = str(found.agent)
    enrolled = {one["agent"]: one for one in found.asks("enforcer").get("/v1/agents")["agents"]}
    if name not in enrolled:
        yield Wrong(
            "agent",
            f"nobody enrolled {name!r}{words.guess(name, enrolled)}",
            f"banksman agents add {name} --project PROJECT --owner OWNER",
        )
        return
    project = enrolled[name]["project"]
    policies = {one["project"]: one for one in found.enforcer["policies"]}
    if project not in policies:
        yield Wrong("agent", f"its project {project} has no policy in force: all it asks is denied", "write one")
        return
    question = {"project": project, "agent": name, "service": "banksman", "action": "doctor"}
    verdict = found.asks("enforcer").post("/v1/explain", question)["verdict"]
    if verdict["ruling"]["reason"] == "unknown_agent":
        yield Wrong(
            "agent",
            f"the policy of {project} does not name it: all it asks is denied",
            f"add {name} under `agents:` in {policies[project]['file']}",
        )
        return
    yield f"enrolled in {project}, under {policies[project]['policy_version']}"


def _console(found: Found) -> Iterator[str | Wrong]:
    found.console = found.asks("console").get("/v1/status")
    wrong = [one for one in health.of_console(found.console) if one.where == "console"]
    yield from _or(wrong, f"answers at {found.known.console_url}")


def _kafka(found: Found) -> Iterator[str | Wrong]:
    wrong = [one for one in health.of_console(found.console) if one.where == "kafka"]
    yield from _or(wrong, "the console reads from it, too")


def _clickhouse(found: Found) -> Iterator[str | Wrong]:
    wrong = [one for one in health.of_console(found.console) if one.where == "clickhouse"]
    yield from _or(wrong, f"answers; {show.count(found.console['clickhouse']['rows'] or 0, 'record')} archived")


def _archiver(found: Found) -> Iterator[str | Wrong]:
    before = None
    if health.may_stand_still(found.console):
        time.sleep(LOOK_AGAIN_S)  # whether it moves is seen in two looks
        before, found.console = found.console, found.asks("console").get("/v1/status")
    wrong = [one for one in health.of_console(found.console, before) if one.where == "archiver"]
    archiver = found.console["archiver"]
    yield from _or(wrong, "not known" if archiver is None else f"{show.count(archiver['lag'] or 0, 'record')} behind")


def _processors(found: Found) -> Iterator[str | Wrong]:
    wrong = [one for one in health.of_enforcer(found.enforcer) if one.where == "processors"]
    yield from _or(wrong, "what agents do is counted")


def _notifier(found: Found) -> Iterator[str | Wrong]:
    wrong = [one for one in health.of_console(found.console) if one.where == "notifier"]
    waiting = (found.console["notifier"] or {}).get("waiting_s")
    yield from _or(
        wrong, "not known" if waiting is None else f"what was found is told{', or about to be' * bool(waiting)}"
    )


def _probe(found: Found) -> Iterator[str | Wrong]:
    found.sent = time.monotonic()
    try:
        found.probe = found.asks("enforcer").post("/v1/probe", {})
    except client.Problem as refusal:
        if refusal.status not in (403, 429):
            raise
        takes_role = "it takes a token with the role operator"
        yield Skipped(takes_role if refusal.status == 403 else "one was sent a moment ago")
    else:
        yield f"acknowledged by Kafka after {found.probe['took_ms']:.0f} ms"


def _archived(found: Found) -> Iterator[str | Wrong]:
    def there() -> bool:
        answer = found.asks("console").get("/v1/findings?detector=probe&limit=20")
        return any(one["id"] == found.probe["id"] for one in answer["findings"])

    yield from _within(found.sent, there, "the probe is in the audit log", "archiver")


def _counted(found: Found) -> Iterator[str | Wrong]:
    before = _counted_to(found.enforcer, found.asked)

    def there() -> bool:
        """Whether every partition has a newer mark than before: clocks that differ move both alike."""
        now = time.monotonic()
        after = _counted_to(found.asks("enforcer").get("/v1/status"), now)
        return all(to > before.get(partition, -math.inf) + NEWER_S for partition, to in after.items())

    yield from _within(time.monotonic(), there, "what agents do goes on being counted", "processors")


def _told(found: Found) -> Iterator[str | Wrong]:
    def there() -> bool:
        notifier = found.asks("console").get("/v1/status")["notifier"]
        return notifier is not None and (notifier["next"] or 0) > found.probe["offset"]

    yield from _within(found.sent, there, "all before the probe is told", "notifier")


def _counted_to(status: client.Answer, now: float) -> dict[int, float]:
    """Partition -> up to when all is counted, in seconds of a clock of our own."""
    return {
        one["partition"]: -math.inf if one["counted_s_ago"] is None else now - one["counted_s_ago"]
        for one in status["budgets"]["counted"]
    }


def _within(since: float, there: Callable[[], bool], fine: str, service: str) -> Iterator[str | Wrong]:
    """Look until it is there, or its time is over."""
    while not there():
        if time.monotonic() - since > PROBE_S:
            yield Wrong(service, f"not within {PROBE_S:g} s", f"is `banksman serve {service}` running? Read its log")
            return
        time.sleep(PROBE_AGAIN_S)
    yield f"{fine}, within {(time.monotonic() - since) * 1000:.0f} ms"


def _seen(found: Found) -> Iterator[str | Wrong]:
    answer = now.ask(found.asks("console"), str(found.agent))
    for one in answer["controls"]:
        yield Wrong(
            "seen", f"{one['kind']} by {one['by']}: {one['reason']}", "all it asks is denied until that is lifted"
        )
    if answer["state"] == "never_seen":
        yield Wrong(
            "seen",
            "nothing was ever received of it",
            "does it run, with the enforcer in BANKSMAN_URL and its credential in BANKSMAN_TOKEN?",
        )
    else:
        yield f"{answer['state']}, last seen {show.moment(answer['last_seen'])} in session {answer['session']}"


def _disk(_found: Found) -> Iterator[str | Wrong]:
    folder = Path(settings.load(settings.Local).data)
    if not folder.is_dir():
        yield f"there is no {folder} here, so nothing is kept on this disk"
        return
    free = shutil.disk_usage(folder).free
    if free < LITTLE_BYTES:
        text = f"{free / 1e6:,.0f} MB are free where {folder} is"
        yield Wrong("disk", text, "make room: Kafka and ClickHouse stop when it is full")
    else:
        yield f"{free / 1e9:,.1f} GB are free where {folder} is"


PATH: tuple[tuple[str, tuple[str, ...], Callable[[Found], Iterable[str | Wrong]]], ...] = (
    ("settings", (), _settings),
    ("token", ("settings",), _token),
    ("token file", ("token",), _token_file),
    ("enforcer", ("settings",), _enforcer),
    ("ready", ("enforcer",), _ready),
    ("operator", ("token", "enforcer"), _operator),
    ("policies", ("operator",), _policies),
    ("agent", ("operator",), _agent),
    ("records", ("operator",), _records),
    ("console", ("token",), _console),
    ("kafka", ("console",), _kafka),
    ("clickhouse", ("console",), _clickhouse),
    ("archiver", ("kafka", "clickhouse"), _archiver),
    ("processors", ("operator", "ready"), _processors),
    ("notifier", ("kafka",), _notifier),
    ("probe", ("operator", "ready"), _probe),
    ("archived", ("probe", "archiver"), _archived),
    ("counted", ("processors",), _counted),
    ("told", ("probe", "notifier"), _told),
    ("seen", ("agent", "clickhouse"), _seen),
    ("disk", ("settings",), _disk),
)
"""Name of a step, the steps that it rests on, what it looks at."""
OF_AN_AGENT = ("agent", "seen")


def _or(wrong: list[Wrong], fine: str) -> Iterator[str | Wrong]:
    yield from wrong
    if not wrong:
        yield fine


def _advice(error: BanksmanError) -> str:
    code = exit_code(error)
    if isinstance(error, client.Problem):
        return "an operator's token is needed, with any role" if code == 3 else ""
    if code == 3:
        return "set BANKSMAN_OPERATOR_TOKEN, or BANKSMAN_OPERATOR_TOKEN_FILE to a file that holds one"
    return "start it, or set its address" if isinstance(error, client.Nobody) else ""
