"""Slack's Web API, as far as it is needed to tell: post, edit, look for what was posted. The only file that knows slack_sdk.

No call is tried again here: whoever tells has something newer to say by then. Each failure says what is known of it:

    Away      it was not accepted (no connection, 429): the same again, later
    Lost      it may have been accepted (no answer, 5xx): look before it is sent again
    Declined  it was not, and never will be as it stands: `error` is Slack's word for why
"""

from __future__ import annotations

import logging
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import aiohttp
from slack_sdk.errors import SlackApiError
from slack_sdk.web.async_client import AsyncWebClient

from banksman.errors import BanksmanError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from banksman import settings
    from banksman.processors.notifier.words import Message

_log = logging.getLogger("banksman")

EVENT = "banksman_incident"
"""The type of the metadata that our messages carry."""
POST_S = 1.0
"""Between two posts to one channel: Slack takes one a second."""
MINUTE_S, EDITS, REPEATS = 60.0, 50, 25
"""Slack takes fifty edits a minute in a workspace. Those that only say that something was seen again may take half of them."""
PAGE = 200
MOST_PAGES = 50
_LOST = frozenset(("internal_error", "fatal_error", "request_timeout", "service_unavailable", "team_added_to_org"))
_BLOCKS = frozenset(("invalid_blocks", "invalid_blocks_format", "msg_blocks_too_long", "msg_too_long"))


class Away(BanksmanError):
    """Not accepted. `after`: how many seconds Slack wants to be left alone, where it says so."""

    def __init__(self, message: str, *, after: float | None = None) -> None:
        super().__init__(message)
        self.after = after


class Lost(BanksmanError):
    """Accepted or not, nobody knows."""


class Declined(BanksmanError):
    """Slack's error: `not_in_channel`, `invalid_auth`, …"""

    def __init__(self, error: str, *, method: str) -> None:
        super().__init__(f"{method}: {error}")
        self.error = error


@dataclass(frozen=True)
class Found:
    """A message of ours: where it is, and the payload of its metadata."""

    ts: str
    payload: dict[str, Any]


class Slack:
    """One workspace. `open` first."""

    def __init__(self, of: settings.Slack) -> None:
        self._settings = of
        self._held: dict[str, float] = {}
        """A method, of posts one for each channel -> when Slack's Retry-After is over."""
        self._paced: dict[str, float] = {}
        """The same -> when the next post may go by our own pace."""
        self._edits: deque[float] = deque()
        """When edits were made, in the last minute."""
        self._channels: dict[str, str] = {}
        self._ours: tuple[str, str] | None = None
        """The field of a message that says whose it is, and what ours have there."""

    async def open(self) -> None:
        """Make the connections' pool."""
        # A session of ours: one connection for all calls, and no handlers of slack_sdk's own that try again.
        timeout = aiohttp.ClientTimeout(total=self._settings.slack_timeout_s)
        self._session = aiohttp.ClientSession(timeout=timeout)
        base = self._settings.slack_url.rstrip("/") + "/"
        self._client = AsyncWebClient(
            self._settings.bot_token(), base_url=base, session=self._session, retry_handlers=[]
        )

    async def close(self) -> None:
        """Let the connections go."""
        await self._session.close()

    def learn(self, name: str, channel: str) -> None:
        """A channel's id. What has to wait under its name has to wait under its id."""
        self._channels[name] = channel
        for waits in (self._held, self._paced):
            until = max(waits.get(_lane(name), 0.0), waits.get(_lane(channel), 0.0))
            if until:
                waits[_lane(channel)] = until

    # ── when ──

    def wait_to_post(self, channel: str) -> float:
        """Seconds until a post to a channel may go."""
        return self._left(_lane(self._channels.get(channel, channel)))

    def wait_to_edit(self, *, repeat: bool = False) -> float:
        """Seconds until an edit may go. `repeat`: it only says that something was seen again."""
        most, now = REPEATS if repeat else EDITS, time.monotonic()
        while self._edits and self._edits[0] <= now - MINUTE_S:
            self._edits.popleft()
        full = self._edits[-most] + MINUTE_S - now if len(self._edits) >= most else 0.0
        return max(full, self._left("chat.update"))

    def wait_to_look(self) -> float:
        """Seconds until messages may be looked for."""
        return max(map(self._left, ("conversations.history", "conversations.replies", "conversations.list")))

    def _left(self, lane: str) -> float:
        return max(0.0, max(self._held.get(lane, 0.0), self._paced.get(lane, 0.0)) - time.monotonic())

    # ── what ──

    async def who(self) -> str:
        """Who we are in which workspace."""
        answer = await self._call("auth.test", "auth.test", self._client.auth_test)
        bot = answer.get("bot_id")  # a token may be a bot's or a person's
        self._ours = ("bot_id", bot) if bot else ("user", str(answer.get("user_id")))
        return f"{answer.get('user', 'somebody')} in {answer.get('team', 'a workspace')}"

    async def post(
        self, channel: str, message: Message, payload: dict[str, Any], *, thread: str = "", broadcast: bool = False
    ) -> tuple[str, str]:
        """-> (the channel's id, the message's ts). `channel`: its name or id."""
        lane = _lane(self._channels.get(channel, channel))
        self._paced[lane] = time.monotonic() + POST_S
        words: dict[str, Any] = {
            "channel": self._channels.get(channel, channel),
            "text": message.text,
            "blocks": message.blocks,
            "metadata": {"event_type": EVENT, "event_payload": payload},
            "mrkdwn": False,
            "parse": "none",
            "link_names": False,
            "unfurl_links": False,
            "unfurl_media": False,
        }
        if thread:
            words |= {"thread_ts": thread, "reply_broadcast": broadcast}
        answer = await self._worded(lane, self._client.chat_postMessage, words)
        there = str(answer["channel"])
        self.learn(channel, there)
        return there, str(answer["ts"])

    async def edit(self, channel: str, ts: str, message: Message) -> None:
        """Show something else in a message of ours. `channel`: its id."""
        self._edits.append(time.monotonic())
        words = {"channel": channel, "ts": ts, "text": message.text, "blocks": message.blocks, "parse": "none"}
        await self._worded("chat.update", self._client.chat_update, words)

    async def posted(self, channel: str, since_s: float) -> tuple[str, list[Found]]:
        """-> (the channel's id, our messages in it since a moment)."""
        where = await self._channel_id(channel)
        return where, await self._messages(
            "conversations.history", self._client.conversations_history, channel=where, oldest=f"{since_s:.6f}"
        )

    async def replies(self, channel: str, ts: str) -> list[Found]:
        """Our messages in a thread. `channel`: its id."""
        return await self._messages("conversations.replies", self._client.conversations_replies, channel=channel, ts=ts)

    async def _messages(self, method: str, call: Callable[..., Awaitable[Any]], **of: Any) -> list[Found]:
        if self._ours is None:
            await self.who()
        assert self._ours is not None
        field, ours = self._ours
        found: list[Found] = []
        async for answer in self._pages(method, call, include_all_metadata=True, **of):
            for message in answer.get("messages") or []:
                metadata = message.get("metadata") or {}
                # Another app may write what it likes into its own messages: it must not make ours look told.
                if metadata.get("event_type") == EVENT and message.get(field) == ours:
                    found.append(Found(str(message["ts"]), dict(metadata.get("event_payload") or {})))
        return found

    async def _channel_id(self, channel: str) -> str:
        """A name's id: from an answer that we had, else from the list of channels."""
        name = channel.removeprefix("#")
        if channel in self._channels or not channel.startswith("#"):
            return self._channels.get(channel, channel)
        kinds = "public_channel,private_channel"
        async for answer in self._pages(
            "conversations.list", self._client.conversations_list, types=kinds, exclude_archived=True
        ):
            for one in answer.get("channels") or []:
                if one.get("name") == name:
                    self.learn(channel, str(one["id"]))
                    return self._channels[channel]
        raise Declined("channel_not_found", method="conversations.list")

    async def _pages(self, method: str, call: Callable[..., Awaitable[Any]], **of: Any) -> Any:
        cursor = ""
        for _ in range(MOST_PAGES):
            answer = await self._call(method, method, call, limit=PAGE, **of, **({"cursor": cursor} if cursor else {}))
            yield answer
            cursor = (answer.get("response_metadata") or {}).get("next_cursor") or ""
            if not cursor:
                return

    async def _worded(self, lane: str, call: Callable[..., Awaitable[Any]], words: dict[str, Any]) -> Any:
        """What Slack will not show in blocks is shown as text: an alert with a mistake in its form is still an alert."""
        method = lane.split(" ", 1)[0]
        try:
            return await self._call(lane, method, call, **words)
        except Declined as error:
            if error.error not in _BLOCKS:
                raise
            _log.error("Slack refuses the blocks of a message (%s); it is told as text", error)
            return await self._call(lane, method, call, **{**words, "blocks": []})

    async def _call(self, lane: str, method: str, call: Callable[..., Awaitable[Any]], **of: Any) -> Any:
        held = self._held.get(lane, 0.0) - time.monotonic()
        if held > 0:  # another call was told meanwhile
            raise Away(f"{method}: {held:.1f} s of a Retry-After are left", after=held)
        try:
            return await call(**of)
        except SlackApiError as error:
            answer = error.response
            status = getattr(answer, "status_code", None) or getattr(
                answer, "status", None
            )  # of slack_sdk, or of aiohttp
            headers = getattr(answer, "headers", {})
            data = getattr(answer, "data", None)
            said = str(data.get("error", "")) if isinstance(data, dict) else ""
            if status == 429 or said in ("ratelimited", "rate_limited"):
                after = _seconds(headers)
                self._held[lane] = time.monotonic() + after
                raise Away(f"{method}: asks to wait {after:g} s", after=after) from None
            if not said or said in _LOST or (status or 500) >= 500:
                raise Lost(f"{method}: HTTP {status} {said}") from None
            raise Declined(said, method=method) from None
        except aiohttp.ClientConnectorError as error:  # no connection: nothing was sent
            raise Away(f"{method}: {error}") from None
        except (TimeoutError, aiohttp.ClientError, OSError, ValueError) as error:
            raise Lost(f"{method}: {type(error).__name__}: {error}") from None


def _lane(channel: str) -> str:
    return f"chat.postMessage {channel}"


def _seconds(headers: Any) -> float:
    """What `Retry-After` says."""
    for name, value in dict(headers).items():
        if name.lower() == "retry-after":
            try:
                return min(max(float(value), 0.1), 3600.0)
            except (TypeError, ValueError):
                break
    return 1.0
