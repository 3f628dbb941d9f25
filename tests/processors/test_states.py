"""How many states a worker holds decoded: bounded, and of what is forgotten nothing stays."""

from __future__ import annotations

import pytest

from banksman.processors.worker import states as states_module
from banksman.processors.worker.resends import Sources
from banksman.processors.worker.states import Kept, Place, States

WHOSE = ("p", "a", "")


def place(number: int) -> Place:
    return "sources", f"agent-{number}".encode()


def write(states: States, table: dict[bytes, bytes], *changed: tuple[Place, Kept]) -> None:
    """As the worker does it."""
    for where, kept in changed:
        states.changed(where, kept)
    for where, kept in states.dirty.items():
        made = states.bytes_of(where, kept)
        if made is None:
            table.pop(where[1], None)
        else:
            table[where[1]] = made
    states.written()


def held(states: States) -> int:
    """Bytes of what is held, counted anew; as it counts itself."""
    total = sum(kept.size for kept in states._kept.values())
    assert states._bytes == total
    return total


def test_what_is_held_is_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(states_module, "MOST_BYTES", 10_000)
    table: dict[bytes, bytes] = {}
    states, largest = States({"sources": table}, [], {"sources": Sources}), 0
    for number in range(200):
        kept = states.load(place(number % 50)) or states.new(place(number % 50), 0, WHOSE)
        kept.state.ids.extend([b"x" * 16] * 5)
        kept.offsets["actions"] = number
        write(states, table, (place(number % 50), kept))
        largest = max(largest, held(states))
    assert 5_000 < largest <= 10_000
    assert all(len(found.state.ids) == 20 for n in range(50) if (found := states.load(place(n))) is not None)
    assert len(table) == 50


def test_what_is_forgotten_is_not_held() -> None:
    table: dict[bytes, bytes] = {}
    states = States({"sources": table}, [], {"sources": Sources})
    several = [(place(number), states.new(place(number), 0, WHOSE)) for number in range(20)]
    write(states, table, *several)
    assert held(states) > 0
    for _, kept in several:
        kept.state = None
    write(states, table, *several)
    assert (held(states), len(states._kept), table) == (0, 0, {})
    assert states.load(place(3)) is None
