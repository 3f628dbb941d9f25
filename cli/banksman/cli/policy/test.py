"""`banksman policy test`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from banksman.cli import show
from banksman.cli.policy import files
from banksman.errors import InvalidInput

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from banksman.policy.cases import Ran

HELP = """Whether policies answer as the files *_test.yaml beside them expect: every agent that a test names is asked about
every operation, and what is not listed must be denied; who is not in the policy is an error, but for somebody-else. The clock
stands where the file says. Exit code 1: an answer is another one, or fewer rules than --coverage says decided anything."""
EXAMPLES = """
  banksman policy test
  banksman policy test policies/billing_test.yaml --json
  banksman policy test --coverage 100
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    files.argument(parser, "test files")
    parser.add_argument(
        "--coverage", type=_percent, metavar="PERCENT", help="the least share of rules that have to decide a case"
    )
    show.json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Do it."""
    from banksman.policy.cases import run as run_file

    ran = [run_file(path) for path in files.found(args.paths, tests=True)]
    rules = sum(len(list(one.policy.every_rule())) for one in ran)
    uncovered = sum(len(one.uncovered) for one in ran)
    share = 100.0 * (rules - uncovered) / rules if rules else 100.0
    if args.json:
        show.emit({"files": [_told(one) for one in ran], "coverage": round(share, 1)})
    else:
        _say(ran)
        cases, failed = sum(len(one.results) for one in ran), sum(len(one.failed) for one in ran)
        decided = f"{rules - uncovered} of {show.count(rules, 'rule')} decided one"
        show.say(f"{show.count(cases, 'case')}, {failed} not as expected; {decided}")
    if args.coverage is not None and share < args.coverage:
        show.note(f"banksman policy test: {share:.1f} % of the rules decided a case, {args.coverage:g} % are wanted")
        return 1
    return 1 if any(one.failed for one in ran) else 0


def _percent(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 100:
        raise InvalidInput("must be from 0 to 100", field="--coverage")
    return value


def _say(ran: Sequence[Ran]) -> None:
    from banksman.policy.cases import sentence

    for one in ran:
        for result in one.failed:
            show.say(sentence(one.file, result), "red")
        for rule in one.uncovered:
            show.say(f"{one.file}: no case is decided by {rule.id}", "yellow")


def _told(ran: Ran) -> dict[str, Any]:
    return {
        "file": str(ran.file), "policy_version": ran.policy.version,
        "cases": [
            {
                "test": one.case.test, "agent": one.case.agent, "operation": one.case.operation, "line": one.case.line,
                "decision": one.verdict.decision, "rule": one.verdict.ruling.rule, "reason": one.verdict.reason,
                "wrong": one.why or None,
            }
            for one in ran.results
        ],
        "uncovered": [rule.id for rule in ran.uncovered],
    }  # fmt: skip
