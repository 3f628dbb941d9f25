"""The rules and the questions of bench/decide.py and bench/peers.py: eleven rules for each agent, what is asked about them, and
the answers, written by hand. The standard library only: engines of others run in processes of their own, which import this.
"""

from __future__ import annotations

import json
from typing import Any

PER_PROJECT = 100


def agent_rules(i: int) -> dict[str, Any]:
    """Eleven rules in the proportions of a busy agent: git, S3 and payments."""
    bucket = f"arn:aws:s3:::data-{i}-*"
    return {
        "owner": f"owner-{i}@acme.example",
        "allow": [
            {"service": "git", "actions": ["pull"], "resources": ["acme/**"]},
            {
                "service": "git",
                "actions": ["push"],
                "resources": [f"acme/app-{i}", f"acme/lib-{i}-*"],
                "branches": ["feature/*", "fix/*"],
            },
            {
                "service": "aws",
                "actions": ["s3:GetObject", "s3:ListBucket"],
                "resources": [f"{bucket}/*", "arn:aws:s3:::shared/*"],
            },
            {"service": "aws", "actions": ["s3:PutObject"], "resources": [f"{bucket}/out/*"]},
            {"service": "stripe", "actions": ["refund.create"], "resources": ["ch_1", "ch_22"]},
            {"service": "stripe", "actions": ["charge.read", "customer.read"]},
        ],
        "require_approval": [
            {
                "service": "git",
                "actions": ["push"],
                "resources": [f"acme/app-{i}"],
                "branches": ["main", "release/*"],
                "approvers": {"any": ["leads"], "min": 1},
            },
            {"service": "aws", "actions": ["s3:DeleteObject"], "resources": [f"{bucket}/*"]},
            {"service": "stripe", "actions": ["refund.create"], "resources": ["ch_2*"]},
        ],
        "never": [
            {"service": "git", "actions": ["push", "force_push"], "resources": ["acme/infra-*"], "branches": ["**"]},
            {
                "service": "aws",
                "actions": ["s3:*"],
                "resources": ["arn:aws:s3:::prod-secrets*/*", "arn:aws:s3:::shared/secrets/*"],
            },
        ],
    }


def project_text(agents: list[int]) -> str:
    project = f"project-{agents[0] // PER_PROJECT}"
    return json.dumps({"project": project, "version": 1, "agents": {f"agent-{i}": agent_rules(i) for i in agents}})


Operation = tuple[str, str, str, str, str | None, str | None]


def shapes(i: int) -> list[tuple[Operation, str]]:
    project, agent, s3 = f"project-{i // PER_PROJECT}", f"agent-{i}", f"arn:aws:s3:::data-{i}-raw"
    git, aws, pay = (project, agent, "git"), (project, agent, "aws"), (project, agent, "stripe")
    return [
        ((*git, "pull", "acme/docs", "main"), "allow"),
        ((*git, "push", f"acme/app-{i}", "feature/x1"), "allow"),
        ((*git, "push", f"acme/app-{i}", "main"), "approve"),
        ((*git, "push", "acme/infra-net", "feature/x"), "deny"),
        ((*git, "push", "acme/other", "main"), "deny"),
        ((*aws, "s3:GetObject", f"{s3}/2026/11/a.parquet", None), "allow"),
        ((*aws, "s3:PutObject", f"{s3}/out/b/c.parquet", None), "allow"),
        ((*aws, "s3:DeleteObject", f"{s3}/x", None), "approve"),
        ((*aws, "s3:GetObject", "arn:aws:s3:::prod-secrets-1/key", None), "deny"),
        ((*pay, "refund.create", "ch_1", None), "allow"),
        ((*pay, "refund.create", "ch_2x", None), "approve"),
        ((project, f"ghost-{i}", "git", "push", "acme/x", "main"), "deny"),
    ]


def edges(i: int) -> list[tuple[Operation, str]]:
    """What is asked once, before anything is timed: where a translation of the rules would go wrong first."""
    project, agent, s3 = f"project-{i // PER_PROJECT}", f"agent-{i}", f"arn:aws:s3:::data-{i}-raw"
    git, aws, pay = (project, agent, "git"), (project, agent, "aws"), (project, agent, "stripe")
    return [
        ((*aws, "s3:GetObject", "arn:aws:s3:::shared/2026/report", None), "allow"),
        ((*aws, "s3:GetObject", "arn:aws:s3:::shared/secrets/key", None), "deny"),  # never goes before allow
        ((*pay, "refund.create", "ch_22", None), "approve"),  # and approval too
        ((*pay, "refund.create", "ch_3", None), "deny"),
        ((*pay, "charge.read", "ch_9", None), "allow"),  # a rule without resources: any
        ((*git, "pull", "acme/docs/site", "main"), "allow"),  # two stars cross segments
        ((*git, "push", f"acme/lib-{i}-x", "fix/y"), "allow"),
        ((*git, "push", f"acme/lib-{i}-x/y", "fix/y"), "deny"),  # one stays inside
        ((*git, "push", f"acme/app-{i}", "feature/x/y"), "deny"),
        ((*git, "push", f"acme/app-{i}", "release/1.2"), "approve"),
        ((*git, "push", f"acme/app-{i}x", "feature/x1"), "deny"),  # a name is matched whole
        ((*git, "push", f"acme/app-{i}", None), "deny"),  # a field left out never gets more
        ((*git, "force_push", f"acme/app-{i}", "feature/x1"), "deny"),
        ((*aws, "s3:PutObject", f"{s3}/in/b.parquet", None), "deny"),
        ((project, agent, "ci", "push", f"acme/app-{i}", "feature/x1"), "deny"),
    ]
