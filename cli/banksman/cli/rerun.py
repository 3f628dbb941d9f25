"""Sending a recording: a few threads, each with the agents that are its own, so that an agent's actions keep their order.

A line is finished when it was decided and all its events are durable at the enforcer; then it goes into the journal.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
import zlib
from typing import TYPE_CHECKING, Any, Protocol

from banksman.cli import recording
from banksman.cli.client import Problem
from banksman.errors import BanksmanError, InvalidInput, Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime
    from pathlib import Path

    from banksman.cli.client import Client
    from banksman.cli.journal import Journal

THREADS = 16
AHEAD = 32
"""Lines that may wait for one thread: a recording is never in memory whole."""
COMMIT_S = 0.5
PATIENCE_S = 60.0
FIRST_PAUSE_S, LAST_PAUSE_S = 0.1, 5.0


class Sender(Protocol):
    """What takes the events: the emitter, in replay mode."""

    def emit(self, event: dict[str, Any]) -> None:
        """Take a whole event. Does not wait for the network."""

    def flush(self) -> None:
        """Return when everything that was taken is durable. Unavailable: not in time."""


class Rerun:
    """One pass over a recording. `done` counts the lines that are finished, from the journal too."""

    def __init__(
        self,
        path: Path,
        found: recording.Survey,
        journal: Journal,
        sender: Sender,
        enforcer: Callable[[], Client],
        *,
        speed: float | None,
    ) -> None:
        """`enforcer` makes a client for one thread. `speed`: how much faster than it was recorded; None: at once."""
        self._path, self._found, self._journal, self._sender = path, found, journal, sender
        self._enforcer, self._speed = enforcer, speed
        self._names = recording.Names.of(found)
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._decided: list[tuple[int, str]] = []
        self._error: BaseException | None = None
        self.counts: dict[str, dict[str, int]] = {}
        self.sent = self.skipped = 0

    @property
    def names(self) -> recording.Names:
        """What the recording's names are called."""
        return self._names

    def run(self, progress: Callable[[int], None]) -> bool:
        """Send what the journal does not have. False: `stop` was called before the end. Raises what a thread died of."""
        queues: list[queue.Queue[recording.Recorded | None]] = [queue.Queue(AHEAD) for _ in range(THREADS)]
        threads = [threading.Thread(target=self._work, args=(one,), name="replay", daemon=True) for one in queues]
        for thread in threads:
            thread.start()
        feeder = threading.Thread(target=self._feed, args=(queues,), name="replay-feed", daemon=True)
        feeder.start()
        try:
            for thread in (feeder, *threads):
                while thread.is_alive():
                    thread.join(COMMIT_S)
                    self._commit(progress)
        except KeyboardInterrupt:
            self.stop()  # what is on its way is finished and written down
            for thread in (feeder, *threads):
                thread.join()
        except BaseException:
            self.stop()
            raise
        self._commit(progress)
        if self._error is not None:
            raise self._error
        return not self._stop.is_set()

    def stop(self) -> None:
        """End after the lines that are being sent."""
        self._stop.set()

    def _feed(self, queues: list[queue.Queue[recording.Recorded | None]]) -> None:
        try:
            began, first = time.monotonic(), None
            for action in recording.read(self._path):
                if action.line in self._journal.done:
                    self.skipped += 1
                    self._count(action, self._journal.done[action.line])
                    continue
                first = first or action.when
                if not self._due(action.when, first, began):
                    break
                self._put(queues[zlib.crc32(action.agent.encode("utf-8", "surrogatepass")) % THREADS], action)
        except BaseException as error:  # noqa: BLE001 - raised again by `run`
            self._fail(error)
        finally:
            for one in queues:
                self._put(one, None)

    def _due(self, when: datetime, first: datetime, began: float) -> bool:
        """Wait until a line's time has come; False when stopped."""
        if self._speed is None:
            return not self._stop.is_set()
        due = began + (when - first).total_seconds() / self._speed
        return not self._stop.wait(max(0.0, due - time.monotonic()))

    def _put(self, one: queue.Queue[recording.Recorded | None], action: recording.Recorded | None) -> None:
        while True:
            with contextlib.suppress(queue.Full):
                one.put(action, timeout=0.2)
                return
            if self._stop.is_set() and action is not None:
                return

    def _work(self, own: queue.Queue[recording.Recorded | None]) -> None:
        enforcer = self._enforcer()
        try:
            while (action := own.get()) is not None:
                if self._stop.is_set():
                    continue
                try:
                    outcome = self._send(enforcer, recording.script(action, self._found, self._names))
                except Problem as error:
                    if error.exit_code == 2:
                        raise InvalidInput(f"the enforcer refused it: {error}", field=f"line {action.line}") from None
                    raise
                with self._lock:
                    self._decided.append((action.line, outcome))
                    self.sent += 1
                self._count(action, outcome)
        except BaseException as error:  # noqa: BLE001 - raised again by `run`
            self._fail(error)
            while own.get() is not None:
                pass  # the feeder must not wait for a thread that is gone
        finally:
            enforcer.close()

    def _send(self, enforcer: Client, script: recording.Script) -> str:
        for event in script.before:
            self._sender.emit(event)
        outcome = str(self._decide(enforcer, script.question)["decision"])
        for event in script.after:
            self._sender.emit(event)
        return outcome

    def _decide(self, enforcer: Client, question: dict[str, Any]) -> Any:
        """The answer. The same id and the same body are the same question, so asking again is safe."""
        until, pause = time.monotonic() + PATIENCE_S, FIRST_PAUSE_S
        while True:
            try:
                return enforcer.post("/v1/decide", question, {"Banksman-Replay": self._found.run})
            except (Unavailable, Problem) as error:
                again = not isinstance(error, Problem) or error.exit_code == 4
                if not again or time.monotonic() + pause > until:
                    raise
            if self._stop.wait(pause):
                raise Interrupted
            pause = min(pause * 2, LAST_PAUSE_S)

    def _commit(self, progress: Callable[[int], None]) -> None:
        with self._lock:
            ready, self._decided = self._decided, []
        if ready:
            self._sender.flush()
            self._journal.add(ready)
        progress(len(self._journal.done))

    def _count(self, action: recording.Recorded, outcome: str) -> None:
        name = self._names.agents.get(action.agent, action.agent)
        with self._lock:
            row = self.counts.setdefault(name, {"actions": 0, "allow": 0, "deny": 0, "approve": 0})
            row["actions"] += 1
            row[outcome] += 1

    def _fail(self, error: BaseException) -> None:
        if self._error is None and not isinstance(error, Interrupted):
            self._error = error
        self._stop.set()


class Interrupted(BanksmanError):
    """Stopped while waiting for an enforcer that is away."""
