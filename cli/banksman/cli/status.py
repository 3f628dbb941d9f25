"""`banksman status`."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from banksman.cli import client, health, show
from banksman.cli.main import exit_code
from banksman.errors import BanksmanError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Mapping, Sequence

HELP = """Is anything NOT enforcing, lagging, undelivered or rejected? What is wrong comes first, in red; then the enforcers,
the policies in force, the archiver and the last hour's findings. The enforcer and the console are asked apart: when one is
away, the other still tells.

Exit code: 0 all is well, 1 something is wrong, 3 the token is refused, 4 somebody does not answer."""
EXAMPLES = """
  banksman status
  banksman status --json | jq -r '.wrong[].text'
  banksman status > /dev/null || echo "look at banksman"
"""
TIMEOUT_S = 5.0
LOOK_AGAIN_S = 1.5


@dataclass
class Heard:
    """What the two said, and who did not say anything."""

    enforcer: client.Answer | None = None
    console: client.Answer | None = None
    before: client.Answer | None = None
    """The console a moment earlier, where it takes two looks."""
    findings: Sequence[Mapping[str, Any]] = ()
    away: dict[str, BanksmanError] = field(default_factory=dict)

    def wrong(self) -> Iterator[health.Wrong]:
        """Everything that is wrong, the most urgent first."""
        if self.enforcer is not None:
            yield from health.of_enforcer(self.enforcer)
        if self.console is not None:
            yield from health.of_console(self.console, self.before)
        yield from health.of_findings(self.findings, self.enforcer)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    show.json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Do it."""
    heard = ask()
    wrong = list(heard.wrong())
    notes = list(health.notes_on_enforcer(heard.enforcer)) if heard.enforcer else []
    if args.json:
        show.emit(
            {
                "ok": not (wrong or heard.away),
                "wrong": [{"where": one.where, "text": one.text, "do": one.do or None} for one in wrong],
                "notes": notes,
                "away": {name: str(error) for name, error in heard.away.items()},
                "enforcer": heard.enforcer,
                "console": heard.console,
                "findings": heard.findings,
            }
        )
    else:
        _tell(heard, wrong, notes)
    return max([1 if wrong else 0, *map(exit_code, heard.away.values())])


def ask() -> Heard:
    """Ask both; neither hides the other. Refused: there is no token. InvalidSetting: an address is none."""
    heard = Heard()
    enforcer, console = client.enforcer(timeout=TIMEOUT_S), client.console(timeout=TIMEOUT_S)
    try:
        heard.enforcer = enforcer.get("/v1/status")
    except BanksmanError as error:
        heard.away["enforcer"] = error
    try:
        heard.console = console.get("/v1/status")
        if health.may_stand_still(heard.console):
            time.sleep(LOOK_AGAIN_S)  # whether an archiver moves is seen in two looks
            heard.before, heard.console = heard.console, console.get("/v1/status")
        if heard.console["clickhouse"]["reachable"]:
            heard.findings = console.get("/v1/findings", {"since": "1h", "limit": 1000})["findings"]
    except BanksmanError as error:
        heard.away["console"] = error
    return heard


def _tell(heard: Heard, wrong: Sequence[health.Wrong], notes: Sequence[str]) -> None:
    for name, error in heard.away.items():
        show.say(f"{name}: {error}", "red")
    for one in wrong:
        show.say(f"{one.where}: {one.text}", "red")
        if one.do:
            show.say(f"  -> {one.do}", "dim")
    if not wrong and not heard.away:
        show.say("all is well", "green")
    for text in notes:
        show.say(text, "yellow")
    print()
    show.pairs([*_enforcer(heard.enforcer), *_console(heard.console, heard.findings)])
    if heard.enforcer:
        _tables(heard.enforcer)


def _enforcer(status: Mapping[str, Any] | None) -> Iterator[tuple[str, object]]:
    if status is None:
        return
    yield (
        "enforcer",
        f"{status['address']}, version {status['version']}, up since {show.moment(status['started'])[:19]}",
    )
    answers = status["decisions"]
    yield (
        "decisions",
        ", ".join(f"{answers.get(word, 0):,} {word}" for word in ("allow", "deny", "approve")) + " since then",
    )
    yield "known", f"{show.count(status['agents'], 'agent')}, {show.count(status['operators'], 'operator')}"


def _console(status: Mapping[str, Any] | None, findings: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, object]]:
    if status is None:
        return
    clickhouse, archiver = status["clickhouse"], status["archiver"]
    if clickhouse["reachable"]:
        newest = (
            f", the newest {show.age(clickhouse['newest_age_s'])}" if clickhouse["newest_age_s"] is not None else ""
        )
        yield "archived", f"{show.count(clickhouse['rows'], 'record')}{newest}"
    yield "archiver", "not known" if archiver is None else f"{show.count(archiver['lag'] or 0, 'record')} behind"
    if status["dead_letters"]:
        yield "dead letters", f"{status['dead_letters']:,} (records that can never be stored; their findings say why)"
    yield "last hour", show.count(len({one["fingerprint"] for one in findings}), "finding")


def _tables(status: Mapping[str, Any]) -> None:
    print()
    show.table(
        ("enforcer", "address", ">behind", ">heard"),
        [(peer["replica"], peer["address"], peer["lag"], show.age(peer["heard_s_ago"])) for peer in status["replicas"]],
        empty="no live enforcer is known",
    )
    if status["policies"]:
        print()
        show.table(
            ("project", "policy in force", "mode", "owner", "file", ">for"),
            [
                (
                    one["project"], one["policy_version"], one["mode"], one["owner"], one["file"],
                    show.seconds(one["age_s"]),
                )
                for one in status["policies"]
            ],
        )  # fmt: skip
