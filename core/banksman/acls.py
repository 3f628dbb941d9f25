"""What each kind of principal may do in Kafka, and nothing else: the second wall, behind the signatures.

A broker that asks for an ACL for everything (StandardAuthorizer, no `allow.everyone.if.no.acl.found`) refuses the rest. That
Read and Write imply Describe, and that Write on any topic suffices for an idempotent producer, is Kafka's own rule.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Literal, NamedTuple

from aiokafka.errors import ClusterAuthorizationFailedError, for_code
from aiokafka.protocol.admin import CreateAclsRequest

from banksman.errors import BadDeployment
from banksman.progress import ARCHIVER, NOTIFIER, PROCESSORS
from banksman.provision import asked
from banksman.topics import ARCHIVED, Topic

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from aiokafka.admin import AIOKafkaAdminClient

    from banksman.settings import Kafka

Operation = Literal["Read", "Write", "Create", "Describe", "DescribeConfigs"]
_OPERATIONS: dict[Operation, int] = {"Read": 3, "Write": 4, "Create": 5, "Describe": 8, "DescribeConfigs": 10}
_RESOURCES = {"topic": 2, "group": 3}
_LITERAL, _PREFIXED, _ALLOW = 3, 4, 3
"""Numbers of Kafka's protocol."""
ALL = tuple(Topic)
GROUPS = (ARCHIVER, PROCESSORS, NOTIFIER)


class Acl(NamedTuple):
    """One operation on one resource. `prefixed`: on every resource whose name begins so."""

    resource: Literal["topic", "group"]
    name: str
    operation: Operation
    prefixed: bool = False


@dataclass(frozen=True)
class Needs:
    """What a kind of principal does. `why`: for the reference page."""

    why: str
    read: tuple[Topic, ...] = ()
    write: tuple[Topic, ...] = ()
    create: tuple[Topic, ...] = ()
    group: str = ""
    """The consumer group that it is in."""
    checks: bool = False
    """Looks at the configuration of all topics when it starts: the promises rest on it."""
    watches: bool = False
    """Looks at where all topics end and how far the groups are."""
    tables: bool = False
    """Makes compacted topics of its own, `processors-…-changelog`, which hold its state."""
    once: bool = False
    """Has its rights for one act. Who does not ask for them by name does not give them again."""


KINDS: dict[str, Needs] = {
    "agents": Needs("write what they do; they read nothing, not even that", write=(Topic.ACTIONS,)),
    "enforcer": Needs(
        "writes decisions, controls, findings and what agents report over HTTP; goes by controls and limits",
        read=(Topic.CONTROL, Topic.LIMITS),
        write=(Topic.ACTIONS, Topic.DECISIONS, Topic.CONTROL, Topic.ALERTS),
        checks=True,
    ),
    "archiver": Needs(
        "reads all that is archived; writes dead letters and findings",
        read=ARCHIVED, write=(Topic.ALERTS, Topic.DEAD), group=ARCHIVER, checks=True,
    ),
    "processors": Needs(
        "count what was done and decided, under the policies in control; write limits and findings, and in control the kills "
        "and pauses that a policy asks of them",
        read=(Topic.ACTIONS, Topic.DECISIONS, Topic.CONTROL),
        write=(Topic.CONTROL, Topic.LIMITS, Topic.ALERTS),
        group=PROCESSORS, checks=True, tables=True,
    ),
    "notifier": Needs(
        "tells what is in alerts, writes there that it was told, reads channels in control, and watches the other services",
        read=(Topic.CONTROL, Topic.ALERTS), write=(Topic.ALERTS,), group=NOTIFIER, checks=True, watches=True,
    ),
    "console": Needs(
        "reads identities and policies in control, and how far the services are", read=(Topic.CONTROL,), watches=True
    ),
    "migrate": Needs("makes the topics that are missing and checks the others", create=ALL, checks=True),
    "bootstrap": Needs(
        "`operators add --bootstrap`, once: reads who is there, writes the first operator",
        read=(Topic.CONTROL,), write=(Topic.CONTROL,), once=True,
    ),
}  # fmt: skip


def needed(kind: str, kafka: Kafka) -> list[Acl]:
    """The ACLs of a kind of principal, with the topics' prefix of the settings."""
    needs = KINDS[kind]
    prefix = kafka.topic_prefix
    every = [
        *(Acl("topic", kafka.topic(topic), "Read") for topic in needs.read),
        *(Acl("topic", kafka.topic(topic), "Write") for topic in needs.write),
        *(Acl("topic", kafka.topic(topic), "Create") for topic in needs.create),
    ]
    if needs.checks or needs.watches:
        every += [Acl("topic", kafka.topic(topic), "Describe") for topic in ALL]
    if needs.checks:
        every += [Acl("topic", kafka.topic(topic), "DescribeConfigs") for topic in ALL]
    if needs.tables:
        own = f"{prefix}{PROCESSORS}-"
        every += [Acl("topic", own, operation, prefixed=True) for operation in ("Create", "Read", "Write")]
    if needs.group:
        every.append(Acl("group", prefix + needs.group, "Read"))
    if needs.watches:
        every += [Acl("group", prefix + group, "Describe") for group in GROUPS if group != needs.group]
    return every


def commands(kafka: Kafka, principals: Mapping[str, Sequence[str]]) -> list[str]:
    """`kafka-acls.sh` commands that make them. `principals`: kind -> those that are of it."""
    begin = ["kafka-acls.sh", "--bootstrap-server", kafka.kafka, "--command-config", "admin.properties", "--add"]
    made = []
    for kind, several in principals.items():
        allowed = [word for principal in several for word in ("--allow-principal", principal)]
        by_name = groupby(sorted(needed(kind, kafka)), lambda acl: (acl.resource, acl.prefixed, acl.name))
        alike: dict[tuple[str, bool, tuple[str, ...]], list[str]] = {}
        for (resource, prefixed, name), found in by_name:
            alike.setdefault((resource, prefixed, tuple(acl.operation for acl in found)), []).append(name)
        for (resource, prefixed, operations), names in alike.items():
            words = [*begin, *allowed]
            words += [word for operation in operations for word in ("--operation", operation)]
            words += ["--resource-pattern-type", "prefixed"] if prefixed else []
            words += [word for name in names for word in (f"--{resource}", name)]
            made.append(shlex.join(words))
    return made


async def make(kafka: Kafka, principals: Mapping[str, Sequence[str]]) -> int:
    """Make them; what is there stays -> how many. BadDeployment: the broker refuses, or has no authorizer. BrokerAway."""
    wanted = [
        (principal, acl) for kind, several in principals.items() for principal in several for acl in needed(kind, kafka)
    ]

    async def made(admin: AIOKafkaAdminClient) -> None:
        for principal, acl in wanted:
            await _make(admin, principal, acl)

    await asked(kafka, made)
    return len(wanted)


async def _make(admin: AIOKafkaAdminClient, principal: str, acl: Acl) -> None:
    pattern = _PREFIXED if acl.prefixed else _LITERAL
    request = CreateAclsRequest(
        _RESOURCES[acl.resource], acl.name, pattern, principal, "*", _OPERATIONS[acl.operation], _ALLOW
    )
    answer = await admin._send_request(request)  # noqa: SLF001 - the admin client (0.14) has no call of its own for ACLs
    for code, message in answer.creation_responses:
        error = for_code(code)
        if code and error.retriable:
            raise error(message)
        if error is ClusterAuthorizationFailedError:
            raise BadDeployment("this Kafka user may not make ACLs: that takes Alter on the cluster")
        if code:
            raise BadDeployment(f"{principal} {acl.operation} {acl.resource} {acl.name}: {message or error.__name__}")


def principals_of(given: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """(kind, name) -> by kind, as Kafka writes them. A name without a type is a user's."""
    found: dict[str, list[str]] = {}
    for kind, name in given:
        found.setdefault(kind, []).append(name if name.startswith(("User:", "Group:")) else f"User:{name}")
    return found
