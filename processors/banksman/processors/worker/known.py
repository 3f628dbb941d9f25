"""What `control` says, as far as a worker goes by it: the policies in force, and what was done about agents.

Every replica of the enforcer goes by its own folder, and its heartbeats say which policies that are. Where they differ, for the
moment of a deployment or for longer, an agent's budget is the strictest of them: what one of them limits must be told. Where no
heartbeat says (none came lately, or they are too many for one), it is the policy that was loaded last. One that was removed is
kept: its agents are denied, and what they spent stays known.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import aclosing
from typing import TYPE_CHECKING

import msgspec
from aiokafka.errors import KafkaError

from banksman import bus
from banksman.control_log import ControlLog
from banksman.controls import Controls
from banksman.errors import InvalidPolicy
from banksman.events import PolicyLoaded, ProjectPaused, Replica, SessionKilled
from banksman.policy.load import load
from banksman.policy.rules import Budget
from banksman.topics import Topic

if TYPE_CHECKING:
    from collections.abc import Sequence

    from banksman.control_log import Forged
    from banksman.events import Event
    from banksman.policy.rules import AgentPolicy, Policy
    from banksman.settings import Kafka
    from banksman.signing import Secret

LATELY_MS = 60_000
"""For so long a heartbeat says what a replica has in force."""
VERSIONS = 20
"""Of a project, the last ones that were loaded are remembered."""
STRICT = ("deny", "approve", "alert")
_log = logging.getLogger("banksman")


class Known:
    """Reads `control` from its beginning, for as long as the process lives."""

    def __init__(self, kafka: Kafka, secret: Secret) -> None:
        self._kafka = kafka
        self._log = ControlLog(kafka, secret, _told_by_others)
        self._texts: dict[str, PolicyLoaded] = {}
        """By version."""
        self._parsed: dict[str, Policy] = {}
        self._last: dict[str, str] = {}
        """Project -> the version that was loaded last."""
        self._beats: dict[str, Replica] = {}
        self._heard: dict[str, int] = {}
        """Replica -> when its last heartbeat was received."""
        self._of: dict[tuple[str, str], AgentPolicy | None] = {}
        self._changed: set[str] = set()
        self._read: dict[str, str] = {}
        """Project -> the version that was read last: it goes on where none that is in force can be read."""
        self._unreadable: set[str] = set()
        self._to_read = True
        self.controls = Controls()
        self.acts: set[str] = set()
        """The ids of kills and pauses: one that was written before a crash is not written again."""
        self.caught_up = asyncio.Event()
        """Set when everything that was there at the start was read."""

    def policy_of(self, project: str, agent: str) -> AgentPolicy | None:
        """What an agent's policies say about it."""
        try:
            return self._of[project, agent]
        except KeyError:
            obeyed = (_obeyed(policy, agent) for policy in self._in_force(project))
            several = [one for one in obeyed if one is not None]
            found = self._of[project, agent] = _strictest(several) if several else None
            return found

    def owner_of(self, project: str, agent: str) -> str | None:
        """Who answers for an agent."""
        policy = self._parsed.get(self._last.get(project, ""))
        return policy.owner_of(agent) if policy is not None else None

    def version_of(self, project: str, agent: str) -> str | None:
        """The policy that an agent goes by; where several are in force, one of them."""
        named = [policy.version for policy in self._in_force(project) if policy.of(agent) is not None]
        return named[-1] if named else None

    def changed(self) -> set[str]:
        """The projects of which other policies are in force since this was last asked."""
        projects, self._changed = self._changed, set()
        return projects

    async def run(self) -> None:
        """Never returns. Raises when the log under the reader is gone."""
        end = await self._end()
        async with aclosing(self._log.batches()) as batches:
            async for batch in batches:
                for record in batch:
                    event = self._log.verified(record)
                    if event is not None:
                        self._apply(event, record.offset, record.timestamp)
                if self.caught_up.is_set() or end == 0 or (batch and batch[-1].offset >= end - 1):
                    await self._parse()
                    self.caught_up.set()

    def _apply(self, event: Event, offset: int, received_ms: int) -> None:
        if isinstance(event, Replica):
            self._beat(event, received_ms)
        elif isinstance(event, PolicyLoaded):
            self._texts.pop(event.policy_version, None)
            self._texts[event.policy_version] = event
            self._last[event.project] = event.policy_version
            self._changed_in({event.project})
        else:
            if isinstance(event, SessionKilled | ProjectPaused):
                self.acts.add(event.id)
            self.controls.apply(event, offset)

    def _beat(self, beat: Replica, received_ms: int) -> None:
        before = self._beats.pop(beat.replica, None)
        gone = [name for name, at_ms in self._heard.items() if received_ms - at_ms > LATELY_MS or name == beat.replica]
        for name in gone:
            del self._heard[name]
            lost = self._beats.pop(name, None)
            self._changed_in(set(lost.policies) if lost is not None else set())
        if not beat.ended:
            self._beats[beat.replica], self._heard[beat.replica] = beat, received_ms
        now = {} if beat.ended else beat.policies
        was = before.policies if before is not None else {}
        if now != was:
            self._changed_in({name for name in now.keys() | was.keys() if now.get(name) != was.get(name)})

    def _changed_in(self, projects: set[str]) -> None:
        if projects:
            self._to_read = True
            self._changed |= projects
            self._of.clear()

    def _versions(self, project: str) -> list[str]:
        """In force somewhere; the one that was loaded last stands last."""
        last = self._last.get(project)
        if last is None:
            return []
        found = {
            beat.policies[project] for beat in self._beats.values() if project in beat.policies
        } & self._texts.keys()
        return [*sorted(found - {last}), *([last] if last in found or not found else [])]

    def _in_force(self, project: str) -> list[Policy]:
        versions = [version for version in self._versions(project) if version in self._parsed]
        return [
            self._parsed[version] for version in versions or [self._read.get(project, "")] if version in self._parsed
        ]

    async def _parse(self) -> None:
        """What is in force and was not read yet, in a thread: one with many agents takes seconds. Forgets what nobody has."""
        if not self._to_read:
            return
        self._to_read = False
        wanted = {version for project in self._last for version in self._versions(project)} | set(self._last.values())
        for version in wanted - self._parsed.keys() - self._unreadable:
            loaded = self._texts[version]
            try:
                read = await asyncio.to_thread(load, loaded.text.encode(), loaded.file or loaded.project)
            except InvalidPolicy as error:  # of a later version of ours, perhaps
                _log.error("the policy %s cannot be read here; what was in force goes on: %s", version, error)
                self._unreadable.add(version)
                continue
            self._parsed[version] = read.policy
            self._of.clear()
            self._changed.add(loaded.project)
        for project in self._last:
            for version in self._versions(project):
                if version in self._parsed:
                    self._read[project] = version
        for version in self._parsed.keys() - wanted - set(self._read.values()):
            del self._parsed[version]
        self._forget(wanted)

    def _forget(self, wanted: set[str]) -> None:
        """The texts of old versions. One that is in force again after so many others is known when it is loaded again."""
        several: dict[str, list[str]] = {}
        for version, loaded in self._texts.items():
            several.setdefault(loaded.project, []).append(version)
        for versions in several.values():
            for version in versions[:-VERSIONS]:
                if version not in wanted:
                    del self._texts[version]

    async def _end(self) -> int:
        """Where `control` ends now; tried until there is somebody to ask."""
        while True:
            try:
                return await bus.end_of(self._kafka, self._kafka.topic(Topic.CONTROL))
            except (KafkaError, OSError) as error:
                _log.warning("control cannot be read yet: %s", error)
                await asyncio.sleep(bus.RETRY_S)


def _obeyed(policy: Policy, agent: str) -> AgentPolicy | None:
    """What a policy says of an agent, as far as anything is done about it: in shadow mode nothing is."""
    said = policy.of(agent)
    if said is None or not policy.is_shadow(agent):
        return said
    budget = said.budget and msgspec.structs.replace(said.budget, on_exhausted="alert")
    return msgspec.structs.replace(said, budget=budget, on_loop="alert", on_anomaly="alert")


def _strictest(several: Sequence[AgentPolicy]) -> AgentPolicy:
    """The last one, with the strictest budget of all."""
    budgets = [one.budget for one in several if one.budget is not None]
    if len(several) == 1 or not budgets:
        return several[-1]
    tokens = [one.daily_tokens for one in budgets if one.daily_tokens is not None]
    usd = [one.daily_cost_usd for one in budgets if one.daily_cost_usd is not None]
    budget = Budget(
        min(tokens, default=None), min(usd, default=None), min(one.alert_threshold for one in budgets),
        min((one.on_exhausted for one in budgets), key=STRICT.index), budgets[-1].timezone,
    )  # fmt: skip
    return msgspec.structs.replace(several[-1], budget=budget)


def _told_by_others(forged: Forged) -> None:
    """Enforcers and the archiver tell of what was forged."""
    _log.warning("control/0/%d was not applied: %s", forged.offset, forged.why)
