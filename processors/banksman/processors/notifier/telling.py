"""Telling: each channel its own queue, and in it one step at a time.

    plan ─► (wait for the channel's turn, plan anew) ─► Slack accepts ─► the record is acknowledged ─► it counts as told

What is sent is chosen and worded when it may go, not before: after an outage the latest is told, or a digest of much. A step
whose answer was lost is looked for among our own messages before it is made again; they carry the incident's id.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from typing import TYPE_CHECKING, Any, Protocol

from banksman.processors.notifier import traces, words
from banksman.processors.notifier.incidents import IN_LOG, LOG, Incident, Incidents, Place
from banksman.processors.notifier.slack import Away, Declined, Lost

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from banksman.processors.notifier.slack import Slack
    from banksman.processors.notifier.words import Message

_log = logging.getLogger("banksman")

UPDATE_S = 3.0
"""A message is brought up to date once in this time."""
BACKOFF_S = (0.5, 15.0)
LOOKS, LOOK_S = 2, 1.0
"""How often a message is looked for whose answer was lost, and the time between: Slack may show it a moment later."""
CLOCKS_S = 600.0
"""How far Slack's clock may be from the broker's, where messages are looked for."""
MENDED_S = 600.0
"""After how long a policy's channel that could not be used is tried again."""
AGAIN_S = 0.2
NO_TURN_S = 60.0

_CHANNEL = frozenset(
    ("channel_not_found", "not_in_channel", "is_archived", "restricted_action", "restricted_action_read_only_channel",
     "restricted_action_non_threadable_channel", "restricted_action_thread_only_channel", "invalid_channel",
     "method_not_supported_for_channel_type", "messages_tab_disabled", "mpim_not_enabled")
)  # fmt: skip
"""What Slack says when it is the channel that cannot be used."""
_TOKEN = frozenset(
    ("invalid_auth", "not_authed", "account_inactive", "token_revoked", "token_expired", "missing_scope",
     "not_allowed_token_type", "org_login_required", "team_access_not_granted", "access_denied", "ekm_access_denied",
     "no_permission", "two_factor_setup_required")
)  # fmt: skip
"""What Slack says when it is us who may not: only a person can mend that."""


class Journal(Protocol):
    """Where it is written down that something was told."""

    async def told(self, incident: Incident, place: Place, rank: int, *, over: bool) -> None:
        """Return when it is acknowledged."""

    async def resolved(self, incident: Incident) -> None:
        """The same for a resolution."""


class Telling:
    """The queues of one reign: from when this process got the log of alerts to when it lost it."""

    def __init__(
        self,
        incidents: Incidents,
        slack: Slack | None,
        journal: Journal,
        channel_of: Callable[[str | None], str],
        default: str,
        *,
        may: Callable[[], bool],
    ) -> None:
        self._incidents, self._slack, self._journal = incidents, slack, journal
        self._channel_of, self._default, self._may = channel_of, default, may
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._news: dict[str, asyncio.Event] = {}
        self._unusable: dict[str, float] = {}
        self._shown_at: dict[str, float] = {}

    def news(self) -> None:
        """Something changed: whoever has something to tell does."""
        for incident in (*self._incidents.pending.values(), *self._incidents.stale(lambda _: True)):
            name = self._where(incident)
            if name not in self._tasks:
                self._news[name] = asyncio.Event()
                self._tasks[name] = asyncio.create_task(self._serve(name), name=f"channel {name}")
            self._news[name].set()

    def check(self) -> None:
        """Raises what a queue died of."""
        for task in self._tasks.values():
            if task.done():
                task.result()

    async def stop(self) -> None:
        """Leave everything as it is; the log knows what was told."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    # ── one channel ──

    async def _serve(self, name: str) -> None:
        pause, most = BACKOFF_S
        failed = 0
        while True:
            step = self._incidents.waiting(lambda one: self._where(one) == name)
            wait = 0.0
            if not step:
                step, wait = self._updates(name)
            if step and wait <= 0:
                wait = self._turn(step[0], name) if self._may() else AGAIN_S
            if not step or wait > 0:
                self._news[name].clear()
                await self._until_news(name, wait or NO_TURN_S, first=not step)
                continue
            for one in step:
                one.busy = True
            try:
                await self._do(step, name)
            except (Away, Lost, Declined) as error:
                failed += 1
                if not self._mended(error, step, name):
                    await self._complain(error, step, name, failed)
                    if getattr(error, "after", None) is None:
                        await asyncio.sleep(min(most, pause * 2 ** min(failed - 1, 8)) * random.uniform(0.75, 1.25))
            else:
                if failed:
                    _log.info("told in %s again, after %d tries", name, failed)
                failed = 0
            finally:
                for one in step:
                    one.busy = False
            self.news()  # the next step may be another channel's

    async def _until_news(self, name: str, seconds: float, *, first: bool) -> None:
        """News end the wait for something to tell; the wait for the channel's turn ends when it is over."""
        if not first:
            await asyncio.sleep(seconds)
            return
        try:
            async with asyncio.timeout(seconds):
                await self._news[name].wait()
        except TimeoutError:
            pass

    def _where(self, one: Incident) -> str:
        """The channel that an incident's next step belongs to."""
        need = one.need()
        if self._slack is None:
            return LOG
        if need == "open" or one.place is None:
            return self._usable(self._channel_of(one.project)) if one.rank > 0 else LOG
        return one.place.name

    def _usable(self, channel: str) -> str:
        return self._default if self._unusable.get(channel, 0.0) > time.monotonic() else channel

    def _updates(self, name: str) -> tuple[list[Incident], float]:
        """-> (the message that shows less than is known, or none, how long it has to wait)."""
        stale = self._incidents.stale(lambda one: self._where(one) == name)
        if not stale or self._slack is None:
            return [], 0.0
        first = min(stale, key=lambda one: self._shown_at.get(one.id, 0.0))
        wait = self._shown_at.get(first.id, 0.0) + UPDATE_S - time.monotonic()
        return ([first], 0.0) if wait <= 0 else ([], wait)

    def _turn(self, one: Incident, name: str) -> float:
        """How long the channel has to wait for the next step."""
        slack, need = self._slack, one.need()
        if name == LOG or slack is None:
            return 0.0
        looks = slack.wait_to_look() if one.unsure else 0.0
        if need == "open":
            return max(slack.wait_to_post(name), looks)
        if need is None:
            return slack.wait_to_edit(repeat=True)
        if one.place is None or not one.place.ts:
            return 0.0
        return max(slack.wait_to_edit(), slack.wait_to_post(one.place.channel), looks)

    # ── the steps ──

    async def _do(self, step: Sequence[Incident], name: str) -> None:
        one, slack = step[0], self._slack
        need = one.need()
        if slack is None or name == LOG:
            for each in step:
                await self._say(each)
        elif need == "open":
            if any(each.unsure for each in step):
                await self._look(slack, step, name)
            elif len(step) > 1:
                await self._digest(slack, step, name)
            else:
                await self._open(slack, one, name)
        elif need == "escalate":
            await self._escalate(slack, one)
        elif need == "resolve":
            await self._resolve(slack, one)
        else:
            await self._show(slack, one)

    async def _say(self, one: Incident) -> None:
        """In the log."""
        over, rank, revision, need = one.over, one.rank, one.revision, one.need()
        if need == "resolve":
            if not one.shown_over:
                _log.info("%s", words.line(one))
            await self._resolved(one)
        else:
            _log.log(logging.INFO if rank == 0 or over else logging.WARNING, "%s", words.line(one))
            await self._told(one, IN_LOG, rank, revision, over=over)

    async def _open(self, slack: Slack, one: Incident, name: str) -> None:
        over, rank, revision = one.over, one.rank, one.revision
        channel, ts = await self._post(slack, [one], name, words.incident(one), traces.opened(one))
        await self._told(one, Place(name, channel, ts, own=True), rank, revision, over=over)

    async def _digest(self, slack: Slack, several: Sequence[Incident], name: str) -> None:
        states = [(one, one.rank, one.revision, one.over) for one in several]
        channel, ts = await self._post(slack, several, name, words.digest(several), traces.digest(several))
        place = Place(name, channel, ts)
        await asyncio.gather(*(self._told(one, place, rank, rev, over=over) for one, rank, rev, over in states))

    async def _escalate(self, slack: Slack, one: Incident) -> None:
        """It is a page now: in the thread, and shown in the channel as well, where somebody sees it."""
        place, rank, severity = one.place, one.rank, one.severity
        assert place is not None
        await self._show(slack, one)
        if not await self._replied(slack, one, severity):
            payload = traces.reply(one, severity)
            await self._post(slack, [one], place.channel, words.worse(one), payload, thread=place.ts, broadcast=True)
        await self._told(one, place, rank, one.shown, over=False)

    async def _resolve(self, slack: Slack, one: Incident) -> None:
        place = one.place
        if place is not None and place.own:
            await self._show(slack, one)
            if not one.shown_over and not await self._replied(slack, one, "over"):
                await self._say_over(slack, one, place, words.ended(one))
        elif (
            place is not None and place.ts and not self._others_of(one) and not await self._replied(slack, one, "over")
        ):
            await self._say_over(slack, one, place, words.all_ended(one))
        await self._resolved(one)

    async def _say_over(self, slack: Slack, one: Incident, place: Place, message: Message) -> None:
        try:
            await self._post(slack, [one], place.channel, message, traces.reply(one, "over"), thread=place.ts)
        except Declined as error:
            if error.error in _TOKEN:
                raise
            _log.warning("the thread cannot be told that it is over: %s", error)

    def _others_of(self, one: Incident) -> bool:
        """Whether others of its digest go on."""
        every = self._incidents.by_id.values()
        return any(each.place == one.place and each is not one and not each.told_over for each in every)

    async def _show(self, slack: Slack, one: Incident) -> None:
        """Bring the message up to date."""
        place, revision = one.place, one.revision
        assert place is not None
        try:
            await slack.edit(place.channel, place.ts, words.incident(one))
        except Lost as error:  # the same again does no harm
            raise Away(str(error)) from None
        except Declined as error:  # it was deleted, or may not be edited any more
            if error.error in _TOKEN:
                raise
            _log.warning("a message cannot be edited: %s", error)
        one.shown = revision
        self._shown_at[one.id] = time.monotonic()
        self._incidents.note(one)

    async def _post(
        self, slack: Slack, about: Sequence[Incident], channel: str, message: Message, payload: dict[str, Any],
        *, thread: str = "", broadcast: bool = False,
    ) -> tuple[str, str]:  # fmt: skip
        """-> (the channel's id, the message's ts). What was asked of Slack before may have taken long: who reigns is looked at
        again. Where the answer is lost, nobody knows whether it was told.
        """
        if not self._may():
            raise Away("another notifier may have taken over", after=AGAIN_S)
        try:
            return await slack.post(channel, message, payload, thread=thread, broadcast=broadcast)
        except Lost:
            for one in about:
                one.unsure = LOOKS
            raise

    # ── what may have been told already ──

    async def _look(self, slack: Slack, step: Sequence[Incident], name: str) -> None:
        """Find the messages of those that may have been told. Whoever is not found is told next."""
        unsure = [one for one in step if one.unsure]
        while unsure:
            try:
                channel, found = await slack.posted(name, min(one.opened_ms for one in unsure) / 1000 - CLOCKS_S)
            except Lost as error:
                raise Away(str(error)) from None
            except Declined as error:  # whether the channel can be posted to is another question
                _log.error("what was told in %s cannot be looked for (%s): something may be told twice", name, error)
                channel, found = "", []
            for one in unsure:
                trace = traces.told(one, found)
                if trace is None:
                    one.unsure -= 1
                    continue
                _log.info("found in %s, told before", name)
                await self._told(one, Place(name, channel, trace.ts, own=trace.own), trace.rank, -1, over=trace.over)
            unsure = [one for one in unsure if one.unsure]
            if unsure:
                await asyncio.sleep(LOOK_S)

    async def _replied(self, slack: Slack, one: Incident, step: str) -> bool:
        """Whether the thread has this already."""
        while one.unsure and one.place is not None:
            try:
                found = await slack.replies(one.place.channel, one.place.ts)
            except Lost as error:
                raise Away(str(error)) from None
            except Declined as error:
                _log.warning("a thread cannot be read: %s", error)
                found = []
            if traces.replied(one, step, found):
                return True
            one.unsure -= 1
            if one.unsure:
                await asyncio.sleep(LOOK_S)
        return False

    # ── it was told ──

    async def _told(self, one: Incident, place: Place, rank: int, revision: int, *, over: bool) -> None:
        await self._journal.told(one, place, rank, over=over)
        if place.channel != LOG:
            _log.info("told in %s: %s", place.name, words.line(one))
        one.place, one.told, one.shown, one.shown_over, one.unsure = place, rank, revision, over, 0
        self._shown_at[one.id] = time.monotonic()
        self._incidents.note(one)

    async def _resolved(self, one: Incident) -> None:
        await self._journal.resolved(one)
        one.told_over, one.unsure = True, 0
        self._shown_at.pop(one.id, None)
        self._incidents.note(one)

    # ── it was not ──

    def _mended(self, error: Exception, step: Sequence[Incident], name: str) -> bool:
        """Whether there is another way: a channel that cannot be used is left for the one of the settings."""
        if not isinstance(error, Declined) or error.error in _TOKEN:
            return False
        one = step[0]
        if one.need() == "escalate" and one.place is not None:  # its thread is gone: a message of its own
            one.place = Place(one.place.name, one.place.channel, one.place.ts)
            self._incidents.note(one)
            return True
        if error.error in _CHANNEL and name != self._default:
            _log.error("the channel %s cannot be used (%s): its alerts go to %s", name, error, self._default)
            self._unusable[name] = time.monotonic() + MENDED_S
            self.news()
            return True
        return False

    async def _complain(self, error: Exception, step: Sequence[Incident], name: str, failed: int) -> None:
        if failed == 1:
            _log.warning("not told in %s yet: %s; waiting: %s", name, error, words.line(step[0]))
        elif failed % 10 == 0 or isinstance(error, Declined):
            waiting = sum(self._where(one) == name for one in self._incidents.pending.values())
            _log.error("%d alerts wait for %s: %s; next: %s", waiting, name, error, words.line(step[0]))
