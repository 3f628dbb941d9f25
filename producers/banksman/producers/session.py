"""One run of an agent: what it does, in order, from its start to its end."""

from __future__ import annotations

import contextlib
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Self

from banksman.producers.governed import govern_in

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextvars import Token
    from types import TracebackType

    from banksman.producers.asking import Decision
    from banksman.producers.emitter import Emitter
    from banksman.producers.governed import F, Part

_current: ContextVar[Session] = ContextVar("banksman.session")


def current() -> Session | None:
    """The session that is open around this code (its thread, its task), or None."""
    return _current.get(None)


class Session:
    """Made by `Emitter.session`. Reporting returns the event's id at once and never raises, unless the emitter is to refuse
    when its spool is full (`SpoolFull`). `None` for a field leaves it out; further fields are kept.
    """

    def __init__(self, emitter: Emitter, name: str, fields: Mapping[str, Any]) -> None:
        self.emitter, self.id = emitter, name
        self._emit = emitter.emit
        self._fields = dict(fields)
        self._tokens: list[Token[Session]] = []

    # ── its life ──

    def __enter__(self) -> Self:
        self._tokens.append(_current.set(self))
        self.started(**self._fields)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(ValueError):  # it was opened in another context: there is nothing of it to undo here
            _current.reset(self._tokens.pop())
        if error is None:
            self.ended()
        else:
            self.ended("error", error)

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, trace)

    def started(self, **fields: Any) -> str:
        """`session.started`; `with` does it."""
        return self.report("session.started", **fields)

    def ended(self, status: str = "ok", error: object = None, **fields: Any) -> str:
        """`session.ended`; `with` does it."""
        return self.report("session.ended", status=status, error=_words(error), **fields)

    # ── what happens in it ──

    def report(self, kind: str, **fields: Any) -> str:
        """An event of any kind that an agent may write -> its id."""
        return self._emit({"kind": kind, "session": self.id, **fields})

    # The next ones do the same without another call in between, which costs several us where the caches are cold.

    def prompt(self, text: str, **fields: Any) -> str:
        """What a person asked of the agent."""
        return self._emit({"kind": "prompt", "session": self.id, "text": text, **fields})

    def note(self, text: str, **fields: Any) -> str:
        """Anything that should be in the record."""
        return self._emit({"kind": "note", "session": self.id, "text": text, **fields})

    def model_call(self, model: str, **fields: Any) -> str:
        """One request to a model: `input_tokens`, `output_tokens`, `cost_usd`, `duration_ms`, …"""
        return self._emit({"kind": "model.call", "session": self.id, "model": model, **fields})

    def tool_call(
        self,
        service: str,
        action: str,
        *,
        resource: str | None = None,
        branch: str | None = None,
        args: Mapping[str, Any] | None = None,
        **fields: Any,
    ) -> str:
        """What the agent is about to do -> the id that decision and result refer to. `batch`: index in a parallel batch."""
        return self._emit(
            {
                "kind": "tool.call", "session": self.id, "service": service, "action": action, "resource": resource,
                "branch": branch, "args": args, **fields,
            }
        )  # fmt: skip

    def tool_result(self, call: str, status: str, *, result: Any = None, error: object = None, **fields: Any) -> str:
        """What came of a call: `ok`, `error` or `denied`. Hashes and size of the result are worked out later."""
        return self._emit(
            {
                "kind": "tool.result", "session": self.id, "call": call, "parent": call, "status": status,
                "result": result, "error": _words(error), **fields,
            }
        )  # fmt: skip

    def api_request(self, service: str, action: str, *, error: object = None, **fields: Any) -> str:
        """A request outside of a tool call, with its outcome: `resource`, `args`, `status`, `duration_ms`, …"""
        return self._emit(
            {
                "kind": "api.request", "session": self.id, "service": service, "action": action,
                "error": _words(error), **fields,
            }
        )  # fmt: skip

    # ── asking ──

    def decide(
        self,
        service: str,
        action: str,
        *,
        resource: str | None = None,
        branch: str | None = None,
        args: Mapping[str, Any] | None = None,
        call: str | None = None,
        reason: str | None = None,
        approval: str | None = None,
        timeout: float | None = None,
        wait: float = 0.0,
    ) -> Decision:
        """May this be done? Waits for the answer; never raises. `reason`: the agent's own words for why. `wait`: seconds to
        wait for humans, where the policy wants their yes.
        """
        return self.emitter.decide(
            self._question(service, action, resource, branch, args, call, reason, approval), timeout, wait
        )

    async def adecide(
        self,
        service: str,
        action: str,
        *,
        resource: str | None = None,
        branch: str | None = None,
        args: Mapping[str, Any] | None = None,
        call: str | None = None,
        reason: str | None = None,
        approval: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - of the question, tries included; cancelling works too
        wait: float = 0.0,
    ) -> Decision:
        """The same for asyncio."""
        return await self.emitter.adecide(
            self._question(service, action, resource, branch, args, call, reason, approval), timeout, wait
        )

    def govern(
        self,
        *,
        service: str,
        action: str | None = None,
        resource: Part[str] = None,
        branch: Part[str] = None,
        args: Part[Mapping[str, Any]] = None,
        record_result: bool = False,
        timeout: float | None = None,
        wait: float = 0.0,
    ) -> Callable[[F], F]:
        """A decorator: asks before the function runs and reports what came of it. See `banksman.producers.governed`."""
        return govern_in(
            lambda: self, service=service, action=action, resource=resource, branch=branch, args=args,
            record_result=record_result, timeout=timeout, wait=wait,
        )  # fmt: skip

    def _question(self, service: str, action: str, *more: Any) -> dict[str, Any]:
        names = ("resource", "branch", "args", "call", "reason", "approval")
        told = {name: value for name, value in zip(names, more, strict=True) if value is not None}
        return {"session": self.id, "service": service, "action": action, **told}


def _words(error: object) -> object:
    return f"{type(error).__name__}: {error}" if isinstance(error, BaseException) else error
