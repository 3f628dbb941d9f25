"""A month of five agents at work under a policy, as its decisions stand in the audit log. What each is answered says the real
engine, at the time when it is asked; what they ask is drawn: tickets and their branches, objects by date, refunds, nights,
weekends, and now and then something that they may not do.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from banksman.policy.compile import Bundle, CompiledPolicy
from banksman.policy.holds import Facts
from banksman.policy.load import load
from banksman.stamps import rfc3339_ms, uuid7

PROJECT = "month"
DAYS = 30
POLICY = """\
project: month
owner: payments-team
schedules:
  office: {days: [mon, tue, wed, thu, fri], from: "06:00", to: "20:00", timezone: UTC}
  weekend: {days: [sat, sun], timezone: UTC}
freeze:
  - {during: [weekend], services: [kubernetes]}
guardrails:
  never:
    - {service: aws, actions: ["iam:*"]}
agents:
  invoices:
    owner: ann@acme.example
    budget: {daily_tokens: 5000000}
    allow:
      - {service: git, actions: [push, pull], resources: ["acme/billing", "acme/invoices"], branches: ["feature/*", "fix/*"]}
      - {service: aws, actions: ["s3:GetObject", "s3:PutObject"], resources: ["arn:aws:s3:::invoice-data/*"]}
      - {service: stripe, actions: ["invoices:read"]}
      - {service: stripe, actions: ["refunds:create"], when: {args.amount: {lt: 500}}}
    require_approval:
      - {service: git, actions: [push], resources: ["acme/*"], branches: [main, "release/*"]}
      - {service: stripe, actions: ["refunds:create"], when: {args.amount: {gte: 500}}, approvers: {any: [bob@acme.example]}}
  deploys:
    owner: cy@acme.example
    allow:
      - {service: kubernetes, actions: [get, list], resources: ["staging/**", "production/**"]}
      - {service: kubernetes, actions: [rollout], resources: ["staging/**"]}
    require_approval:
      - {service: kubernetes, actions: [rollout], resources: ["production/**"]}
    never:
      - {service: kubernetes, actions: [delete]}
  reports:
    owner: ann@acme.example
    budget: {daily_tokens: 30000}
    allow:
      - {service: postgres, actions: [select], resources: ["warehouse/**"]}
      - {service: filesystem, actions: [read, write], resources: ["/srv/reports/**"]}
      - {service: slack, actions: [post_message], resources: ["#reports"]}
  desk:
    owner: dee@acme.example
    mode: shadow
    allow:
      - {service: http, actions: [GET], resources: ["docs.acme.example/**"]}
      - {service: http, actions: [POST], resources: ["api.acme.example/v1/tickets"], when: {time: {during: office}}}
  nobody:
    allow:
      - {service: git, actions: [pull]}
"""


class Asked(NamedTuple):
    """One question of one agent. `at`: seconds since 1970."""

    at: float
    agent: str
    service: str
    action: str
    resource: str | None
    branch: str | None = None
    args: dict[str, Any] | None = None


def decisions(ends: datetime, seed: int = 6) -> list[dict[str, Any]]:
    """`decision` records of the DAYS days before `ends`, some 20,000, in the order of their times."""
    draw = random.Random(seed)
    loaded = load(POLICY.encode(), "month.yaml").policy
    bundle = Bundle({PROJECT: CompiledPolicy(loaded)})
    first = ends - timedelta(days=DAYS)
    asked = [one for day in range(DAYS) for one in _day(draw, first + timedelta(days=day), day)]
    return [_record(bundle, loaded.version, one) for one in sorted(asked, key=lambda one: one.at)]


def _day(draw: random.Random, begins: datetime, day: int) -> Iterator[Asked]:
    moment = begins.timestamp()
    working = begins.astimezone(UTC).weekday() < 5

    def at() -> float:
        return moment + draw.random() * 86_390

    for _ in range(200 if working else 60):
        ticket, repo = (
            f"{draw.choice(['feature', 'fix'])}/PAY-{draw.randrange(day * 3, day * 3 + 9)}",
            draw.choice(["billing", "invoices"]),
        )
        yield Asked(at(), "invoices", "git", draw.choice(["push", "pull"]), f"acme/{repo}", ticket)
        key = f"arn:aws:s3:::invoice-data/{begins:%Y/%m}/inv-{draw.randrange(5000)}.json"
        yield Asked(at(), "invoices", "aws", draw.choice(["s3:GetObject", "s3:GetObject", "s3:PutObject"]), key)
        yield Asked(at(), "invoices", "stripe", "invoices:read", f"invoice/in_{draw.randrange(9000)}")
    for _ in range(20):
        yield Asked(
            at(), "invoices", "stripe", "refunds:create", f"charge/ch_{draw.randrange(400)}",
            args={"amount": draw.choice([5, 20, 99.5, 499, 500, 900]), "currency": "eur"},
        )  # fmt: skip
    yield Asked(at(), "invoices", "git", "push", "acme/billing", draw.choice(["main", f"release/1.{day}"]))
    yield Asked(at(), "invoices", "git", "push", "acme/platform", "feature/mine-too")
    yield Asked(at(), "invoices", "aws", "iam:CreateUser", None)
    for _ in range(40):
        where = f"{draw.choice(['staging', 'production'])}/deployments/{draw.choice(['api', 'web', 'worker'])}"
        yield Asked(at(), "deploys", "kubernetes", draw.choice(["get", "list", "rollout"]), where)
    yield Asked(at(), "deploys", "kubernetes", "delete", "staging/pods/load-test")
    for _ in range(60):
        yield Asked(
            at(), "reports", "postgres", "select", f"warehouse/public.{draw.choice(['sales', 'refunds', 'costs'])}"
        )
        yield Asked(
            at(), "reports", "filesystem", "read", f"/srv/reports/in/{begins:%Y-%m-%d}-{draw.randrange(30)}.csv"
        )
    yield Asked(at(), "reports", "filesystem", "write", f"/srv/reports/out/{begins:%Y-%m-%d}.html")
    yield Asked(at(), "reports", "slack", "post_message", "#reports")
    yield Asked(at(), "reports", "postgres", "drop", "warehouse/public.sales")
    for _ in range(30):
        yield Asked(at(), "desk", "http", "GET", f"docs.acme.example/guide/{draw.randrange(60)}")
        yield Asked(at(), "desk", "http", "POST", "api.acme.example/v1/tickets", args={"priority": draw.randrange(4)})
    yield Asked(at(), "desk", "http", "DELETE", "api.acme.example/v1/tickets")
    yield Asked(at(), "nobody", "git", "push", "acme/billing", "main")


def _record(bundle: Bundle, version: str, asked: Asked) -> dict[str, Any]:
    verdict = bundle.decide(
        PROJECT, asked.agent, asked.service, asked.action, asked.resource, asked.branch, Facts(asked.args, asked.at)
    )
    ruling, ms = verdict.ruling, int(asked.at * 1000)
    made = {
        "kind": "decision", "v": 1, "id": uuid7(ms), "time": rfc3339_ms(ms), "source": "enforcer#month", "parent": uuid7(ms),
        "project": PROJECT, "agent": asked.agent, "session": f"{asked.agent}-{ms // 7_200_000}", "service": verdict.service,
        "action": verdict.action, "resource": verdict.resource, "branch": verdict.branch, "args": asked.args,
        "decision": ruling.decision, "tier": ruling.tier, "reason": ruling.reason, "rule": ruling.rule, "policy": PROJECT,
        "policy_version": version, "shadow": ruling.shadow,
    }  # fmt: skip
    return {name: value for name, value in made.items() if value is not None}
