"""What the demo's five agents do, step by step. Their policies lie in policies/.

One of them does its work. The others give their operator, and the detectors, something to do: one deletes what is still
needed, one cannot stop trying, one spends all it may, one does what it never did.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Think:
    """A request to a model. `takes`: seconds."""

    input_tokens: int
    output_tokens: int
    takes: float = 0.6


@dataclass(frozen=True)
class Act:
    """A tool call: asked for first, done only when it is allowed. `error`: what goes wrong when it is done.

    `until_seen`: it lasts until somebody has asked what this agent is doing right now. `waits`: where a human is asked, it
    waits for the answer. In a resource, {run} stands for what no earlier demo had, {n} for a number of its own.
    """

    service: str
    action: str
    resource: str | None = None
    branch: str | None = None
    args: dict[str, Any] = field(default_factory=dict)
    takes: float = 0.5
    error: str = ""
    until_seen: bool = False
    waits: bool = False


@dataclass(frozen=True)
class Killed:
    """Here an operator kills the session. The agent goes on as if nothing were."""


@dataclass(frozen=True)
class Again:
    """The same steps again and again, until the agent was denied something `denials` times; `most` times if it never is."""

    steps: list[Think | Act]
    most: int = 14
    denials: int = 1


@dataclass(frozen=True)
class Run:
    """One session, or several of the same kind, one after another."""

    prompt: str
    steps: list[Think | Act | Killed | Again]
    times: int = 1


@dataclass(frozen=True)
class Script:
    """One agent: who it is, which model it uses, what it does."""

    project: str
    owner: str
    model: str
    runs: list[Run]


INVOICES = "arn:aws:s3:::invoice-data"
BILLING, PLATFORM = "billing-automation", "platform"
INVOICE, REPORT, REFUNDS = "claude-invoice-01", "claude-report-02", "claude-refunds-03"
DEPLOY, TESTS = "deploy-bot-04", "test-runner-05"

SCRIPTS: dict[str, Script] = {
    INVOICE: Script(
        BILLING, "ann@acme.example", "claude-sonnet-4-5",
        [
            Run("Put November's invoices into the archive and fix the rounding of late fees.", [
                Think(4100, 210),
                Act("stripe", "invoices:read", "invoice/in_2041", args={"status": "open"}),
                Act("aws", "s3:GetObject", f"{INVOICES}/2026/11/summary.csv"),
                Act("aws", "s3:PutObject", f"{INVOICES}/2026/11/archive.parquet", until_seen=True),
                Think(5200, 640, 0.9),
                Act("git", "pull", "acme/billing", "feature/late-fees"),
                Act("git", "push", "acme/billing", "feature/late-fees", takes=0.7),
                Act("git", "push", "acme/billing", "main", args={"force": False}, waits=True),
            ]),
            Run("Customer 7 says that she was charged twice.", [
                Think(2300, 120),
                Act("stripe", "charges:read", "charge/ch_7001"),
                Act("stripe", "charges:read", "charge/ch_7002", takes=0.4, error="stripe answered 500"),
                Act("stripe", "charges:read", "charge/ch_7002", takes=0.4),
                Act("stripe", "refunds:create", "charge/ch_7002", args={"amount": 4900, "currency": "eur"}),
                Act("aws", "s3:DeleteObject", f"{INVOICES}/2026/11/dispute.json"),
                Think(1900, 260),
            ]),
        ],
    ),
    REPORT: Script(
        BILLING, "ann@acme.example", "claude-opus-4-1",
        [
            Run("Summarise every invoice of the year, one by one, with all attachments.", [
                Act("files", "read", "reports/../../etc/passwd"),
                Again([
                    Think(5600, 400, 0.3),
                    Act("stripe", "invoices:read", "invoice/in_30{n}", takes=0.2),
                ]),
            ]),
        ],
    ),
    REFUNDS: Script(
        BILLING, "bob@acme.example", "claude-haiku-4-5",
        [
            Run("Is ticket 17 about a refund?", [
                Think(600, 40, 0.2),
                Act("tickets", "read", "ticket/17", takes=0.1),
                Act("stripe", "charges:read", "charge/ch_0017", takes=0.1),
                Act("tickets", "comment", "ticket/17", takes=0.1),
            ], times=6),
            Run("Is ticket 18 about a refund?", [
                Think(600, 40, 0.2),
                Act("tickets", "read", "ticket/18", takes=0.1),
                Act("customers", "export", "customers/all-{run}", takes=0.2),
                Act("http", "post", "files.example/upload-{run}", takes=0.2),
            ]),
        ],
    ),
    DEPLOY: Script(
        PLATFORM, "platform-team", "claude-haiku-4-5",
        [
            Run("Bring build 512 of the API to staging.", [
                Think(1500, 90, 0.4),
                Act("kubernetes", "get", "staging/deployments/api"),
                Act("terraform", "plan", "staging", takes=1.4),
                Act("kubernetes", "rollout", "staging/deployments/api", args={"image": "api:512"}, takes=1.1),
                Act("kubernetes", "get", "production/deployments/api"),
                Act("kubernetes", "rollout", "production/deployments/api", args={"image": "api:512"}),
            ]),
            Run("Clean up after the load test.", [
                Think(1200, 70, 0.4),
                Act("kubernetes", "list", "staging/pods"),
                Act("kubernetes", "delete", "staging/pods/load-test-1"),
                Killed(),
                Act("aws", "iam:CreateAccessKey", "arn:aws:iam::123456789012:user/load-test"),
                Act("terraform", "plan", "staging", takes=1.2),
                Act("kubernetes", "list", "production/pods"),
            ]),
        ],
    ),
    TESTS: Script(
        PLATFORM, "platform-team", "claude-sonnet-4-5",
        [
            Run("Make the tests of build 512 pass.", [
                Think(2100, 150, 0.4),
                Act("git", "pull", "acme/api", "fix/flaky-test"),
                Again([
                    Think(3900, 120, 0.2),
                    Act("ci", "run", "acme/api", "fix/flaky-test", takes=0.3, error="2 of 812 tests failed"),
                ], denials=6),
            ]),
        ],
    ),
}  # fmt: skip
