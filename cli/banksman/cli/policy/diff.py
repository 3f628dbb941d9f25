"""`banksman policy diff`."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from banksman.cli import show
from banksman.cli.policy import history
from banksman.cli.policy.backtest import say, told_of
from banksman.errors import InvalidInput

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Sequence

    from banksman.policy.backtest import Report
    from banksman.policy.diff import Answer, Change
    from banksman.policy.rules import Policy

HELP = """Which operations get another answer: found by going through all that the two policies can tell apart, not by comparing
text. Two files that say the same in other words differ in nothing. Each line stands for all operations that the rules treat
alike, and names one. Exit code 1: some answer, or some setting, is another one."""
EXAMPLES = """
  banksman policy diff old.yaml new.yaml
  git show main:policies/billing.yaml > /tmp/old.yaml && banksman policy diff /tmp/old.yaml policies/billing.yaml
  banksman policy diff old.yaml new.yaml --history 7d
  banksman policy diff old.yaml new.yaml --json
"""
SHOWN = 3


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("old", help="the policy file as it was")
    parser.add_argument("new", help="as it is to be")
    parser.add_argument(
        "--history", metavar="TIME", help="count also what was really asked since then (7d, or RFC 3339)"
    )
    show.json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Do it."""
    from banksman.policy.diff import diff, settings
    from banksman.policy.load import load

    old, new = (load(_read(path), path).policy for path in (args.old, args.new))
    if old.project != new.project:
        raise InvalidInput(f"is about {new.project}, and {args.old} about {old.project}", field=args.new)
    changes, others = list(diff(old, new)), list(settings(old, new))
    report = _history(old, new, args.history) if args.history else None
    if args.json:
        told = {"changes": [_told(one) for one in changes], "settings": [one._asdict() for one in others]}
        show.emit(told | ({"history": told_of(report)} if report is not None else {}))
    else:
        _say(changes)
        for one in others:
            show.say(f"{one.about}: {one.what} is {one.after}, was {one.before}")
        if not changes and not others:
            show.say("every operation gets the same answer")
        if report is not None:
            say(report, f"{new.version} in place of {old.version}", args.history)
    return 1 if changes or others else 0


def _history(old: Policy, new: Policy, since: str) -> Report:
    """What was really asked, and gets another answer by the new policy than by the old one."""
    from banksman.policy.backtest import Backtest, Needs, facts_of, needs
    from banksman.policy.compile import CompiledPolicy

    now = datetime.now(UTC)
    before, after = CompiledPolicy(old), Backtest(new)
    wanted = Needs(*map(any, zip(needs(old), needs(new), strict=True)))
    with history.bar(f"decisions of {new.project}") as progress:
        for several in history.recorded(new.project, history.since(since, now), now, wanted, progress=progress):
            for one in several:
                asked = one.service, one.action, one.resource, one.branch
                ruling = before.decide(one.agent, *asked, facts_of(old, one)).ruling
                after.take([one._replace(said=ruling.shadow or ruling.decision)])
    return after.done()


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InvalidInput(f"cannot be read: {error.strerror}", field=path) from None


def _told(one: Change) -> dict[str, Any]:
    answers = {
        name: None if said is None else said._asdict() for name, said in (("before", one.before), ("after", one.after))
    }
    return one._asdict() | answers | {"kind": one.kind}


def _say(changes: Sequence[Change]) -> None:
    groups: dict[tuple[str, ...], list[Change]] = {}
    for one in changes:
        key = one.kind, one.agent, one.service, one.action, _arrow(one), one.under
        groups.setdefault(key, []).append(one)
    for kind, style in (("looser", "red"), ("unknown", "red"), ("stricter", "yellow"), ("other", "")):
        for (is_kind, agent, service, action, arrow, under), several in groups.items():
            if is_kind == kind:
                where = f" where {under}" if under else ""
                show.say(f"{kind:<8} {agent}: {service} {action}: {arrow}{where}", style)
                for line in _examples(several):
                    show.say(f"           e.g. {line}")


def _examples(several: Sequence[Change]) -> Iterable[str]:
    named = [
        " ".join(part or "-" for part in (one.resource, one.branch)) for one in several if one.resource or one.branch
    ]
    yield from named[:SHOWN]
    if len(named) > SHOWN:
        yield f"{len(named) - SHOWN} more of another kind"


def _arrow(one: Change) -> str:
    if one.before is None or one.after is None:
        return "perhaps another answer"
    if one.before.decision != one.after.decision:
        return f"{one.before.decision} -> {one.after.decision}"
    return f"{_said(one.before)} -> {_said(one.after)}"


def _said(answer: Answer) -> str:
    text = f"{answer.decision}, tier {answer.tier}"
    if answer.shadow:
        text += f", enforced it would be {answer.shadow}"
    for any_, least, expires in answer.approvers:
        text += f", {least} of {' or '.join(any_) or 'any approver'} within {expires} s"
    return text
