"""docs/reference/policy.md: what is said about the format, and the tables that are made from the code."""

from __future__ import annotations

from banksman.policy import normal
from banksman.policy.load import LATER
from banksman.policy.catalogue import READ_ONLY, READ_ONLY_AWS, READ_ONLY_WORDS
from banksman.policy.verdict import MEANING

FORMAT = """# Policy

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
version the names in `any` are those of operators: a group, as in the example above, can be approved by nobody yet. Not in this version, and refused: """

MEANINGS = """
## How an operation is decided

An operation is `service` + `action`, and where there are such `resource` and `branch`. `never` > `require_approval` > `allow` >
deny: the order of rules means nothing, and what no rule names is denied. A rule without `resources` or `branches` matches any.

A rule that names `branches` never matches an operation without a branch. But when a `never` or `require_approval` rule would
match if only the operation named its branch or resource, the answer is deny, reason `incomplete_operation`: leaving a field out
never gets more.

In `shadow` mode the answer is allow and the record says what it would have been; guardrails are enforced all the same.

## Patterns

Matching is exact in case, but for AWS actions. There are no sets, negations or escapes; a pattern that seems to use one is
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
`HEAD:main`, `+main`, `main~0`, `main@{0}`), and wildcards in what is asked.
A pattern that names such a spelling is refused when the file is loaded, because it would never match.
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


def policy_page() -> str:
    """The whole page."""
    later = ", ".join(f"`{key}`" for key in LATER)
    words = ", ".join(f"`{word}`" for word in sorted(READ_ONLY_WORDS))
    longest = f"service {normal.MAX_SERVICE}, action {normal.MAX_ACTION}, resource {normal.MAX_RESOURCE}, branch {normal.MAX_BRANCH}"
    parts = [
        f"{FORMAT}{later} (a file with one of these keys does not load: it is never half obeyed).\n",
        MEANINGS,
        f"Longest, in characters: {longest}; beyond: `too_long`.\n",
        "\n## Reasons\n\nThe `reason` of a decision is one of these words, and their meaning never changes.\n",
        "| reason | when |\n|---|---|",
        *(f"| `{reason}` | {meaning} |" for reason, meaning in MEANING.items()),
        "\n## Read-only verbs\n\nAn `allow` rule without `tier` is tier 1 for what only reads and tier 2 for the rest. A wrong guess here",
        "allows or denies nothing.\n",
        "| service | actions that only read |\n|---|---|",
        *(
            f"| `{service}` | {', '.join(f'`{verb}`' for verb in sorted(verbs)) or 'none: a command may do anything'} |"
            for service, verbs in sorted(READ_ONLY.items())
        ),
        f"| `aws` | those whose name after the service begins with {', '.join(f'`{start}`' for start in READ_ONLY_AWS)} |",
        f"| any other | those whose verb (after the last `:`, `.`, `/` or `__`) begins with one of the words {words} |",
        VERSIONS,
        "This page is made by `make docs`.\n",
    ]
    return "\n".join(parts)
