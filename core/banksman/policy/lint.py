"""`banksman policy lint`: what is wrong with a policy that loads, and what is likely to be.

That a rule can never decide is proved by the table of all operations (`reach`), not guessed from its text.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Literal, NamedTuple

from banksman.errors import InvalidPolicy
from banksman.policy.catalogue import SERVICES
from banksman.policy.conditions import comparisons
from banksman.policy.globs import Custom, compile_patterns, has_wildcard
from banksman.policy.load import checked, finished
from banksman.policy.match import allow_tier
from banksman.policy.nearest import nearest
from banksman.policy.normal import fold_action
from banksman.policy.reach import Cell, agents, cells, implies, services
from banksman.policy.regions import TooMany
from banksman.policy.rules import EFFECTS, EVERY_SERVICE, FREEZE, GUARDRAILS, USE

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from banksman.policy.document import Path
    from banksman.policy.rules import Policy, Rule

Level = Literal["error", "warning"]


class Finding(NamedTuple):
    """Something that is wrong (`error`) or likely to be. `code`: a word for it that never changes. `rule`: the rule's id."""

    level: Level
    code: str
    message: str
    mend: str
    file: str
    line: int
    rule: str = ""


CODES: dict[str, tuple[Level, str]] = {
    "does-not-load": ("error", "the file is not a policy: a wrong key, a wrong value, no YAML"),
    "two-files": ("error", "two files are for one project; neither is in force"),
    "unknown-verb": ("error", "the service is known and has no such action, so that the rule is about nothing"),
    "unknown-service": ("warning", "no service of that name is known; an error where a known one is spelled nearly so"),
    "never-matches": ("error", "the rule can never match: its service has no branches, its resources are not named so"),
    "unreachable": ("error", "stricter rules decide about everything that this rule is about"),
    "dead-pattern": ("warning", "stricter rules decide about everything that this one pattern of the rule is about"),
    "redundant": ("warning", "without this rule every answer would be the same"),
    "allow-everything": (
        "error",
        "an `allow` rule for every action on every resource of a service, without a condition",
    ),
    "broad": (
        "warning",
        "an `allow` rule has a pattern without a single literal character, or none where others have one",
    ),
    "literal-wildcard": ("warning", "a condition compares with text that holds a wildcard, and not as a pattern"),
    "approval-without-resources": ("warning", "an approval rule without `resources` is about every resource there is"),
    "no-owner": ("warning", "nobody answers for an agent: neither it nor the project has an owner"),
    "no-budget": ("warning", "an agent may spend without a limit"),
    "no-rules": ("warning", "an agent has no rule that allows anything: all it asks is denied"),
    "unused": ("warning", "a set of rules or a schedule that nothing names"),
    "shadow": ("warning", "what is in shadow mode is not enforced"),
    "not-proved": ("warning", "so many patterns that it was not proved which rules can decide"),
}


def lint(raw: bytes, file: str) -> list[Finding]:
    """All that can be said about one file, by line."""
    written, lines, wrong = checked(raw, file)
    if written is None:
        return [_not_loaded(error) for error in wrong]
    try:
        policy = finished(written, lines, file).policy
    except InvalidPolicy as error:
        return [_not_loaded(error)]
    linter = _Linter(policy, lines, file)
    linter.look()
    return sorted(linter.found, key=lambda one: (one.line, one.code, one.message))


def two_files(projects: Iterable[tuple[str, str]]) -> list[Finding]:
    """(file, project) of all that load -> those that stand in each other's way."""
    by_project: dict[str, list[str]] = defaultdict(list)
    for file, project in projects:
        by_project[project].append(file)
    return [
        Finding("error", "two-files", f"{project} is also in {', '.join(one for one in files if one != file)}",
                "one file for each project", file, 1)
        for project, files in by_project.items() if len(files) > 1 for file in files
    ]  # fmt: skip


def _not_loaded(error: InvalidPolicy) -> Finding:
    message = f"{error.key}: {error.message}" if error.key else error.message
    return Finding("error", "does-not-load", message, "", error.file, error.line)


class _Linter:
    def __init__(self, policy: Policy, lines: dict[Path, int], file: str) -> None:
        self._policy, self._lines, self._file = policy, lines, file
        self.found: list[Finding] = []
        self._all = {rule.id: rule for rule in policy.every_rule()}

    def look(self) -> None:
        for rule in self._all.values():
            if rule.freeze:
                self._service(rule, _place(rule))
            else:
                self._one_rule(rule)
        self._deciding()
        self._agents()
        self._unused()
        if self._policy.shadow:
            self._say("shadow", ("mode",), "the whole project is in shadow mode: only guardrails are enforced", "")

    # ── one rule by itself ──

    def _service(self, rule: Rule, where: Path) -> None:
        if rule.service not in SERVICES and rule.service != EVERY_SERVICE:
            near = nearest(rule.service, SERVICES)
            self._say(
                "unknown-service", where, f"{rule.service} is no service that is known here{near}",
                "correct the name, or leave it: a service of your own needs no entry anywhere", rule, error=bool(near),
            )  # fmt: skip

    def _one_rule(self, rule: Rule) -> None:
        known = SERVICES.get(rule.service)
        self._service(rule, (*_place(rule), "service"))
        for one in comparisons(rule.when):
            values = one.operand if isinstance(one.operand, tuple) else (one.operand,)
            wild = next((value for value in values if isinstance(value, str) and has_wildcard(value)), None)
            if one.op in {"is", "in"} and wild is not None:
                why = f"{one.attribute} is compared with {wild!r} as it stands: * is no wildcard here"
                self._say("literal-wildcard", (*_place(rule), "when"), why, f"{{glob: {wild!r}}}", rule)
        for at, action in enumerate(rule.actions):
            self._verb(rule, at, action)
        if rule.branches and known is not None and not known.branches:
            self._say(
                "never-matches",
                (*_place(rule), "branches"),
                f"{rule.service} has no branches",
                "leave `branches` out",
                rule,
            )
        for at, resource in enumerate(rule.resources or ()):
            if rule.service == "aws" and resource != "*" and not resource.startswith("arn:"):
                self._say(
                    "never-matches", (*_place(rule), "resources", at), f"{resource} is no ARN, and resources of aws are",
                    "arn:aws:SERVICE:REGION:ACCOUNT:RESOURCE", rule,
                )  # fmt: skip
        if rule.effect == "allow":
            self._broad(rule)
        if rule.effect == "require_approval" and rule.resources is None:
            self._say(
                "approval-without-resources", _place(rule), "people are asked about every resource there is",
                "name `resources`", rule,
            )  # fmt: skip
        if rule.shadow:
            self._say(
                "shadow",
                (*_place(rule), "mode"),
                "the rule is not enforced: it is only noted what it would do",
                "",
                rule,
            )

    def _verb(self, rule: Rule, at: int, action: str) -> None:
        known, where = SERVICES.get(rule.service), (*_place(rule), "actions", at)
        if rule.service == "aws" and action != "*" and ":" not in action and not action.startswith("*"):
            self._say("never-matches", where, f"{action} names no service of AWS", f"s3:{action}", rule)
        if known is None or not known.verbs:
            return
        folded = fold_action(rule.service, action)
        matches = compile_patterns(Custom.ACTION, rule.service, (folded,))
        if any(map(matches, known.verbs)):
            return
        if known.open and (has_wildcard(action) or not nearest(action, known.verbs)):
            return
        what = "matches no action" if has_wildcard(action) else "is no action"
        self._say(
            "unknown-verb", where, f"{action} {what} of {rule.service}{nearest(action, known.verbs)}",
            f"one of {', '.join(sorted(known.verbs))}" if len(known.verbs) <= 40 else "see docs/reference/policy.md", rule,
        )  # fmt: skip

    def _broad(self, rule: Rule) -> None:
        every = "*" in rule.actions or "**" in rule.actions
        anything = rule.resources is None or bool({"*", "**"} & set(rule.resources))
        if every and anything and rule.when is None and rule.branches is None:
            self._say(
                "allow-everything",
                _place(rule),
                f"everything is allowed on {rule.service}",
                "name actions and resources",
                rule,
            )
            return
        for key, patterns in (("actions", rule.actions), ("resources", rule.resources), ("branches", rule.branches)):
            for at, pattern in enumerate(patterns or ()):
                if not pattern.strip("*?/:"):
                    self._say(
                        "broad", (*_place(rule), key, at), f"{pattern} has no literal part: it matches nearly everything",
                        f"name {key}", rule,
                    )  # fmt: skip

    # ── which rules can decide ──

    def _deciding(self) -> None:
        deciding = _Deciding()
        for rules in [list(self._policy.rules_of(agent)) for agent in agents(self._policy)]:
            for service in services(rules):
                try:
                    for cell in cells(rules, service):
                        for rule in (*cell.match, *cell.missing):
                            deciding.take(rule, cell)
                except TooMany as error:
                    why = f"{error}: too many patterns to prove which of them can decide"
                    self._say("not-proved", ("agents",), why, "fewer patterns in one file")
                    return
        narrow = "remove it, or narrow what goes before it"
        for rule, before in deciding.dead():
            if not rule.freeze:
                self._say(
                    "unreachable", _place(rule), f"it never decides: before it always comes {before}", narrow, rule
                )
        for rule, others in deciding.redundant():
            if not rule.freeze and not rule.shadow:
                self._say("redundant", _place(rule), f"{others} says the same", "remove it", rule)
        for rule, key, pattern in deciding.dead_patterns():
            at = getattr(rule, key).index(pattern)
            why = f"{pattern} is never decided by this rule: stricter ones come before it"
            self._say("dead-pattern", (*_place(rule), key, at), why, narrow, rule)

    # ── agents, and what nobody uses ──

    def _agents(self) -> None:
        for name, entry in self._policy.agents.items():
            where, whole = ("agents", name), self._policy.of(name) or entry
            if whole.owner is None and self._policy.owner is None:
                self._say("no-owner", where, f"nobody answers for {name}", "`owner:`, of the agent or of the project")
            if whole.budget is None:
                self._say("no-budget", where, f"{name} may spend without a limit", "`budget: {daily_tokens: 500000}`")
            if not any(rule.effect != "never" for rule in whole.rules):
                self._say("no-rules", where, f"{name} may do nothing", "an `allow` rule, or no entry")
            if whole.mode == "shadow":
                self._say("shadow", (*where, "mode"), f"{name} is in shadow mode: only guardrails are enforced", "")

    def _unused(self) -> None:
        used = {name for entry in self._policy.agents.values() for name in entry.use}
        for name in self._policy.sets.keys() - used:
            self._say("unused", ("rules", name), f"no agent uses {name}", f"`use: [{name}]`, or remove it")
        named = {
            str(one) for rule in self._all.values() for said in comparisons(rule.when) if said.op == "during"
            for one in (said.operand if isinstance(said.operand, tuple) else ())
        }  # fmt: skip
        for name in self._policy.schedules.keys() - named:
            self._say("unused", ("schedules", name), f"nothing goes by {name}", "remove it")

    def _say(
        self, code: str, where: Path, message: str, mend: str, rule: Rule | None = None, *, error: bool = False
    ) -> None:
        path = where
        while path not in self._lines and path:
            path = path[:-1]
        level: Level = "error" if error else CODES[code][0]
        found = Finding(level, code, message, mend, self._file, self._lines.get(path, 1), rule.id if rule else "")
        if found not in self.found:
            self.found.append(found)


class _Deciding:
    """Of each rule: the cells that it decides in, who decides in the others, and who would say the same."""

    def __init__(self) -> None:
        self._rules: dict[str, Rule] = {}
        self._before: dict[str, set[str]] = defaultdict(set)
        self._same: dict[str, list[frozenset[str]]] = defaultdict(list)
        """For each cell that a rule decides in: the others that give the same answer there."""
        self._patterns: dict[tuple[str, str, str], bool] = {}

    def take(self, rule: Rule, cell: Cell) -> None:
        """One rule that matches in a cell, or that denies what leaves a field out there."""
        self._rules[rule.id] = rule
        others = [
            other for other in (*cell.match, *cell.missing)
            if other is not rule and not other.shadow and implies(rule.when, other.when)
        ]  # fmt: skip
        before = {other.id for other in others if _stricter(other, rule, cell)}
        for key, custom, value in (
            ("actions", Custom.ACTION, cell.action), ("resources", Custom.RESOURCE, cell.resource),
            ("branches", Custom.BRANCH, cell.branch),
        ):  # fmt: skip
            for pattern in getattr(rule, key) or () if rule in cell.match else ():
                folded = fold_action(rule.service, pattern) if custom is Custom.ACTION else pattern
                if value is not None and compile_patterns(custom, rule.service, (folded,))(value):
                    known = self._patterns.get((rule.id, key, pattern), False)
                    self._patterns[rule.id, key, pattern] = known or not before
        if before:
            self._before[rule.id] |= before
        else:
            self._same[rule.id].append(frozenset(other.id for other in others if _says_the_same(other, rule, cell)))

    def dead(self) -> Iterator[tuple[Rule, str]]:
        """Rules that decide nowhere, and what comes before them."""
        for name, rule in self._rules.items():
            if name not in self._same:
                yield rule, ", ".join(sorted(self._before[name]))

    def redundant(self) -> Iterator[tuple[Rule, str]]:
        """Rules that can all be removed without any answer changing, and what says the same. The narrowest are tried first."""
        gone = set[str]()
        places = {name: at for at, name in enumerate(self._rules)}
        for name in sorted(self._same, key=lambda name: (len(self._same[name]), -places[name])):
            left = [others - gone for others in self._same[name]]
            if all(left):
                gone.add(name)
                yield self._rules[name], ", ".join(sorted(set().union(*left)))

    def dead_patterns(self) -> Iterator[tuple[Rule, str, str]]:
        """Patterns of rules that decide elsewhere."""
        for (name, key, pattern), lives in self._patterns.items():
            if not lives and name in self._same:
                yield self._rules[name], key, pattern


def _stricter(other: Rule, rule: Rule, cell: Cell) -> bool:
    """Whether the other one goes before it here. What is denied for a field that was left out goes before all but `never`."""
    if rule.guardrail and not other.guardrail:
        return False  # in shadow mode guardrails alone are enforced
    if rule in cell.missing and other in cell.match:
        return other.effect == "never"
    if other in cell.missing and rule in cell.match:
        return rule.effect != "never"
    return EFFECTS.index(other.effect) < EFFECTS.index(rule.effect)


def _says_the_same(other: Rule, rule: Rule, cell: Cell) -> bool:
    """Whether the other one alone gives this rule's answer here."""
    if rule.guardrail and not other.guardrail:
        return False
    if rule in cell.missing:
        return other in cell.missing
    if other not in cell.match or other.effect != rule.effect:
        return False
    if rule.effect == "require_approval":
        return other.approvers == rule.approvers
    if rule.effect == "allow":
        return allow_tier(other, rule.service, cell.action) >= allow_tier(rule, rule.service, cell.action)
    return True


def _place(rule: Rule) -> Path:
    """Where a rule stands in its file."""
    parts = rule.id.split("/")
    if parts[0] == FREEZE:
        return FREEZE, int(parts[1])
    if parts[0] == GUARDRAILS:
        return GUARDRAILS, parts[1], int(parts[2])
    if parts[0] == USE:
        return "rules", parts[1], parts[2], int(parts[3])
    return "agents", parts[0], parts[1], int(parts[2])
