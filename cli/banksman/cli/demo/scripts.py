"""What the demo's three agents do: two runs each, step by step. Their policies lie in policies/."""

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

    `until_seen`: it lasts until somebody has asked what this agent is doing right now.
    """

    service: str
    action: str
    resource: str | None = None
    branch: str | None = None
    args: dict[str, Any] = field(default_factory=dict)
    takes: float = 0.5
    error: str = ""
    until_seen: bool = False


@dataclass(frozen=True)
class Run:
    """One session."""

    prompt: str
    steps: list[Think | Act]


@dataclass(frozen=True)
class Script:
    """One agent: who it is, which model it uses, what it does."""

    project: str
    owner: str
    model: str
    runs: list[Run]


INVOICES = "arn:aws:s3:::invoice-data"

SCRIPTS: dict[str, Script] = {
    "claude-invoice-01": Script(
        "billing-automation", "ann@acme.example", "claude-sonnet-4-5",
        [
            Run("Put November's invoices into the archive and fix the rounding of late fees.", [
                Think(4100, 210),
                Act("stripe", "invoices:read", "invoice/in_2041", args={"status": "open"}),
                Act("aws", "s3:GetObject", f"{INVOICES}/2026/11/summary.csv"),
                Act("aws", "s3:PutObject", f"{INVOICES}/2026/11/archive.parquet", until_seen=True),
                Think(5200, 640, 0.9),
                Act("git", "pull", "acme/billing", "feature/late-fees"),
                Act("git", "push", "acme/billing", "feature/late-fees", takes=0.7),
                Act("git", "push", "acme/billing", "main", args={"force": False}),
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
    "deploy-bot-02": Script(
        "platform", "platform-team", "claude-haiku-4-5",
        [
            Run("Bring build 512 of the API to staging.", [
                Think(1500, 90, 0.4),
                Act("kubernetes", "get", "staging/deployments/api"),
                Act("terraform", "plan", "staging", takes=1.4),
                Act("kubernetes", "rollout", "staging/deployments/api", args={"image": "api:512"}, takes=1.1),
                Act("kubernetes", "get", "staging/deployments/api"),
                Act("kubernetes", "get", "production/deployments/api"),
                Act("kubernetes", "rollout", "production/deployments/api", args={"image": "api:512"}),
            ]),
            Run("Clean up after the load test.", [
                Think(1200, 70, 0.4),
                Act("kubernetes", "list", "staging/pods"),
                Act("kubernetes", "delete", "staging/pods/load-test-1"),
                Act("aws", "iam:CreateAccessKey", "arn:aws:iam::123456789012:user/load-test"),
                Act("terraform", "plan", "staging", takes=1.2),
                Act("kubernetes", "list", "production/pods"),
            ]),
        ],
    ),
    "web-research-03": Script(
        "research", "bob@acme.example", "claude-sonnet-4-5",
        [
            Run("What is new in structured concurrency? Write notes.", [
                Think(3100, 150),
                Act("http", "get", "docs.python.example/3/library/asyncio-task", takes=0.8),
                Act("http", "get", "arxiv.example/abs/2611.01234", takes=0.9),
                Act("http", "get", "pastebin.example/raw/x7", takes=0.4),
                Think(9800, 900, 1.2),
                Act("files", "write", "notes/structured-concurrency.md", args={"bytes": 5321}),
                Act("email", "send", "bob@acme.example", args={"subject": "structured concurrency"}),
            ]),
            Run("Check the sources of last week's notes.", [
                Think(1800, 110),
                Act("files", "read", "notes/actors.md"),
                Act("http", "get", "arxiv.example/abs/2610.00017", takes=0.8, error="timed out"),
                Act("http", "get", "arxiv.example/abs/2610.00017", takes=0.8),
                Act("files", "read", "notes/../../etc/passwd"),
                Act("files", "write", "notes/actors.md", args={"bytes": 3120}),
            ]),
        ],
    ),
}  # fmt: skip
