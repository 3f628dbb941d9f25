"""What the archiver keeps of the texts of agents has a bound, however long they make them."""

from __future__ import annotations

import json

from banksman.processors.archiver.decoding import SHARED_BYTES, Decoding
from banksman.stamps import rfc3339, uuid7
from banksman.topics import Topic


def test_long_words_of_an_agent_do_not_fill_the_memory() -> None:
    decoding = Decoding(Topic.ACTIONS, {"action"}, {"action"})
    for round_ in range(4):
        values = [
            json.dumps(
                {
                    "v": 1, "kind": "tool.call", "id": uuid7(), "time": rfc3339(), "source": "x", "project": "p", "agent": "a",
                    "session": "s", "service": "git", "action": f"{round_}-{number}-" + "x" * 30_000,
                }
            ).encode()
            for number in range(400)
        ]  # fmt: skip
        decoded, wrong = decoding(values)
        assert (len(decoded[0].places), wrong) == (400, [])
        assert sum(map(len, decoding._shared)) <= SHARED_BYTES
    assert decoding._shared
