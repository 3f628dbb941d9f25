"""What detectors saw, on its way to the log: findings to `alerts`, spending to `limits`, what is done about it to `control`.

All of it is acknowledged before the states that it comes from are written. A worker that was ended between the two writes
the same again, under the same ids.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any

from banksman import bus, codec
from banksman.control_log import DETECTORS
from banksman.errors import Unavailable
from banksman.events import Budget, Finding, ProjectPaused, SessionKilled, Watermark, kind_of
from banksman.processors.detector import Sighting, Spent
from banksman.signing import service_signer
from banksman.stamps import rfc3339, rfc3339_ms, uuid7, uuid7_from
from banksman.topics import Topic

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aiokafka import AIOKafkaProducer

    from banksman.events import Control, Event
    from banksman.processors.worker.engine import Output
    from banksman.processors.worker.known import Known
    from banksman.processors.worker.states import Encoded
    from banksman.settings import Kafka
    from banksman.signing import Secret

RETRY_S = 0.5
DEADLINE_S = 30.0
TOO_LATE_MS = 120_000
"""Nothing is done about what was seen longer ago than this: whoever comes back from an outage must not act on the past."""
_log = logging.getLogger("banksman")


class Outbox:
    """Publishes for one worker. `worker`: its name."""

    def __init__(self, producer: AIOKafkaProducer, kafka: Kafka, secret: Secret, worker: str, known: Known) -> None:
        self._signer, self._known, self._worker = service_signer(secret, DETECTORS), known, worker
        self._producer = producer
        self._publishers = {
            topic: bus.Publisher(producer, kafka.topic(topic), bound=1_000_000, deadline=DEADLINE_S)
            for topic in (Topic.ALERTS, Topic.LIMITS, Topic.CONTROL)
        }
        self._changelogs: dict[str, bus.Publisher] = {}

    async def tell(self, outputs: Iterable[Output]) -> None:
        """All of it, acknowledged, however long that takes. What is done comes first: only then it is told that it is done."""
        several = [(output, _id(output)) for output in outputs]
        done = await asyncio.gather(*(self._done(output, name) for output, name in several))
        told = [self._told(output, name, act) for (output, name), act in zip(several, done, strict=True)]
        await asyncio.gather(
            *(
                self._put(event, key, output.run)
                for (event, key), (output, _) in zip(told, several, strict=True)
                if event
            )
        )

    async def watermark(self, partition: int, lag_ms: float) -> None:
        """Say up to when a partition is counted. Unavailable: not now; the next one says more."""
        event = Watermark(
            **self._head(uuid7(), rfc3339()), partition=partition, lag_ms=lag_ms, worker=self._worker
        )  # fmt: skip
        await self._try(event, f"watermark/{partition}", "")

    async def write(self, changelog: str, states: Iterable[Encoded]) -> None:
        """States into their changelog, signed, acknowledged."""
        publisher = self._changelogs.get(changelog)
        if publisher is None:
            publisher = bus.Publisher(self._producer, changelog, bound=1_000_000, deadline=DEADLINE_S)
            self._changelogs[changelog] = publisher
        waiting = list(states)
        while waiting:
            waiting = await self._put_states(publisher, waiting)
            if waiting:
                await asyncio.sleep(RETRY_S)

    async def _put_states(self, publisher: bus.Publisher, states: list[Encoded]) -> list[Encoded]:
        """-> those that were not acknowledged. No task for each: there is a state for every second record."""
        now, futures, left = rfc3339(), list[asyncio.Future[int]](), states[publisher.room :]
        states = states[: publisher.room]
        for state in states:
            headers = self._signer.headers(
                publisher.topic, state.key, state.value or b"", id=uuid7(), kind="state", time=now, source=DETECTORS
            )  # fmt: skip
            futures.append(publisher.put(state.partition, state.key, state.value, headers))  # type: ignore[arg-type]  # None: a tombstone
        told = await asyncio.gather(*futures, return_exceptions=True)
        failed = [(state, error) for state, error in zip(states, told, strict=True) if isinstance(error, BaseException)]
        for _, error in failed:
            if not isinstance(error, Unavailable):
                raise error
        if failed:
            _log.warning("%d states are not written yet: %s", len(failed), failed[0][1])
        return [*(state for state, _ in failed), *left]

    # ── what is said ──

    def _told(self, output: Output, name: str, done: str) -> tuple[Event | None, str]:
        """-> (the event, its key). None: nobody needs to hear of it. `done`: besides telling."""
        what, moment = output.what, rfc3339_ms(output.at_ms)
        if isinstance(what, Spent):
            if output.run:
                return None, ""  # history touches no live budget
            budget = Budget(
                **self._head(name, moment), project=output.project, agent=output.agent, window=what.day,
                unit=what.unit, spent=what.spent, limit=what.limit, fraction=what.spent / what.limit, burn=round(what.burn, 4),
                exhausted_at=None if what.exhausted_ms is None else rfc3339_ms(what.exhausted_ms),
                resets_at=rfc3339_ms(what.resets_ms), offsets=output.offsets,
            )  # fmt: skip
            return budget, f"{output.agent}/{what.unit}"
        evidence = {"record": output.cause, **what.evidence} | ({"done": done} if done else {})
        finding = Finding(
            **self._head(name, moment), parent=output.parent, detector=output.detector, severity=what.severity,
            title=what.title, fingerprint=what.fingerprint, project=output.project, agent=output.agent,
            session=output.session, evidence=evidence, suggestion=what.suggestion or None,
            owner=self._known.owner_of(output.project, output.agent), count=what.count,
            policy_version=self._known.version_of(output.project, output.agent),
            first_seen=None if what.first_ms is None else rfc3339_ms(what.first_ms), last_seen=moment, over=what.over,
        )  # fmt: skip
        return finding, output.agent

    # ── what is done ──

    async def _done(self, output: Output, name: str) -> str:
        """Do what the policy wants done about a sighting -> what was done, in words; "" where nothing is wanted."""
        what = output.what
        if isinstance(what, Spent) or what.act == "alert" or what.over or output.run:
            return ""
        while True:
            act = self._act(what, output, name)
            if act is None:
                return "the session is killed" if what.act == "kill" else "the project is paused"
            if time.time() * 1000 - output.at_ms >= TOO_LATE_MS:
                return f"nothing: the policy wants a {what.act}, and it was seen too late"
            try:
                await self._try(act, f"{kind_of(act)}/{act.id}", "")
            except Unavailable as error:
                _log.warning("%s", error)
                await asyncio.sleep(RETRY_S)
            else:
                self._known.acts.add(act.id)

    def _act(self, what: Sighting, output: Output, name: str) -> Control | None:
        """What is to be done. None: it was done before. Made anew for every try, because `control` believes nobody who signed
        long ago.
        """
        head = self._head(uuid7_from(output.at_ms, "act", name), rfc3339()) | {
            "reason": f"{output.detector}: {what.title}"[:1000], "parent": name,
        }  # fmt: skip
        controls = self._known.controls
        if head["id"] in self._known.acts:
            return None
        if what.act == "pause":
            return None if output.project in controls.paused else ProjectPaused(**head, project=output.project)
        assert output.session is not None, "what kills names a session"
        if (output.agent, output.session) in controls.killed:
            return None
        return SessionKilled(**head, project=output.project, agent=output.agent, session=output.session)

    def _head(self, name: str, moment: str) -> dict[str, Any]:
        return {"v": 1, "id": name, "time": moment, "source": DETECTORS}

    # ── how ──

    async def _put(self, event: Event, key: str, run: str) -> None:
        while True:
            try:
                await self._try(event, key, run)
            except Unavailable as error:
                _log.warning("%s", error)
                await asyncio.sleep(RETRY_S)
            else:
                return

    async def _try(self, event: Event, key: str, run: str) -> None:
        publisher, raw, value = self._publishers[event.topic], key.encode(), codec.encode(event)
        headers = self._signer.headers(
            publisher.topic, raw, value, id=event.id, kind=kind_of(event), time=event.time, source=event.source, replay=run
        )  # fmt: skip
        await publisher.put(0, raw, value, headers)


def _id(output: Output) -> str:
    what = output.what
    about = what.fingerprint if isinstance(what, Sighting) else what.unit
    more = f"{what.severity}/{what.over}" if isinstance(what, Sighting) else ""
    return uuid7_from(output.at_ms, output.detector, output.cause, output.agent, output.run, about, more)
