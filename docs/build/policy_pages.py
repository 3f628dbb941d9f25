"""docs/reference/policy.md: what is said about the format, and the tables that are made from the code."""

from __future__ import annotations

from banksman.policy import normal
from banksman.policy.catalogue import READ_ONLY_AWS, READ_ONLY_WORDS, SERVICES
from banksman.policy.lint import CODES
from banksman.policy.verdict import MEANING

MOST_VERBS = 60

FORMAT = r"""# Policy

YAML, one file a project, in version control. The enforcer reads the top-level `*.yaml` (but `*_test.yaml`) of the folder
`BANKSMAN_POLICIES`, watches it, and obeys a changed file on the next request. Everything but `project` and `agents` is
optional.

```yaml
project: billing-automation
version: 2                       # the author's own number, shown as v2
owner: payments-team             # who answers for it; an agent may name its own (else: the owner it was enrolled with)
mode: enforce                    # or shadow: decide and record, but answer allow
guardrails:                      # rules for every agent of the project; an agent's own rules cannot lift them
  never: [{service: aws, actions: ["iam:*"]}, {service: postgres, actions: [drop_database]}]
agents:
  claude-invoice-01:
    owner: ann@acme.example
    allow:
      - service: git
        actions: [push, pull]
        resources: ["acme/billing", "acme/invoices"]
        branches: ["feature/*", "fix/*"]
        tier: 2                  # 1 or 2; default: 1 for read-only verbs, 2 for the rest
    require_approval:
      - service: git
        actions: [push]
        branches: ["main", "release/*"]
        approvers: {any: [release-managers], min: 1, expires: 15m}
    never:
      - service: git
        actions: [force_push]
    budget:
      daily_tokens: 500000
      daily_cost_usd: 40
      alert_threshold: 0.8
      on_exhausted: deny         # deny (default) | approve | alert
      timezone: UTC
    detect:
      loops: {on_alert: alert}   # alert (default) | pause | kill
      anomalies: {on_alert: alert}
notify: {channel: "#payments-agents"}
```

`budget`: what the agent may spend in a day that begins at midnight of `timezone`. Tokens are input + output + cache writes; USD is what
the agent says, else what the price table gives. At `alert_threshold` somebody is told; when all is spent `on_exhausted` says what the
agent gets for everything that it asks: `deny`, `approve` (a human says yes to each) or nothing but an alert. A new limit holds on the
next request. `detect`: what an alert does besides telling: `kill` ends the session for good, `pause` stops the project until an operator
resumes it. `notify.channel`: where in Slack the project's alerts go.

`approvers`: `min` of the people in `any` have to say yes, within `expires`; without `any` it is anybody with the role approver. In this
version the names in `any` are those of operators: a group, as in the example above, can be approved by nobody yet.

Editors check and complete the format by its JSON Schema: `banksman policy schema > policy.schema.json`, and in the file
`# yaml-language-server: $schema=policy.schema.json`. What is wrong with a policy, and what is likely to be, says
[`banksman policy lint`](#lint).

## Groups of agents, and rules that they share

```yaml
project: billing-automation
rules:
  read-the-repositories:
    allow: [{service: git, actions: [pull, log], resources: ["acme/*"]}]
agents:
  "claude-invoice-*":            # every agent whose name matches; * and ? as in actions
    use: [read-the-repositories]
    budget: {daily_tokens: 100000}
  claude-invoice-01:
    owner: ann@acme.example
    allow: [{service: git, actions: [push], resources: ["acme/billing"], branches: ["feature/*"]}]
```

All entries that match an agent hold together: their rules, and those of the sets that they `use`. Owner, budget and mode are those of
the agent's own entry, else of the matching pattern with the most literal characters that has one; what an alert does is the strictest.

## Conditions

```yaml
    allow:
      - service: stripe
        actions: ["refunds:create"]
        when: {args.amount: {lt: 500}, args.currency: {in: [usd, eur]}}
      - service: git
        actions: [push]
        when: {any: [{branch: {glob: "feature/**"}}, {all: [{branch: main}, {time: {during: office-hours}}]}]}
```

Everything in a mapping must hold; `any: [...]`, `all: [...]` and `not: {...}` put conditions together. Attributes:

| attribute | is |
|---|---|
| `args.NAME`, `args.NAME.INNER`, `args.LIST.0` | an argument of the action, as it was asked, before anything is redacted |
| `resource`, `branch`, `action`, `agent` | those of the question, in the spelling that is matched |
| `time` | when it is asked, by the enforcer's clock |
| `subject.type`, `subject.id` | whom a gateway asks about, by [OpenID AuthZEN](http-enforcer.md#openid-authzen); else `agent` and the name of the agent |
| `subject.NAME`, `resource.NAME`, `context.NAME` | what the policy says under `subjects`, else what whoever asks says, where `claims` lists it |

| comparison | holds when the attribute |
|---|---|
| a plain value, `is: VALUE` | is the value: the same type, the same text or number |
| a plain list, `in: [VALUES]` | is one of them |
| `lt`, `lte`, `gt`, `gte` | is a number (`time`: a moment with its zone) below, at most, above, at least |
| `glob: PATTERN` or a list | is text that a pattern matches; text with more than one spelling (`a/../b`), or of more than 4096 characters, cannot be worked out |
| `has: VALUE` or a list | is a list (of at most 256 values) that holds one of them |
| `exists: true` or `false` | is there; null is as if it was left out |
| `during: SCHEDULE` or a list (`time` alone) | is within one of the schedules |
| `not: COMPARISON` or a value or a list | does not compare so |
| `{attr: OTHER}` in place of a value | compares so with another attribute |

What cannot be worked out (the attribute is missing, or has another type: `5` is no `"5"`) makes an `allow` rule not match, and a
`never` or `require_approval` rule match, reason `condition_error`. One plain no in `all`, and one plain yes in `any`, decides whatever else
cannot be worked out. Text is compared as it stands: for what has several spellings (`/etc//passwd`) use `glob`, which says nothing about those.
-5 is below 500: where that matters, say `gte: 0` too. `action` is folded as the service's actions are.

## Expressions

For what `when` cannot say: arithmetic, and whether all or some of a list are such. A rule may have `expr`, in
[CEL](https://cel.dev), with `when` or without; both must hold. It needs the extra `cel` (`pip install 'banksman[cel]'`; the image
has it) wherever policies are read: by enforcers, by processors, which take budgets from them, and where they are linted. Without it a
policy that has an `expr` does not load there, and what was in force goes on.

```yaml
    allow:
      - service: stripe
        actions: ["refunds:create"]
        when: {args.amount: {gte: 0}}
        expr: "args.amount + args.fee <= args.paid && args.currency in ['usd', 'eur']"
      - service: mcp
        actions: [order]
        expr: "args.items.all(item, item.price < 100 && item.kind != 'gift card') && size(args.items) < 20"
```

The attributes are those of `when`, by the same names; `args` alone is a mapping of all arguments (`'force' in args`, `args['two words']`,
`args.all(name, name in ['a', 'b'])`).

| there is | |
|---|---|
| `&&` `\|\|` `!` `? :` | one plain no in `&&`, and one plain yes in `\|\|`, decides whatever else cannot be worked out |
| `==` `!=` `<` `<=` `>` `>=` | values of one kind, as in `when`: text, numbers, true and false, moments, spans of time |
| `+` `-` `*` `/` | numbers, of which there is one kind, as in JSON: 5 / 2 is 2.5; `+` also of text and of lists |
| `in` | a list, written or an attribute |
| `LIST.all(one, …)`, `.exists(one, …)`, `.exists_one(one, …)` | not within each other; what holds of all of an empty list always does: ask for its `size` too |
| `has(args.NAME)` | whether it is there |
| `.startsWith` `.endsWith` `.contains` `.matches`, `size` | of text, by characters (`size` also counts lists and mappings); `matches` finds an [RE2](https://github.com/google/re2/wiki/Syntax) pattern anywhere, which has to be written in the policy |
| `int` `double` `timestamp` `duration` | `timestamp(args.since)`, `time - timestamp(args.since) < duration('24h')` |

Where this is stricter than CEL: values of different kinds cannot be compared, where CEL says that they are not equal (an agent could
send `["prod"]` for `"prod"`); only lists are gone through, not the keys of a mapping that was sent in place of one; null is as if it was left
out. `action` is compared as it is matched, folded as the service's actions are: a text that can never be one of them does not load.
What cannot be worked out counts as for `when`. So does an attribute (`args` alone is one) with more than 256 values (it is
one itself, and so is each name in a mapping) or 16384 characters in it,
with a NUL in its text, or a number further from zero than 2^53 - 1; and an expression that takes more than 10000 steps through lists.
Longest: 1000 characters, 12 brackets within each other.

`lint` and `diff` prove nothing by what an expression says: it may hold or not. `diff` tells where its text has changed. A `backtest` works it
out of what is on record, where arguments stand redacted. What `when` can say is better said there.

## Schedules and freezes

```yaml
schedules:
  office-hours: {days: [mon, tue, wed, thu, fri], from: "09:00", to: "18:00", timezone: Europe/Berlin}
  christmas: {begins: "2026-12-19", ends: "2027-01-04T08:00", timezone: Europe/Berlin}
freeze:
  - {during: [christmas], services: [git, kubernetes]}              # then: deny (default)
  - {during: [office-hours], then: approve, approvers: {any: [ann]}}
```

By the wall clock of `timezone`. A night (`from: "22:00", to: "06:00"`) belongs to the day that it began on. During a freeze whatever is not
known to read only (the table below; a service that is not in it has nothing that is) is denied, or needs a human's yes where it would
otherwise be allowed, for every agent: no rule lifts it, and shadow does not cover it. Without `services` it is about all of them. An answer that
changes because a schedule begins or ends changes on the next request.
"""

MEANINGS = """
## How an operation is decided

An operation is `service` + `action`, and where there are such `resource` and `branch`. `never` > `require_approval` > `allow` >
deny: the order of rules means nothing, and what no rule names is denied. A rule without `resources` or `branches` matches any.

A rule that names `branches` never matches an operation without a branch. But when a `never` or `require_approval` rule would
match if only the operation named its branch or resource, the answer is deny, reason `incomplete_operation`: leaving a field out
never gets more.

In `shadow` mode the answer is allow and the record says what it would have been (`shadow`); guardrails and freezes are enforced all the
same. `mode` stands in the file, in an entry of `agents` (which goes before the file's), or in one rule: that one is only noted, everything
else is enforced.

## Patterns

Matching is exact in case, but for the actions of `aws`, `http` and `postgres`. There are no sets, negations or escapes; a pattern that seems to use one is
refused.

| where | `*` and `?` | `**` |
|---|---|---|
| repositories, branches, files, hosts, everything else | stay inside one `/` segment | crosses segments; `**/` is any number of whole segments, none included |
| ARNs (six parts) | stay inside a part; in the sixth they match everything, as in AWS IAM | as `*` |
| actions | match everything | as `*` |

## One spelling

What has more than one spelling is not matched but denied, reason `not_canonical`; nothing is repaired. Refused in all four
fields: control and invisible characters, text that is not in Unicode's form NFC, `%` escapes, backslashes, white space at an
end, the empty text. In resources and branches: empty, `.` and `..` segments (one leading `/` is an absolute path). In an ARN:
fewer than six parts, an empty sixth, and `.` or `..` segments in it. In hosts: upper case, empty labels, a trailing dot, user
names, a query right behind the host, wildcards (in what is asked; patterns have them), a scheme's own port, a port with a
leading zero, an IP address in another form than its usual one (`0xa9fea9fe`, `[::ffff:a9fe:a9fe]`), a URL without its `//`
(`http:acme.example`). In branches: what git takes for another way to name one (`refs/heads/main`, `heads/main`, `HEAD`, `@`,
`HEAD:main`, `+main`, `main~0`, `main@{0}`), and wildcards in what is asked. In repositories of `git`: addresses (`https://…`,
`git@…:…`) and what ends in `.git`.
A pattern that names such a spelling is refused when the file is loaded, because it would never match.
"""

SERVICES_INTRO = """
## Services

What is known of services by name. It decides the tier of an `allow` rule that gives none (1 for what only reads, 2 for the rest), what a
freeze lets pass, and what `lint` takes for a typing error; whether a rule matches it never decides. Services of your own need no entry.
"""

TESTS = """
## Tests

`NAME_test.yaml` beside `NAME.yaml`; `banksman policy test` asks the policy everything that it lists.

```yaml
policy: billing-automation.yaml            # default: the file of the same name without _test
at: "2026-12-01T10:00:00+01:00"            # the time that it is; each test may have its own
operations:
  push a feature: {service: git, action: push, resource: acme/billing, branch: feature/x}
  push main: {service: git, action: push, resource: acme/billing, branch: main}
  refund a lot: {service: stripe, action: "refunds:create", args: {amount: 9000}}
tests:
  - name: the invoice agent
    expect:
      claude-invoice-01: {push a feature: allow, push main: {decision: approve, rule: claude-invoice-01/require_approval/0}}
      somebody-else: {}
```

Each agent of `expect` is asked about every operation (or those that the test lists as `operations`), and what is not listed must be
denied. Expected are a decision, or `decision` with any of `rule`, `reason`, `tier`, `shadow`. Where a policy goes by the time, the file must
say which. `--coverage 100`: every rule has to decide a case.

An agent that the policy does not know is refused, since a name with a typing error in it would pass where nothing is allowed. Two
ways to say that somebody is unknown on purpose: the name `somebody-else`, and `strangers: [claude-old-07]` at the top of the file.

The same in pytest, as one test for each agent and operation, told as `banksman policy test` tells it:

```toml
[tool.pytest.ini_options]
banksman_policies = ["policies"]     # the folders whose *_test.yaml are tests of policies; without it pytest takes none
testpaths = ["tests", "policies"]    # what `pytest` alone collects
```

```console
$ pytest policies
$ pytest "policies/billing_test.yaml::the invoice agent::claude-invoice-01::push main"
```

The plugin is found in every environment that has `banksman[server]`, and imports nothing until there is such a file.
"""

VERSIONS = """
## Versions

`NAME@vN+sha256:12HEX`: the project, the file's own `version` (0 without one), and the first 12 digits of the SHA-256 of the
normalised policy (RFC 8785 JSON, defaults left out, lists whose order means nothing sorted). It stands in every decision. Two
files that say the same have the same hash; `policy.loaded` in `control` holds the whole text of every version that was in force.

## What goes wrong

| what | then |
|---|---|
| a file does not load (not YAML, an unknown key, a wrong value: told with file, line and key) | the last good one stays in force; `policy.rejected`, a finding, a line in `banksman status` |
| two files for one project | both are rejected, what was in force stays |
| a file goes away | default deny for its project, `policy.removed` |
| replicas have different versions in force for more than 5 s | a finding that names who has what |
"""


def _verbs(several: frozenset[str]) -> str:
    if len(several) > MOST_VERBS:  # Stripe's: each thing with each verb
        things, verbs = ({one.partition(":")[at] for one in several} for at in (0, 2))
        return f"{', '.join(f'`{verb}`' for verb in sorted(verbs))} of {', '.join(f'`{thing}`' for thing in sorted(things))}"
    return ", ".join(f"`{one}`" for one in sorted(several))


def policy_page() -> str:
    """The whole page."""
    words = ", ".join(f"`{word}`" for word in sorted(READ_ONLY_WORDS))
    longest = f"service {normal.MAX_SERVICE}, action {normal.MAX_ACTION}, resource {normal.MAX_RESOURCE}, branch {normal.MAX_BRANCH}"
    parts = [
        FORMAT,
        MEANINGS,
        f"Longest, in characters: {longest}; beyond: `too_long`.\n",
        "\n## Reasons\n\nThe `reason` of a decision is one of these words, and their meaning never changes.\n",
        "| reason | when |\n|---|---|",
        *(f"| `{reason}` | {meaning} |" for reason, meaning in MEANING.items()),
        SERVICES_INTRO,
        "| service | resources | actions that only read | others |\n|---|---|---|---|",
        *(
            f"| `{name}` {one.title} | {one.names}{', branches' if one.branches else ''} | {_verbs(one.reads)} | "
            f"{_verbs(one.writes)}{' and more' if one.open else ''} |"
            for name, one in SERVICES.items()
        ),
        f"\nAWS: what only reads begins, after its service, with {', '.join(f'`{start}`' for start in READ_ONLY_AWS)}. Actions that are in no",
        f"list are guessed by their verb (after the last `:`, `.`, `/` or `__`): one that begins with one of {words}.",
        "\n## Lint\n\n`banksman policy lint` says, with line and mend:\n",
        "| code | | |\n|---|---|---|",
        *(f"| `{code}` | {level} | {about} |" for code, (level, about) in CODES.items()),
        TESTS,
        VERSIONS,
        "This page is made by `make docs`.\n",
    ]
    return "\n".join(parts)
