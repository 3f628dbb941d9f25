"""A function under policy: ask, run, report.

Before it runs, a `tool.call` is reported and the enforcer asked; without an `allow` it never runs. Afterwards a
`tool.result` says what came of it: status, duration, and of the result its size and hashes (itself only when asked for).
"""

from __future__ import annotations

import functools
import inspect
import time
from typing import TYPE_CHECKING, Any, TypeVar

from banksman.producers.asking import NotAllowed, nobody
from banksman.producers.record import UNRECORDED

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from typing import TypeAlias

    from banksman.producers.session import Session

    T = TypeVar("T")
    Part: TypeAlias = T | Callable[..., T | None] | None
    """A part of the operation: a value, or a function of the governed function's own arguments."""

F = TypeVar("F", bound="Callable[..., Any]")


def govern(
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
    """The decorator for functions that are defined before there is a session: takes the one that is open around the call.

    `action`: the function's name unless given. `args`: the call's arguments by name unless given. `wait`: seconds to wait for
    humans, where the policy wants their yes. Where no session is open the function does not run (NotAllowed). TypeError: a
    generator function, which runs long after it was asked about.
    """
    from banksman.producers.session import current

    return govern_in(
        current, service=service, action=action, resource=resource, branch=branch, args=args,
        record_result=record_result, timeout=timeout, wait=wait,
    )  # fmt: skip


def govern_in(
    session: Callable[[], Session | None],
    *,
    service: str,
    action: str | None,
    resource: Part[str],
    branch: Part[str],
    args: Part[Mapping[str, Any]],
    record_result: bool,
    timeout: float | None,
    wait: float,
) -> Callable[[F], F]:
    """The decorator; `session` says at each call in which session it is."""

    def wrap(function: F) -> F:
        if inspect.isgeneratorfunction(_inner(function)) or inspect.isasyncgenfunction(_inner(function)):
            raise TypeError(
                f"{_name(function)} is a generator: it runs long after it was asked about; govern what it calls"
            )
        operation = _Operation(function, service, action or _name(function), resource, branch, args)

        def begin(given: tuple[Any, ...], named: dict[str, Any]) -> _Run:
            where = session()
            if where is None:
                raise NotAllowed(nobody("not_asked: no session is open here"))
            return _Run(where, operation.of(given, named), record_result=record_result, timeout=timeout, wait=wait)

        if inspect.iscoroutinefunction(_inner(function)):

            @functools.wraps(function)
            async def asynchronous(*given: Any, **named: Any) -> Any:
                run = begin(given, named)
                await run.ask_async()
                return await run.watch(function(*given, **named))

            return asynchronous  # type: ignore[return-value]

        @functools.wraps(function)
        def governed(*given: Any, **named: Any) -> Any:
            run = begin(given, named)
            run.ask()
            try:
                result = function(*given, **named)
            except BaseException as error:
                run.failed(error)
                raise
            if inspect.isawaitable(result):  # a plain function that hands back what is still to run
                return run.watch(result)
            run.done(result)
            return result

        return governed  # type: ignore[return-value]

    return wrap


class _Operation:
    """What a call of the function is in the words of policy."""

    def __init__(
        self,
        function: Callable[..., Any],
        service: str,
        action: str,
        resource: Part[str],
        branch: Part[str],
        args: Part[Mapping[str, Any]],
    ) -> None:
        self._service, self._action = service, action
        self._parts = {"resource": resource, "branch": branch, "args": self._by_name if args is None else args}
        try:
            self._signature: inspect.Signature | None = inspect.signature(function)
        except (ValueError, TypeError):  # built in C, without one
            self._signature = None

    def of(self, given: tuple[Any, ...], named: dict[str, Any]) -> dict[str, Any]:
        """The operation. Raises what a part's function raises: then nothing was asked and nothing runs."""
        made: dict[str, Any] = {"service": self._service, "action": self._action}
        for name, part in self._parts.items():
            value = part(*given, **named) if callable(part) else part
            if value is not None:
                made[name] = value
        return made

    def _by_name(self, *given: Any, **named: Any) -> dict[str, Any]:
        if self._signature is None:
            return {"args": list(given), **named} if given else named
        bound = self._signature.bind(*given, **named).arguments
        first = next(iter(self._signature.parameters), None)
        return {name: value for name, value in bound.items() if not (name == first and name in ("self", "cls"))}


class _Run:
    """One governed call."""

    def __init__(
        self, session: Session, operation: dict[str, Any], *, record_result: bool, timeout: float | None, wait: float
    ) -> None:
        self._session, self._operation, self._timeout, self._wait = session, operation, timeout, wait
        self._record_result = record_result
        self._call = session.tool_call(**operation)
        self._began = 0

    def ask(self) -> None:
        """Return when it may run. NotAllowed otherwise."""
        self._judge(self._session.decide(**self._operation, call=self._call, timeout=self._timeout, wait=self._wait))

    async def ask_async(self) -> None:
        """The same."""
        self._judge(
            await self._session.adecide(**self._operation, call=self._call, timeout=self._timeout, wait=self._wait)
        )

    def _judge(self, decision: Any) -> None:
        if not decision.allowed:
            self._session.tool_result(self._call, "denied", error=f"{decision.decision}: {decision.reason}")
            raise NotAllowed(decision)
        self._began = time.perf_counter_ns()

    async def watch(self, running: Awaitable[Any]) -> Any:
        """Await what runs, and report it."""
        try:
            result = await running
        except BaseException as error:  # a cancelled call is one that was begun and has no result
            self.failed(error)
            raise
        self.done(result)
        return result

    def done(self, result: Any) -> None:
        """It returned."""
        field = "result" if self._record_result and result is not None else UNRECORDED
        self._session.tool_result(self._call, "ok", duration_ms=self._took(), **{field: result})

    def failed(self, error: BaseException) -> None:
        """It raised."""
        self._session.tool_result(self._call, "error", error=error, duration_ms=self._took())

    def _took(self) -> float:
        return round((time.perf_counter_ns() - self._began) / 1e6, 3)


def _inner(function: Any) -> Any:
    """What is called in the end: behind `functools.partial`, or an object's `__call__`."""
    while isinstance(function, functools.partial):
        function = function.func
    return function if inspect.isroutine(function) or inspect.isclass(function) else type(function).__call__


def _name(function: Any) -> str:
    while isinstance(function, functools.partial):
        function = function.func
    return str(getattr(function, "__name__", type(function).__name__))
