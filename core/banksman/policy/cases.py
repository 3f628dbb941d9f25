"""`*_test.yaml`: what a policy is expected to answer, and whether it does. The same engine as the enforcer's answers.

    policy: billing-automation.yaml          # beside this file; else the file of the same name without _test
    at: "2026-12-01T10:00:00+01:00"          # the time that it is; each test may have its own
    operations:
      push a feature: {service: git, action: push, resource: acme/billing, branch: feature/x}
      refund a lot:   {service: stripe, action: "refunds:create", args: {amount: 9000}}
    tests:
      - name: the invoice agent
        expect:
          claude-invoice-01: {push a feature: allow}
          somebody-else: {}

Every agent that a test names is asked about every operation (or those that the test lists); what is not listed must be denied.
A name that the policy does not know would pass so by its typing error. It is refused, but for `somebody-else`, and who stands
under `strangers`: they must be unknown to it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from banksman.canonical import canonical
from banksman.errors import InvalidInput, InvalidPolicy
from banksman.policy.compile import Bundle, CompiledPolicy
from banksman.policy.conditions import attributes_of, moment
from banksman.policy.diff import SOMEBODY_ELSE
from banksman.policy.document import read, spell
from banksman.policy.explain import explain
from banksman.policy.holds import Facts
from banksman.policy.load import load, place_of
from banksman.policy.nearest import nearest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from banksman.policy.rules import Policy, Rule
    from banksman.policy.verdict import Verdict

SUFFIX = "_test.yaml"
Decision = Literal["allow", "approve", "deny"]


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class OperationPart(_Part):
    """What is asked."""

    service: str
    action: str
    resource: str | None = None
    branch: str | None = None
    args: dict[str, Any] | None = None


class ExpectPart(_Part):
    """More than the decision alone. What is None is not looked at."""

    decision: Decision
    rule: str | None = None
    reason: str | None = None
    tier: Literal[1, 2, 3, 4] | None = None
    shadow: Decision | None = None


class TestPart(_Part):
    """One table of agents and operations."""

    name: str
    at: str | None = None
    operations: Annotated[list[str], Field(min_length=1)] | None = None
    expect: Annotated[dict[str, dict[str, Decision | ExpectPart]], Field(min_length=1)]


class TestFile(_Part):
    """A whole file."""

    policy: str | None = None
    at: str | None = None
    strangers: Annotated[list[str], Field(min_length=1)] = []
    operations: Annotated[dict[str, OperationPart], Field(min_length=1)]
    tests: Annotated[list[TestPart], Field(min_length=1)]


class Case(NamedTuple):
    """One agent, one operation, one expectation; `line`: where it stands in the file."""

    test: str
    agent: str
    operation: str
    asked: OperationPart
    at: float | None
    expected: ExpectPart
    line: int


class Result(NamedTuple):
    """What came of a case. `why`: "" when it is as expected."""

    case: Case
    verdict: Verdict
    why: str


@dataclass(frozen=True)
class Suite:
    """A test file whose cases can be asked, one by one and in any order."""

    file: Path
    policy: Policy
    cases: tuple[Case, ...]
    bundle: Bundle

    def ask(self, case: Case) -> Result:
        """Ask the policy."""
        facts = Facts(case.asked.args, case.at)
        asked = case.asked.service, case.asked.action, case.asked.resource, case.asked.branch
        verdict = self.bundle.decide(self.policy.project, case.agent, *asked, facts)
        why = _different(case.expected, verdict)
        if why:
            told = explain(self.bundle, self.policy.project, case.agent, *asked, facts)
            why += f": {told.because}" + (f"; it would take {told.mend}" if told.mend else "")
        return Result(case, verdict, why)


@dataclass
class Ran:
    """A file's results, and which rules of its policy decided how many cases."""

    file: Path
    policy: Policy
    results: list[Result] = field(default_factory=list)
    decided: Counter[str] = field(default_factory=Counter)

    @property
    def failed(self) -> list[Result]:
        """Those that are not as expected."""
        return [one for one in self.results if one.why]

    @property
    def uncovered(self) -> list[Rule]:
        """Rules that decided nothing."""
        return [rule for rule in self.policy.every_rule() if not self.decided[rule.id]]


def sentence(file: Path | str, result: Result) -> str:
    """What is told of a case that is not as expected."""
    case = result.case
    return f"{file}:{case.line}: {case.test}: {case.agent}, {case.operation}: {result.why}"


def run(file: Path) -> Ran:
    """Ask the policy everything that a test file lists. InvalidPolicy: the test file, or its policy, is wrong."""
    asking = suite(file)
    ran = Ran(file, asking.policy)
    for case in asking.cases:
        result = asking.ask(case)
        ran.results.append(result)
        if result.verdict.ruling.rule is not None:
            ran.decided[result.verdict.ruling.rule] += 1
    return ran


def suite(file: Path) -> Suite:
    """A test file and its policy. InvalidPolicy: one of them is wrong."""
    written, lines = _read(file)
    of = file.with_name(written.policy or file.name.removesuffix(SUFFIX) + ".yaml")
    try:
        policy = load(of.read_bytes(), str(of)).policy
    except OSError as error:
        why = f"the policy {of.name} cannot be read: {error.strerror}"
        raise InvalidPolicy(why, file=str(file), line=lines.get(("policy",), 1), key="policy") from None
    cases = tuple(_cases(written, lines, file, policy))
    return Suite(file, policy, cases, Bundle({policy.project: CompiledPolicy(policy)}))


def _read(file: Path) -> tuple[TestFile, dict[Any, int]]:
    try:
        document, lines = read(file.read_bytes(), str(file))
    except OSError as error:
        raise InvalidPolicy(f"cannot be read: {error.strerror}", file=str(file)) from None
    if not isinstance(document, dict):
        raise InvalidPolicy("a test file is a mapping with `operations:` and `tests:`", file=str(file), line=1)
    try:
        return TestFile.model_validate(document), lines
    except ValidationError as error:
        line, path, message = min(place_of(detail, document, lines, TestFile) for detail in error.errors())
        raise InvalidPolicy(message, file=str(file), line=line, key=spell(path)) from None


def _cases(written: TestFile, lines: dict[Any, int], file: Path, policy: Policy) -> Iterator[Case]:
    by_time = any("time" in attributes_of(rule.when) for rule in policy.every_rule())

    def wrong(message: str, *path: str | int) -> InvalidPolicy:
        known = path
        while known and known not in lines:
            known = known[:-1]
        return InvalidPolicy(message, file=str(file), line=lines.get(known, 1), key=spell(path))

    for name, operation in written.operations.items():
        try:
            canonical(operation.args)
        except InvalidInput as error:
            raise wrong(error.message, "operations", name, "args") from None
    for place, name in enumerate(written.strangers):
        if policy.of(name) is not None:
            raise wrong(f"{name!r} is known to the policy, and no stranger to it", "strangers", place)
    for number, test in enumerate(written.tests):
        where = "tests", number
        told = test.at or written.at
        at = None if told is None else moment(told)
        if at is None and (told is not None or by_time):
            need = "the policy goes by the time, so say which: " if told is None else ""
            raise wrong(f'{need}a moment with its zone, such as "2026-12-01T10:00:00+01:00"', *where, "at")
        names = test.operations or list(written.operations)
        for name in names:
            if name not in written.operations:
                raise wrong(
                    f"{name!r} is no operation of this file{nearest(name, written.operations)}", *where, "operations"
                )
        for agent, listed in test.expect.items():
            if policy.of(agent) is None and agent not in {SOMEBODY_ELSE, *written.strangers}:
                raise wrong(
                    f"{agent!r} is no agent of the policy{nearest(agent, policy.agents)} (who shall be unknown to it is "
                    f"called {SOMEBODY_ELSE}, or stands under `strangers`)",
                    *where, "expect", agent,
                )  # fmt: skip
            for name in listed:
                if name not in names:
                    raise wrong(
                        f"{name!r} is none of the test's operations{nearest(name, names)}",
                        *where,
                        "expect",
                        agent,
                        name,
                    )
            for name in names:
                said = listed.get(name, "deny")
                expected = said if isinstance(said, ExpectPart) else ExpectPart(decision=said)
                line = lines.get((*where, "expect", agent, name)) or lines.get((*where, "expect", agent), 1)
                yield Case(test.name, agent, name, written.operations[name], at, expected, line)


def _different(expected: ExpectPart, verdict: Verdict) -> str:
    ruling = verdict.ruling
    for name in ("decision", "rule", "reason", "tier", "shadow"):
        wanted, got = getattr(expected, name), getattr(ruling, name)
        if wanted is not None and wanted != got:
            by = f" by {ruling.rule}" if name == "decision" and ruling.rule else ""
            return f"{name} {wanted} is expected, and it is {got if got is not None else 'none'}{by}"
    return ""
