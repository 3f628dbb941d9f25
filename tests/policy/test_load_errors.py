"""What is wrong with a file has a file, a line, a key and a sentence; nothing wrong loads."""

from __future__ import annotations

import pytest

from banksman.errors import InvalidPolicy
from banksman.policy.document import MAX_BYTES
from banksman.policy.load import load

AGENT = "project: p\nagents:\n  a:\n    "
HEAD = "project: p\nagents:\n  a:\n    allow:\n"
A0 = "agents.a.allow[0]"
RULE = HEAD + "      - service: git\n        actions: [push]\n"

# text, line, key, words of the message
WRONG: list[tuple[str, int, str | None, str]] = [
    # not a policy at all
    ("", 1, "", "the file is empty"),
    ("# only a comment\n", 1, "", "the file is empty"),
    ("---\n", 1, "", "a policy is a mapping"),
    ("- project: p\n", 1, "", "a policy is a mapping"),
    ("just text\n", 1, "", "a policy is a mapping"),
    ("project: p\n", 1, "agents", "is missing"),
    ("agents: {}\n", 1, "project", "is missing"),
    ("project: p\nagents: {}\n---\nproject: q\nagents: {}\n", 3, "", "a second document"),
    # not YAML
    ("project: p\nagents: {a: [}\n", 2, "", "not YAML"),
    ("project: p\n\tagents: {}\n", 2, "", "not YAML"),
    ("project: p\nagents:\n  a:\n   allow: [\n", 5, "", "not YAML"),
    ("project: p\x00\nagents: {}\n", 1, "", "not YAML"),
    ('project: "\\ud800"\nagents: {}\n', 1, "", "not YAML"),
    ("project: p\nagents: " + "[" * 500, 2, "agents[0][0][0][0][0][0][0][0][0][0][0][0][0][0]", "nested deeper"),
    ("project: p\nagents: " + "{a: " * 20 + "}" * 20, 2, ".".join(["agents"] + ["a"] * 14), "nested deeper"),
    # YAML that grows, points or makes objects
    ("project: &x p\nagents: {}\n", 1, "", "anchors and aliases"),
    ("project: p\nagents: &x {}\n", 2, "", "anchors and aliases"),
    ("project: p\nowner: *x\nagents: {}\n", 2, "", "anchors and aliases"),
    ("project: p\nagents:\n  a:\n    <<: {owner: x}\n", 4, "agents.a", "merge keys"),
    ("project: !!python/object/apply:os.system [id]\nagents: {}\n", 1, "", "the tag"),
    ("project: p\nagents: !!set {a}\n", 2, "", "the tag"),
    ("project: p\nversion: !!int '2'\nagents: {}\n", 2, "", "the tag"),
    # twice
    ("project: p\nproject: q\nagents: {}\n", 2, "project", "there twice (first on line 1)"),
    (RULE + "  a: {}\n", 7, "agents.a", "there twice (first on line 3)"),
    (RULE + "        actions: [pull]\n", 7, A0 + ".actions", "there twice"),
    # YAML 1.1 that means something else
    (RULE + "        branches: [main, on]\n", 7, A0 + ".branches[1]", "on is read as true or false"),
    (RULE + "        branches:\n          - NO\n", 8, A0 + ".branches[0]", "NO is read as true or false"),
    (RULE + "        branches: [yes]\n", 7, A0 + ".branches[0]", "yes is read as true or false"),
    (RULE + "        branches: [true]\n", 7, A0 + ".branches[0]", "true is read as true or false"),
    (RULE + "        branches: [2026-01-01]\n", 7, A0 + ".branches[0]", "read as a date"),
    (RULE + "        branches: [1.10]\n", 7, A0 + ".branches[0]", "1.1 is read as a number: put it in quotes"),
    (RULE + "        branches: [12]\n", 7, A0 + ".branches[0]", "12 is read as a number: put it in quotes"),
    (RULE + "        branches: [12:30]\n", 7, A0 + ".branches[0]", "12:30 is read as a number"),
    (RULE + "        branches: [0o17]\n", 7, A0 + ".branches[0]", "0o17 is read as a number"),
    (RULE + "        branches: [1e3]\n", 7, A0 + ".branches[0]", "1e3 is read as a number"),
    (RULE + "        branches: [~]\n", 7, A0 + ".branches[0]", "has no value"),
    (RULE + "        resources:\n", 7, A0 + ".resources", "has no value"),
    ("project: p\nagents:\n  no: {}\n", 3, "agents", "the key no means something else"),
    ("project: p\nagents:\n  ? {a: b}\n  : {}\n", 3, "agents", "a key must be text"),
    ("project: p\nagents: {}\nnotify: {channel: #payments}\n}\n", 3, "notify.channel", "a # begins a comment"),
    ("project: p\nagents: {}\nowner:\n", 3, "owner", "has no value"),
    # keys that are not there
    ("project: p\nagents: {}\ncolour: red\n", 3, "colour", "not a key"),
    ("project: p\nagents:\n  a:\n    alow: []\n", 4, "agents.a.alow", "not a key"),
    (RULE + "        resource: [x]\n", 7, A0 + ".resource", "not a key"),
    (RULE + "        approvers: {min: 1}\n", 7, A0 + ".approvers", "not a key"),
    ("project: p\nguardrails:\n  allow: []\nagents: {}\n", 3, "guardrails.allow", "not a key"),
    ("project: p\nagents:\n  a: {notify: {channel: x}}\n", 3, "agents.a.notify", "not a key"),
    (RULE + "        brnches: [x]\n", 7, A0 + ".brnches", "did you mean branches?"),
    ("project: p\nagents:\n  a:\n    schedule: {}\n", 4, "agents.a.schedule", "not a key"),
    ("project: p\nrule: {}\nagents: {}\n", 2, "rule", "did you mean rules?"),
    # conditions
    (RULE + "        when: {arg.amount: 5}\n", 7, A0 + ".when.arg.amount", "did you mean args?"),
    (RULE + "        when: {args: 5}\n", 7, A0 + ".when.args", "say what of it"),
    (RULE + "        when: {args.amount: {less: 5}}\n", 7, A0 + ".when.args.amount.less", "is no comparison for args.amount"),
    (RULE + "        when: {args.amount: {lt: '5'}}\n", 7, A0 + ".when.args.amount.lt", "must be a number"),
    (RULE + "        when: {args.amount: {}}\n", 7, A0 + ".when.args.amount", "must say what is wanted"),
    (RULE + "        when: {args.amount: {in: 5}}\n", 7, A0 + ".when.args.amount.in", "must be a list"),
    (RULE + "        when: {args.amount: {in: []}}\n", 7, A0 + ".when.args.amount.in", "must be a list"),
    (RULE + "        when: {args.x: {exists: 1}}\n", 7, A0 + ".when.args.x.exists", "must be true or false"),
    (RULE + "        when: {args.x: {is: {att: y}}}\n", 7, A0 + ".when.args.x.is", "{attr: another attribute}"),
    (RULE + "        when: {args.x: {is: {attr: y}}}\n", 7, A0 + ".when.args.x.is", "is no attribute"),
    (RULE + "        when: {args.x: {glob: a//b}}\n", 7, A0 + ".when.args.x.glob", "empty segment"),
    (RULE + "        when: {branch: {lt: 5}}\n", 7, A0 + ".when.branch.lt", "is no comparison for branch"),
    (RULE + "        when: {branch: refs/heads/main}\n", 7, A0 + ".when.branch", "it would never be met"),
    (RULE + "        when: {branch.x: main}\n", 7, A0 + ".when.branch.x", "branch is one value"),
    (RULE + "        when: {resource: a//b}\n", 7, A0 + ".when.resource", "it would never be met"),
    (RULE + "        when: {time: {during: office}}\n", 7, A0 + ".when", "'office' is no schedule of this file"),
    (RULE + "        when: {time: noon}\n", 7, A0 + ".when.time", "is compared by"),
    (RULE + "        when: {time: {lt: noon}}\n", 7, A0 + ".when.time.lt", "a moment with its zone"),
    (RULE + "        when: {time: {lt: '2026-12-01'}}\n", 7, A0 + ".when.time.lt", "a moment with its zone"),
    (RULE + "        when: {any: {}}\n", 7, A0 + ".when.any", "must be a list of conditions"),
    (RULE + "        when: []\n", 7, A0 + ".when", "must be a mapping"),
    (RULE + "        when: {not: [x]}\n", 7, A0 + ".when.not", "must be a mapping"),
    (RULE + "        when: " + "{not: " * 10 + "{args.x: 1}" + "}" * 10 + "\n", 7, None, "nested deeper than"),
    (RULE + "        when: {args.x: [" + "a, " * 1001 + "]}\n", 7, A0 + ".when.args.x", "must be a list of one to 1000"),
    ("project: p\nguardrails:\n  never: [{service: git, actions: [push], mode: shadow}]\nagents: {}\n", 3,
     "guardrails.never[0].mode", "must be 'enforce'"),
    # schedules, freezes, sets, groups
    ("project: p\nschedules:\n  s: {}\nagents: {}\n", 3, "schedules.s", "bounds nothing"),
    ("project: p\nschedules:\n  s: {days: [monday]}\nagents: {}\n", 3, "schedules.s.days[0]", "did you mean mon?"),
    ("project: p\nschedules:\n  s: {from: '9:00'}\nagents: {}\n", 3, "schedules.s.from", "a time of the day in quotes"),
    ("project: p\nschedules:\n  s: {to: '24:01'}\nagents: {}\n", 3, "schedules.s.to", "a time of the day in quotes"),
    ("project: p\nschedules:\n  s: {begins: '2026-13-01'}\nagents: {}\n", 3, "schedules.s.begins", "a day or a moment"),
    ("project: p\nschedules:\n  s: {begins: '2026-12-02', ends: '2026-12-01'}\nagents: {}\n", 3, "schedules.s", "ends before"),
    ("project: p\nschedules:\n  s: {from: '09:00', to: '09:00'}\nagents: {}\n", 3, "schedules.s", "are the same"),
    ("project: p\nschedules:\n  'a b': {days: [mon]}\nagents: {}\n", 3, "schedules.a b", "must be a word"),
    ("project: p\nfreeze: [{during: [xmas]}]\nagents: {}\n", 2, "freeze[0].during[0]", "is no schedule of this file"),
    ("project: p\nfreeze: [{services: [git]}]\nagents: {}\n", 2, "freeze[0].during", "is missing"),
    ("project: p\nagents:\n  a:\n    use: [readers]\n", 4, "agents.a.use[0]", "'readers' is no set of rules of this file"),
    ("project: p\nrules: {reader: {}}\nagents:\n  a:\n    use: [readers]\n", 5, "agents.a.use[0]", "did you mean reader?"),
    ("project: p\nagents:\n  'claude-**': {}\n", 3, "agents.claude-**", "holds ** or more than 4 wildcards"),
    ("project: p\nagents:\n  '*-*-*-*-*': {}\n", 3, "agents.*-*-*-*-*", "more than 4 wildcards"),
    ("project: p\nagents:\n  'a*b*c*d*e*': {}\n", 3, "agents.a*b*c*d*e*", "holds ** or more than 4 wildcards"),
    ("project: p\nagents:\n  freeze: {}\n", 3, "agents.freeze", "no agent may be called freeze"),
    ("project: p\nclaims: [args.x]\nagents: {}\n", 2, "claims[0]", "is nothing that can be claimed"),
    ("project: p\nsubjects: {user: {ann: {roles: {a: b}}}}\nagents: {}\n", 2, "subjects.user.ann.roles", "or a list of"),
    (RULE + "        resources: [acme/billing.git]\n", 7, A0 + ".resources[0]", "a repository is named without it"),
    (RULE + "        resources: ['git@acme.example:billing']\n", 7, A0 + ".resources[0]", "is an address"),
    # names
    ("project: p/q\nagents: {}\n", 1, "project", "must begin with a letter"),
    ("project: ''\nagents: {}\n", 1, "project", "must begin with a letter"),
    ("project: 7\nagents: {}\n", 1, "project", "7 is read as a number"),
    ("project: p\nagents:\n  'a b': {}\n", 3, "agents.a b", "must begin with a letter"),
    ("project: p\nagents:\n  guardrails: {}\n", 3, "agents.guardrails", "no agent may be called guardrails"),
    ("project: p\nagents:\n  " + "a" * 129 + ": {}\n", 3, "agents." + "a" * 129, "must begin with a letter"),
    # shapes
    ("project: p\nagents: []\n", 2, "agents", "must be a mapping"),
    ("project: p\nagents:\n  a:\n", 3, "agents.a", "has no value"),
    ("project: p\nagents:\n  a: x\n", 3, "agents.a", "must be a mapping"),
    ("project: p\nagents:\n  a:\n    allow: {service: git}\n", 4, "agents.a.allow", "must be a list"),
    (HEAD + "      - git\n", 5, "agents.a.allow[0]", "must be a mapping"),
    (HEAD + "      - service: git\n", 5, A0 + ".actions", "is missing"),
    (HEAD + "      - actions: [push]\n", 5, A0 + ".service", "is missing"),
    (HEAD + "      - {service: git, actions: push}\n", 5, A0 + ".actions", "must be a list"),
    (HEAD + "      - {service: git, actions: []}\n", 5, A0 + ".actions", "must not be an empty list"),
    (RULE + "        resources: []\n", 7, A0 + ".resources", "must not be an empty list"),
    (RULE + "        tier: 3\n", 7, A0 + ".tier", "must be 1 or 2"),
    (RULE + "        tier: '1'\n", 7, A0 + ".tier", "must be 1 or 2"),
    ("project: p\nversion: '2'\nagents: {}\n", 2, "version", "must be a whole number"),
    ("project: p\nversion: 0\nagents: {}\n", 2, "version", "must be at least 1"),
    ("project: p\nversion: 1.5\nagents: {}\n", 2, "version", "must be a whole number"),
    ("project: p\nmode: Shadow\nagents: {}\n", 2, "mode", "must be 'enforce' or 'shadow'"),
    # patterns
    (HEAD + "      - {service: '*', actions: [push]}\n", 5, A0 + ".service", "named exactly"),
    (HEAD + "      - {service: g\\it, actions: [push]}\n", 5, A0 + ".service", "holds a backslash"),
    (HEAD + "      - service: git\n        actions:\n          - push\n          - ''\n", 8, A0 + ".actions[1]", "is empty"),
    (RULE + "        resources: [acme/billing, acme//x]\n", 7, A0 + ".resources[1]", "segment: it would never match"),
    (RULE + "        resources: [acme/]\n", 7, A0 + ".resources[0]", "has an empty segment"),
    (RULE + "        resources: [acme/../x]\n", 7, A0 + ".resources[0]", "has a . or .. segment"),
    (RULE + "        resources: [a%2Fb]\n", 7, A0 + ".resources[0]", "holds a % escape"),
    (RULE + "        resources: ['arn:aws:s3']\n", 7, A0 + ".resources[0]", "is an address"),
    (RULE + "        resources: ['HTTPS://x']\n", 7, A0 + ".resources[0]", "is an address"),
    (RULE + "        resources: ['https://Api.x/y']\n", 7, A0 + ".resources[0]", "is an address"),
    (RULE + "        branches: ['v[0-9]']\n", 7, A0 + ".branches[0]", "no set or alternative"),
    (RULE + "        branches: ['{a,b}']\n", 7, A0 + ".branches[0]", "no set or alternative"),
    (RULE + "        branches: ['!main']\n", 7, A0 + ".branches[0]", "no negation here"),
    (RULE + "        branches: ['a***']\n", 7, A0 + ".branches[0]", "holds ***"),
    (RULE + "        branches: ['" + "?" * 17 + "']\n", 7, A0 + ".branches[0]", "more than 16 wildcards"),
    (RULE + "        branches: ['e\u0301']\n", 7, A0 + ".branches[0]", "normal form C"),
    (RULE + '        branches: ["a\\u200bb"]\n', 7, A0 + ".branches[0]", "U+200B"),
    (RULE + "        branches: ['" + "b" * 1025 + "']\n", 7, A0 + ".branches[0]", "is longer than 1024"),
    # the rest
    (AGENT + "budget: {}\n", 4, "agents.a.budget", "limits nothing"),
    (AGENT + "budget: {daily_tokens: 0}\n", 4, "agents.a.budget.daily_tokens", "at least 1"),
    (AGENT + "budget: {daily_tokens: 1_000}\n", 4, "agents.a.budget.daily_tokens", "write it plainly"),
    (AGENT + "budget: {daily_tokens: 1.5}\n", 4, "agents.a.budget.daily_tokens", "whole number"),
    (AGENT + "budget: {daily_tokens: 9, alert_threshold: 80}\n", 4, "agents.a.budget.alert_threshold", "at most 1"),
    (AGENT + "budget: {daily_cost_usd: -1}\n", 4, "agents.a.budget.daily_cost_usd", "at least 0.01"),
    (AGENT + "budget: {daily_tokens: 9, timezone: Mars/X}\n", 4, "agents.a.budget.timezone", "not a time zone"),
    (AGENT + "budget: {daily_tokens: 9, timezone: ../../etc}\n", 4, "agents.a.budget.timezone", "not a time zone"),
    (AGENT + "budget: {daily_tokens: 9, on_exhausted: stop}\n", 4, "agents.a.budget.on_exhausted", "must be 'deny'"),
    (AGENT + "detect: {loops: {on_alert: explode}}\n", 4, "agents.a.detect.loops.on_alert", "must be 'alert'"),
    (AGENT + "detect: {loop: {}}\n", 4, "agents.a.detect.loop", "not a key"),
    ("project: p\nagents:\n  a:\n    owner: ''\n", 4, "agents.a.owner", "is empty"),
]  # fmt: skip

ASK = "project: p\nagents:\n  a:\n    require_approval:\n      - service: git\n        actions: [push]\n        "
WRONG += [
    (ASK + "approvers: {any: []}\n", 7, "agents.a.require_approval[0].approvers.any", "must not be an empty list"),
    (ASK + "approvers: {any: [a b]}\n", 7, "agents.a.require_approval[0].approvers.any[0]", "must begin with"),
    (ASK + "approvers: {min: 0}\n", 7, "agents.a.require_approval[0].approvers.min", "at least 1"),
    (ASK + "approvers: {expires: 15}\n", 7, "agents.a.require_approval[0].approvers.expires", "must be a duration"),
    (ASK + "approvers: {expires: 15 min}\n", 7, "agents.a.require_approval[0].approvers.expires", "must be a duration"),
    (ASK + "approvers: {expires: 0m}\n", 7, "agents.a.require_approval[0].approvers.expires", "must be a duration"),
    (ASK + "approvers: {expires: 31d}\n", 7, "agents.a.require_approval[0].approvers.expires", "at most 30 days"),
    (ASK + "approvers: {all: [x]}\n", 7, "agents.a.require_approval[0].approvers.all", "not a key"),
    (ASK + "tier: 1\n", 7, "agents.a.require_approval[0].tier", "not a key"),
]


@pytest.mark.parametrize(("text", "line", "key", "words"), WRONG, ids=[str(at) for at in range(len(WRONG))])
def test_wrong(text: str, line: int, key: str | None, words: str) -> None:
    with pytest.raises(InvalidPolicy) as caught:
        load(text.encode(), "p.yaml")
    error = caught.value
    assert (error.file, error.line) == ("p.yaml", line), str(error)
    assert key in {error.key, None}, str(error)
    assert words in error.message
    assert str(error).startswith(f"p.yaml:{line}: {error.key}")


def test_the_first_of_several_is_named_and_the_rest_counted() -> None:
    with pytest.raises(InvalidPolicy, match=r"^p.yaml:2: colour: is not a key of the format here \(and 2 more\)$"):
        load(b"project: p\ncolour: red\nmode: loud\nagents: {a: {alow: []}}\n", "p.yaml")


def test_not_utf8() -> None:
    with pytest.raises(InvalidPolicy, match=r"^p.yaml:2: the file is not UTF-8$"):
        load(b"project: p\nowner: caf\xe9\nagents: {}\n", "p.yaml")


def test_too_large() -> None:
    with pytest.raises(InvalidPolicy, match="larger than 4 MiB"):
        load(b"project: p\nagents: {}\n" + b"#" * MAX_BYTES, "p.yaml")


def test_too_large_to_publish(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file under the limit may still be over what Kafka takes, once it is text inside an event's JSON."""
    text = (RULE + "        resources: [" + ",".join(f"r{at}" for at in range(1000)) + "]\n").encode()
    load(text, "p.yaml")
    monkeypatch.setattr("banksman.policy.load.MAX_EVENT_TEXT", len(text) + 1000)
    with pytest.raises(InvalidPolicy, match="too large to be published"):
        load(text, "p.yaml")


def test_a_billion_laughs_is_one_line() -> None:
    bomb = "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nproject: p\n"
    with pytest.raises(InvalidPolicy, match="anchors and aliases"):
        load(bomb.encode(), "p.yaml")
