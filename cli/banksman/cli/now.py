"""`banksman now AGENT`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from banksman.cli import client, show, words
from banksman.errors import BanksmanError, InvalidInput

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Mapping

HELP = """What an agent is doing right now: its state, session, the call that is open and for how long, the last decision and
the rule behind it, tokens and cost of today's limits, and its last five actions."""
EXAMPLES = """
  banksman now claude-invoice-01
  banksman now claude-invoice-01 --json
  banksman now buyer --replay march-incident     in what `banksman replay` sent, instead of live
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("agent", help="its name; `banksman agents` lists them")
    parser.add_argument("--replay", metavar="RUN", help="in this replay")
    show.json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Do it."""
    answer = ask(client.console(), args.agent, args.replay)
    if args.json:
        show.emit(answer)
        return 0
    tell(answer)
    return 0


def ask(console: client.Client, agent: str, replay: str | None = None) -> client.Answer:
    """The console's answer. InvalidInput: there is no such agent; names one that is much like it."""
    try:
        return console.get(f"/v1/agents/{client.part(agent)}/now", {"replay": replay})
    except client.Problem as problem:
        if problem.status != 404:
            raise
        raise InvalidInput(
            f"there is no agent {agent!r}{_like(console, agent)}; `banksman agents` lists them"
        ) from None


def tell(answer: Mapping[str, Any]) -> None:
    """The answer for people."""
    run_ = f" in the replay {answer['replay']}" if answer["replay"] else ""
    show.say(f"{answer['agent']}: {answer['state'].replace('_', ' ')}{run_}", _style(answer["state"]))
    show.pairs(_pairs(answer))
    actions = answer["last_actions"]
    if actions:
        print()
        show.table(
            ("time (UTC)", "what", "decision", "rule", "result", ">took", ">tokens"),
            [
                (
                    words.clock(one["time"], answer["last_seen"]), words.what(one), one["decision"], words.ruling(one),
                    "open" if one["open"] else one["status"], words.milliseconds(one["duration_ms"]),
                    words.number(one["tokens"]),
                )
                for one in actions
            ],
        )  # fmt: skip


def _pairs(answer: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    yield "project", f"{answer['project']}, owner {answer['owner'] or 'unknown'}" if answer["project"] else None
    for control in answer["controls"]:
        yield control["kind"], f"by {control['by']} at {show.moment(control['at'])}: {control['reason']}"
    if answer["session"]:
        yield "session", f"{answer['session']}, since {show.moment(answer['session_started'])}"
        yield "last seen", f"{show.moment(answer['last_seen'])} (state since {show.moment(answer['since'])})"
    if answer["open_call"]:
        more = f" (and {answer['open_calls'] - 1} more)" if answer["open_calls"] > 1 else ""
        yield (
            "open call",
            f"{words.operation(answer['open_call'])}, for {show.seconds(answer['open_call']['age_s'])}{more}",
        )
    if answer["approval"]:
        yield (
            "waits for",
            f"approval {answer['approval']['approval']}, until {show.moment(answer['approval']['expires_at'])}",
        )
    last = answer["last_decision"]
    if last:
        tier = f", tier {last['tier']}" if last["tier"] else ""
        yield (
            "last decision",
            f"{last['decision']} by {words.ruling(last)}{tier}, {show.age(last['age_s'])}: {words.operation(last)}",
        )
        yield "policy", last["policy_version"]
    yield from _spent(answer["tokens"])


def _spent(tokens: Mapping[str, Any] | None) -> Iterator[tuple[str, object]]:
    if not tokens:
        return
    used, limit = tokens["used"], tokens["limit"]
    of = f" of {limit:,} ({used / limit:.0%})" if limit else ""
    yield "tokens", f"{used:,}{of} this {tokens['window']} ({tokens['timezone']})"
    if tokens["cost_usd"] is not None or tokens["unpriced_calls"]:
        of = f" of {words.money(tokens['limit_usd'])}" if tokens["limit_usd"] else ""
        unpriced = f", {show.count(tokens['unpriced_calls'], 'call')} unpriced" if tokens["unpriced_calls"] else ""
        yield "cost", f"{words.money(tokens['cost_usd']) or 'not known'}{of}{unpriced}"


def _style(state: str) -> str:
    return show.STYLES.get(state, "bold")


def _like(console: client.Client, agent: str) -> str:
    try:
        return words.guess(agent, (one["agent"] for one in console.get("/v1/agents")["agents"]))
    except BanksmanError:  # the answer is "there is none" all the same
        return ""
