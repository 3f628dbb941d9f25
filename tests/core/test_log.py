"""The log while no broker answers: the first word, then few, and none uncounted."""

from __future__ import annotations

import logging
from typing import Any

from banksman.log import QUIET_S, Thin


def record(
    name: str, at: float, line: int = 1, text: str = "no connection to %s", *arguments: Any
) -> logging.LogRecord:
    made = logging.LogRecord(name, logging.ERROR, "client.py", line, text, arguments or ("node 1",), None)
    made.created = at
    return made


def let_through(thin: Thin, *records: logging.LogRecord) -> list[str]:
    return [one.getMessage() for one in records if thin.filter(one)]


def test_the_first_is_said_at_once_and_the_others_are_counted() -> None:
    thin = Thin()
    flood = [record("aiokafka.conn", 1000 + n / 10) for n in range(int(QUIET_S * 10))]
    assert let_through(thin, *flood) == ["no connection to node 1"]
    later = [record("aiokafka.conn", 1000 + QUIET_S), record("aiokafka.conn", 1001 + QUIET_S)]
    assert let_through(thin, *later) == [f"no connection to node 1 (and {len(flood) - 1} more like it)"]


def test_another_error_is_never_held_back_by_the_first() -> None:
    thin = Thin()
    both = [record("aiokafka", 1000, 1), record("aiokafka", 1000, 2, "%s of %s", "a", "b")]
    assert let_through(thin, *both) == ["no connection to node 1", "a of b"]


def test_what_we_say_ourselves_is_not_thinned() -> None:
    thin = Thin()
    ours = [record("banksman", 1000, 1, "waiting for %s") for _ in range(3)] + [record("aiokafkaish", 1000)] * 2
    assert len(let_through(thin, *ours)) == 5
