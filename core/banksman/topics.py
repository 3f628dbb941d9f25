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
    """How a topic is created and checked. `partitions` None: as many as the setting says. How long a topic is kept is a
    setting, too; the compacted ones are for ever.
    """

    topic: Topic
    purpose: str
    partitions: int | None
    compact: bool
    max_message_bytes: int = 2 * MIB  # events are cut to 1 MiB; headers and batch framing come on top
    config: dict[str, str] = field(default_factory=dict)

    def configs(self, *, replication: int, days: int | None = None) -> dict[str, str]:
        """The topic's Kafka configuration. `days`: how long its records are kept; None: for ever."""
        return {
            "cleanup.policy": "compact" if self.compact else "delete",
            "message.timestamp.type": "LogAppendTime",
            "max.message.bytes": str(self.max_message_bytes),
            "retention.ms": str(days * DAY_MS if days else -1),
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
        TopicSpec(Topic.ACTIONS, "what agents do and report", None, compact=False),
        TopicSpec(Topic.DECISIONS, "what the enforcer answered", None, compact=False),
        TopicSpec(
            Topic.CONTROL,
            "identities, policies, controls, heartbeats: the order of these is the truth",
            1,
            compact=True,
            max_message_bytes=8 * MIB,
            config=_SMALL_SEGMENTS,
        ),
        TopicSpec(
            Topic.LIMITS,
            "what every agent has spent of its budgets, and up to when that is counted",
            1,
            compact=True,
            config=_SMALL_SEGMENTS,
        ),
        TopicSpec(Topic.ALERTS, "what detectors saw and what a human was told", 1, compact=False),
        TopicSpec(
            Topic.DEAD,
            "what can never be processed, with the reason",
            1,
            compact=False,
            max_message_bytes=16 * MIB,  # holds the raw bytes of any other topic's record, base64
        ),
    )
}

ARCHIVED = (Topic.ACTIONS, Topic.DECISIONS, Topic.CONTROL, Topic.LIMITS, Topic.ALERTS)
