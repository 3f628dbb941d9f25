"""What the demo's agents do, as the console's stream tells it: a line a decision, and what else is worth one."""

from __future__ import annotations

import json
import threading
import time
from typing import TYPE_CHECKING, Any

from banksman.cli import show, words
from banksman.errors import BanksmanError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from banksman.cli.client import Client

QUIET_S = 0.5


class Live:
    """Prints until the process ends. Whoever prints more than a line meanwhile holds `printing`."""

    def __init__(self) -> None:
        self.printing = threading.Lock()
        self._over = False
        self._heard = 0.0
        self._calls: dict[str, str] = {}

    def start(self, console: Client) -> None:
        """From now on."""
        threading.Thread(target=self._run, args=(console,), name="live", daemon=True).start()

    def until_quiet(self) -> None:
        """Return when nothing new has come for a while: what was sent last is printed last."""
        while time.monotonic() - self._heard < QUIET_S:
            time.sleep(0.05)  # between two looks

    def stop(self) -> None:
        """Print no more."""
        self._over = True

    def _run(self, console: Client) -> None:
        try:
            for message in console.stream("/v1/watch"):
                self._heard = time.monotonic()
                if self._over:
                    return
                if message.event == "action" and (said := line(json.loads(message.data), self._calls)):
                    with self.printing:
                        print(said, flush=True)
        except BanksmanError as error:
            if not self._over:
                show.note(f"watching ended: {error}")


def line(record: Mapping[str, Any], calls: dict[str, str]) -> str:
    """A record as a line; "" for what another line says already: calls and their good results.

    `calls` remembers what a call was about: a result only names it.
    """
    kind = record["kind"]
    if kind == "tool.call":
        calls[record["call"]] = words.operation(record)
    if kind == "session.started":
        word, text = "begins", f"session {record['session']}"
    elif kind == "prompt":
        word, text = "prompt", words.what(record).removeprefix("prompt: ")
    elif kind == "decision":
        took = f", {record['latency_us'] / 1000:.1f} ms" if record.get("latency_us") else ""
        word, text = record["decision"], f"{words.operation(record)}  ({words.ruling(record)}{took})"
    elif kind == "model.call":
        word, text = "model", f"{record['model']}, {record['tokens']:,} tokens, {words.money(record['cost_usd'])}"
    elif kind == "tool.result" and record["status"] == "error":
        word, text = "error", f"{calls.get(record['call'], 'a call')}: {record['error']}"
    elif kind == "session.ended":
        word, text = "ends", f"session {record['session']}"
    else:
        return ""
    style = show.STYLES.get(word, "dim")
    rest = show.safe(text)
    return (
        f"{show.moment(record['time'])[11:19]}  {show.safe(record['agent']):<18} "
        f"{show.paint(f'{word:<8}', style)} {rest if style != 'dim' or word == 'prompt' else show.paint(rest, 'dim')}"
    )
