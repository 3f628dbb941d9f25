"""One enforcer replica: what its parts share, and the tasks that keep it in touch with Kafka.

Everything it knows comes from `control` and its own policy folder; nothing is kept on disk. A fresh id per process:
the same name twice could not be told apart on the log.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from aiokafka.errors import KafkaError

from banksman import provision
from banksman.enforcer.agreement import EVERY, PATIENCE_S, Agreement, told
from banksman.enforcer.answers import Answers
from banksman.enforcer.approving import Approving
from banksman.enforcer.aside import Aside
from banksman.enforcer.binding import Binding
from banksman.enforcer.budgets import Budgets
from banksman.enforcer.callers import Callers
from banksman.enforcer.control import ControlReader, Peer, State
from banksman.enforcer.lease import Lease
from banksman.enforcer.metrics import Metrics
from banksman.enforcer.policies import Policies
from banksman.enforcer.record import SERVICE, Records, stamp
from banksman.errors import BrokerAway, Unavailable
from banksman.events import Finding
from banksman.events import Replica as Heartbeat
from banksman.metrics import Measure
from banksman.service import together
from banksman.stamps import boottime, rfc3339, uuid7_from

if TYPE_CHECKING:
    from banksman.approvals import Approval
    from banksman.control_log import Forged
    from banksman.events import Vote
    from banksman.settings import Enforcer, Kafka
    from banksman.signing import Secret

LAST_WORDS_S = 1.0
BREATH_S = 0.002
"""What is in a hurry within so many seconds shares a heartbeat: nobody floods the log with them."""
FORGED_AT_ONCE = 30.0
_log = logging.getLogger("banksman")


class Replica:
    """The parts, made but not connected. `run` connects them and keeps them going."""

    def __init__(self, kafka: Kafka, secret: Secret, settings: Enforcer, address: str) -> None:
        self.kafka, self.secret, self.settings, self.address = kafka, secret, settings, address
        self.id = secrets.token_hex(8)
        self.started = rfc3339()
        self.lease = Lease(settings.lease_s)
        self.state = State()
        self.metrics = Metrics()
        self.records = Records(kafka, secret, settings, self.id)
        self.callers = Callers(self)
        self.answers = Answers(boottime)
        self.aside = Aside()
        self.binding = Binding(secret, self.aside)
        self.policies = Policies(self)
        self.budgets = Budgets(kafka, secret, settings, self.policies, self.lease.clock)
        self.hurry = asyncio.Event()
        """Set when the next heartbeat must not wait."""
        self.approving = Approving(self)
        self.control = ControlReader(
            kafka, secret, self.lease, self.state,
            forged=self._forged, changed=self.hurry.set, settled=self._settled,
        )  # fmt: skip
        self._told: dict[tuple[str, str], float] = {}
        self._forged_left, self._forged_at = FORGED_AT_ONCE, 0.0
        self.agreement = Agreement()
        self._gauges()

    # ── the tasks ──

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop` is set; say goodbye. Raises BadDeployment, or whatever one of the tasks died of."""
        connecting = asyncio.create_task(self._connect(), name="connect")
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait((connecting, stopping), return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not connecting.done():
            connecting.cancel()
            await asyncio.gather(connecting, return_exceptions=True)
            return
        connecting.result()
        tasks = [
            asyncio.create_task(self.control.run(), name="control reader"),
            asyncio.create_task(self._beat(), name="heartbeat"),
            asyncio.create_task(self.budgets.run(), name="limits reader"),
            asyncio.create_task(self.records.deliver(), name="delivery"),
            asyncio.create_task(self.policies.watch(), name="policy folder"),
            asyncio.create_task(self.policies.tell(), name="policy news"),
            asyncio.create_task(self._compare(), name="comparison"),
            asyncio.create_task(self.approving.watch(), name="approvals"),
            asyncio.create_task(self.records.die(), name="Kafka producer"),
        ]
        try:
            await together(stop, *tasks)
            await self._deliver_the_rest()
        finally:
            self.lease.give_up()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._goodbye()
            await self.records.close()

    async def _connect(self) -> None:
        """Try until Kafka is there; say once that it is not. BadDeployment: it is not what the promises rest on."""
        said = False
        while True:
            try:
                await self.records.connect(await provision.check_topics(self.kafka, patience=0))
            except (BrokerAway, KafkaError, OSError) as error:
                if not said:
                    _log.warning("waiting for Kafka: %s", error)
                    said = True
                await asyncio.sleep(0.3)
            else:
                _log.info("replica %s at %s is connected to %s", self.id, self.address, self.kafka.kafka)
                return

    async def _beat(self) -> None:
        """Heartbeats: every `heartbeat_s`, and at once when something was applied."""
        under_way: set[asyncio.Future[int]] = set()
        await self.policies.read_once.wait()  # no lease, hence no decision, before there is a policy to go by
        while True:
            self.hurry.clear()
            beat = self._heartbeat()
            self.lease.begin(beat.id)
            try:
                sent = self.records.control_soon(beat, key=f"replica/{self.id}")
            except Unavailable:
                pass  # the queue is full of heartbeats: Kafka is away, and the lease says so
            else:
                under_way.add(sent)
                sent.add_done_callback(under_way.discard)
                sent.add_done_callback(lambda done, name=beat.id: self._beat_ended(done, name))  # type: ignore[misc]
            try:
                async with asyncio.timeout(self.settings.heartbeat_s):
                    await self.hurry.wait()
                    await asyncio.sleep(BREATH_S)
            except TimeoutError:
                pass

    def _beat_ended(self, sent: asyncio.Future[int], beat: str) -> None:
        if not sent.cancelled() and sent.exception() is None:
            self.lease.acknowledged(beat)

    def _heartbeat(self, *, ended: bool = False) -> Heartbeat:
        return Heartbeat(
            **stamp(self.records.source),
            replica=self.id,
            address=self.address,
            applied=self.state.applied,
            policies=told(self.policies.versions()),
            lease_s=self.lease.length,
            ended=ended,
        )

    async def _deliver_the_rest(self) -> None:
        """What was put off until later has no later."""
        try:
            async with asyncio.timeout(LAST_WORDS_S):
                await self.records.delivered()
        except TimeoutError:
            _log.error("%d findings and voids could not be delivered", self.records.undelivered)

    async def _goodbye(self) -> None:
        """The last heartbeat: nobody needs to wait for this replica any more."""
        try:
            async with asyncio.timeout(LAST_WORDS_S):
                await self.records.control(self._heartbeat(ended=True), key=f"replica/{self.id}")
        except Unavailable as error:
            _log.warning("could not say goodbye: %s", error)
        except TimeoutError:
            _log.warning("could not say goodbye: not acknowledged within %g s", LAST_WORDS_S)

    # ── what is over, and what is wrong, is told ──

    def _settled(self, approval: Approval, vote: Vote) -> None:
        """Whoever wrote the vote tells; and one other, in case it died."""
        self.approving.wake(approval)
        live = self.live()
        if vote.source == self.records.source or (live and self.id == min(peer.replica for peer in live)):
            self.approving.ended(approval)

    def _forged(self, forged: Forged) -> None:
        """The same finding from every replica and every start: its id and bytes come from the record alone.

        A flood of forged records must not become a flood of findings: a few at once, then one a second. The archiver,
        which has nothing else to do, counts them all.
        """
        now = self.lease.clock()
        self._forged_left = min(FORGED_AT_ONCE, self._forged_left + now - self._forged_at)
        self._forged_at = now
        if self._forged_left < 1:
            return
        self._forged_left -= 1
        where = f"control/0/{forged.offset}"
        self.records.later(
            Finding(
                v=1,
                id=uuid7_from(forged.received_ms, "forged", self.kafka.topic_prefix, where),
                time=_moment(forged.received_ms),
                source=SERVICE,
                detector="forged",
                severity="page",
                title=f"a record in control was not applied: {forged.why}",
                fingerprint="forged/control",
                evidence={"record": where, "key": forged.key, "kind": forged.kind},
                suggestion="find out who can write to Kafka; the record is stored, marked, and applied by nobody",
            ),
            "banksman",
        )

    def finding(
        self, detector: str, fingerprint: str, title: str, *, project: str | None = None, severity: str = "warn",
        suggestion: str | None = None, **evidence: object,
    ) -> None:  # fmt: skip
        """Tell a human, once a minute at most for the same thing. Other evidence is news: another mistake in the same file."""
        now, what = self.lease.clock(), (fingerprint, repr(evidence))
        if now - self._told.get(what, -60.0) < 60:
            return
        self._told[what] = now
        if len(self._told) > 10_000:
            self._told = {what: at for what, at in self._told.items() if now - at < 60}
        found = Finding(
            **stamp(self.records.source),
            detector=detector,
            severity=severity,  # type: ignore[arg-type]  # one of the three words, from our own code
            title=title,
            fingerprint=fingerprint,
            project=project,
            evidence=evidence,
            suggestion=suggestion,
        )
        self.records.later(found, project or "banksman")

    async def _compare(self) -> None:
        """Watch that all replicas have the same policies in force; the one with the lowest id tells."""
        await self.control.caught_up.wait()
        # Until then the last heartbeats of the dead, just read, look like new ones.
        await asyncio.sleep(max((peer.lease_s for peer in self.state.peers.values()), default=self.lease.length))
        self.policies.notice_gone()
        while True:
            await asyncio.sleep(1)
            now = self.lease.clock()
            live = self.state.live(now)
            for project, versions in self.agreement.overdue(live, now):
                if live and self.id == min(peer.replica for peer in live):
                    self.finding(
                        "policy_disagreement",
                        f"policy_disagreement/{project}",
                        f"replicas have had different policies of {project} in force for more than {PATIENCE_S:g} s",
                        project=project if project != EVERY else None,
                        severity="page",
                        suggestion="see that every replica's policy folder has the same files: banksman status",
                        versions=versions,
                    )

    def _gauges(self) -> None:
        for name, about, value in (
            ("lease_seconds", "What is left of the lease; 0: no decision is answered.", self._lease_left),
            ("waiting", "Decisions that wait for their acknowledgement.", self.waiting),
            ("control_applied", "The offset in control up to which records are applied.", lambda: self.state.applied),
            ("replicas", "Live replicas, this one included.", lambda: len(self.live())),
            ("undelivered", "Findings and voids that are not on record yet.", lambda: self.records.undelivered),
            ("policies", "Policies in force.", lambda: len(self.policies.versions())),
            ("policies_rejected", "Files that do not load.", lambda: len(self.policies.rejections)),
            ("agents", "Agents that are enrolled.", lambda: len(self.state.identities.agents)),
            ("agents_revoked", "Agents that are revoked.", lambda: len(self.state.controls.revoked)),
            ("projects_paused", "Projects that are paused.", lambda: len(self.state.controls.paused)),
            ("budget_unknown", "Questions that got no answer: nobody had counted.", lambda: self.budgets.unknown),
            (
                "counted_s_ago", "Seconds since all was counted, in the partition where it is longest.",
                self._counted_s_ago,
            ),
            ("answers_kept", "Answers kept for repeated questions.", lambda: len(self.answers)),
        ):  # fmt: skip
            self.metrics.page.add(Measure(name, about, value))
        about = "Findings that had no room while Kafka was away."
        self.metrics.page.add(Measure("dropped", about, lambda: self.records.dropped, counter=True))

    def _counted_s_ago(self) -> float:
        now = self.lease.clock()
        return max((now - to for to in self.budgets.counted_to.values()), default=-1.0)

    def _lease_left(self) -> float:
        return max(0.0, self.lease.ends - self.lease.clock())

    def waiting(self) -> int:
        """Decisions that wait for their acknowledgement."""
        return self.records.decisions.pending if self.records.connected else 0

    def live(self) -> list[Peer]:
        """The replicas that were heard within one lease, this one included."""
        return self.state.live(self.lease.clock())


def _moment(ms: int) -> str:
    return rfc3339(datetime.fromtimestamp(ms / 1000, UTC))
