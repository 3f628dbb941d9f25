"""The body of `POST /v1/decide`, `/v1/explain` and their replayed form: strict, because a question must be understood
whole. A field that nobody knows could be the one that would have made it a no.
"""

from __future__ import annotations

import re
from datetime import datetime
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from banksman import canonical, codec
from banksman.errors import InvalidInput
from banksman.events import Name, Uuid  # noqa: TC001 - msgspec resolves them
from banksman.http_problem import Problem, problem
from banksman.policy.holds import NONE, Facts
from banksman.stamps import rfc3339

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from banksman.policy.compile import Bundle

MAX_QUESTION_BYTES = 1024 * 1024
Text = Annotated[str, Meta(max_length=65536)]  # a policy says `too_long` far below; this only bounds a record
Words = Annotated[str, Meta(max_length=16384)]

_RFC3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(?:\.\d{1,9})?(?:[Zz]|[+-]\d\d:\d\d)").fullmatch
Q = TypeVar("Q", bound="Question")


class Question(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True, gc=False):
    """May I? About one operation, in one session."""

    id: Uuid | None = None
    """This question's own, new each time; the same again asks the same question again."""
    call: Uuid | None = None
    """The `tool.call` it is about."""
    session: Name
    service: Text
    action: Text
    resource: Text | None = None
    branch: Text | None = None
    args: dict[str, Any] | None = None
    reason: Words | None = None
    """The agent's own words for why it wants this."""
    approval: Annotated[str, Meta(max_length=128)] | None = None

    def facts(self, bundle: Bundle, project: str) -> Facts:  # noqa: ARG002 - for questions about somebody else
        """What conditions look at besides what the question is about."""
        return NONE if self.args is None else Facts(self.args)

    def whom(self) -> str | None:
        """Whom it is about, where that is not the agent itself."""
        return None

    def counted(self, bundle: Bundle, project: str) -> list[str]:  # noqa: ARG002 - for questions that say more than is recorded
        """What an approval is compared by besides all that is always compared."""
        return []

    def whole(self, counted: Sequence[str]) -> dict[str, Any] | None:  # noqa: ARG002 - see `counted`
        """Everything that was asked, where more was asked than is recorded: an approval is for that, to the letter."""
        return None

    def asks_anew(self) -> bool:
        """Whether it opens an approval where the one that it names is not good for it."""
        return False


class ReplayedQuestion(Question, kw_only=True, forbid_unknown_fields=True, omit_defaults=True, gc=False):
    """A recorded question, asked again by an admin in the name of the agent that once asked it."""

    id: Uuid
    project: Name
    agent: Name
    time: str

    def facts(self, bundle: Bundle, project: str) -> Facts:  # noqa: ARG002 - see `Question`
        return Facts(self.args, _seconds(self.time))


class ExplainQuestion(Question, kw_only=True, forbid_unknown_fields=True, omit_defaults=True, gc=False):
    """What would `agent` be told? `project` only where the agent is not enrolled."""

    agent: Name
    project: Name | None = None
    session: Name = "explain"
    time: str | None = None
    """When it would be asked, for conditions about the time; absent: now."""

    def facts(self, bundle: Bundle, project: str) -> Facts:  # noqa: ARG002 - see `Question`
        return Facts(self.args, None if self.time is None else _seconds(self.time))


def parse(body: bytes, model: type[Q]) -> Q:
    """A body -> a question. Problem 400: not the one JSON that it could be; 422: the field that is wrong."""
    return canonical.parse_as(body, _decoder(model)) or checked(strict(body), model)


@cache
def _decoder(model: type[Q]) -> Callable[[bytes], Q]:
    return msgspec.json.Decoder(model).decode


def strict(body: bytes) -> Any:
    """JSON without anything that two readers could understand differently; Problem 400 otherwise."""
    try:
        return canonical.parse(body)
    except InvalidInput as error:
        raise problem(400, error.message, field=error.field) from None


def checked(value: Any, model: type[Q]) -> Q:
    """A parsed body -> a model of ours; Problem 422 names the field."""
    try:
        return msgspec.convert(value, model)
    except msgspec.ValidationError as error:
        raise wrong(error) from None


def wrong(error: Exception) -> Problem:
    """A sentence of msgspec's as a 422."""
    told = codec.invalid(error)
    return problem(422, told.message, field=told.field)


def _seconds(text: str) -> float:
    return datetime.fromisoformat(normal_time(text, "time")).timestamp()


def normal_time(text: Any, field: str) -> str:
    """Any RFC 3339 spelling -> the one on the wire (UTC, microseconds, `Z`); Problem 422 when it is none."""
    if isinstance(text, str) and _RFC3339(text):
        try:
            return rfc3339(datetime.fromisoformat(text.upper().replace(" ", "T")))
        except (ValueError, OverflowError):
            pass  # the 61st second, the 30th of February: the sentence below says all there is
    raise problem(422, "must be a time as RFC 3339 writes it, e.g. 2026-11-24T15:30:00.000000Z", field=field)
