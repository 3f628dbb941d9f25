"""The six topics: what each is for and how it has to be configured.

Everything that banksman knows travels on these; names and settings stand here and nowhere else.
`received`, the time that partitions, retention, budgets and "now" go by, is Kafka's append time, hence
`message.timestamp.type=LogAppendTime` everywhere.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

MIB = 1024 * 1024
DAY_MS = 86_400_000


class Topic(enum.StrEnum):
    """The value is the name without the prefix (`banksman.` by default)."""

    ACTIONS = "actions"
    DECISIONS = "decisions"
    CONTROL = "control"
    LIMITS = "limits"
    ALERTS = "alerts"
    DEAD = "dead"


@dataclass(frozen=True)
class TopicSpec:
    """How a topic is created and checked. `partitions` None: as many as the setting says."""

    topic: Topic
    purpose: str
    partitions: int | None
    compact: bool
    retention_ms: int  # -1: for ever (the compacted ones)
    max_message_bytes: int = 2 * MIB  # events are cut to 1 MiB; headers and batch framing come on top
    config: dict[str, str] = field(default_factory=dict)

    def configs(self, *, replication: int) -> dict[str, str]:
        """The topic's Kafka configuration."""
        return {
            "cleanup.policy": "compact" if self.compact else "delete",
            "message.timestamp.type": "LogAppendTime",
            "max.message.bytes": str(self.max_message_bytes),
            "retention.ms": str(self.retention_ms),
            "unclean.leader.election.enable": "false",
            "min.insync.replicas": "2" if replication >= 3 else "1",
            **self.config,
        }


# A compacted topic is cleaned segment by segment, and the active one never: small, often-rolled segments keep replay
# short (heartbeats are 9,000 records an hour and replica).
_SMALL_SEGMENTS = {"segment.ms": "600000", "segment.bytes": str(16 * MIB), "min.cleanable.dirty.ratio": "0.1"}

SPECS: dict[Topic, TopicSpec] = {
    spec.topic: spec
    for spec in (
        TopicSpec(Topic.ACTIONS, "what agents do and report", None, compact=False, retention_ms=7 * DAY_MS),
        TopicSpec(Topic.DECISIONS, "what the enforcer answered", None, compact=False, retention_ms=30 * DAY_MS),
        TopicSpec(
            Topic.CONTROL,
            "identities, policies, controls, heartbeats: the order of these is the truth",
            1,
            compact=True,
            retention_ms=-1,
            max_message_bytes=8 * MIB,
            config=_SMALL_SEGMENTS,
        ),
        TopicSpec(
            Topic.LIMITS,
            "what every agent has spent of its budgets",
            1,
            compact=True,
            retention_ms=-1,
            config=_SMALL_SEGMENTS,
        ),
        TopicSpec(
            Topic.ALERTS, "what detectors saw and what a human was told", 1, compact=False, retention_ms=90 * DAY_MS
        ),
        TopicSpec(
            Topic.DEAD,
            "what can never be processed, with the reason",
            1,
            compact=False,
            retention_ms=90 * DAY_MS,
            max_message_bytes=16 * MIB,  # holds the raw bytes of any other topic's record, base64
        ),
    )
}

ARCHIVED = (Topic.ACTIONS, Topic.DECISIONS, Topic.CONTROL, Topic.LIMITS, Topic.ALERTS)
