"""Rows into inserts: whatever is stored of a partition at any moment has no hole."""

from __future__ import annotations

from collections import defaultdict
from itertools import groupby

from hypothesis import given
from hypothesis import strategies as st

from banksman.processors.archiver.blocks import Block, blocks
from banksman.processors.archiver.rows import DAY_MS, Rows
from banksman.topics import Topic

Record = tuple[int, str]  # day, kind

partitions = st.dictionaries(
    st.tuples(st.sampled_from([Topic.ACTIONS, Topic.DECISIONS, Topic.CONTROL]), st.integers(0, 2)),
    st.lists(st.tuples(st.sampled_from([10, 11]), st.sampled_from(["note", "prompt"])), min_size=1, max_size=12),
    min_size=1, max_size=5,
)  # fmt: skip


def rows_of(topic: Topic, partition: int, records: list[Record]) -> list[Rows]:
    """As the archiver makes them: for each run of a day the rows of each kind."""
    made = []
    numbered = [(offset, day, kind) for offset, (day, kind) in enumerate(records)]
    for day, run in groupby(numbered, lambda one: one[1]):
        by_kind = defaultdict(list)
        for offset, _, kind in run:
            by_kind[kind].append(offset)
        for kind, offsets in by_kind.items():
            count = len(offsets)
            columns = {"received": [day * DAY_MS] * count, "offset": offsets, "kind": [kind] * count}
            made.append(Rows(topic, partition, columns))
    return made


def places(block: Block) -> list[tuple[Topic, int, int]]:
    return [(part.topic, part.partition, offset) for part in block.parts for offset in part.columns["offset"]]


def assert_no_hole(inserts: list[Block], log: dict[tuple[Topic, int], list[Record]]) -> None:
    stored: dict[tuple[Topic, int], set[int]] = defaultdict(set)
    for block in inserts:
        days = {day // DAY_MS for part in block.parts for day in part.columns["received"]}
        assert days == {block.day}, "one insert is one day"
        for topic, partition, offset in places(block):
            stored[topic, partition].add(offset)
        for offsets in stored.values():
            assert offsets == set(range(len(offsets))), "what is stored has a hole"
    assert {where: len(offsets) for where, offsets in stored.items()} == {
        where: len(all_) for where, all_ in log.items()
    }


@given(partitions)
def test_blocks_leave_no_hole(log: dict[tuple[Topic, int], list[Record]]) -> None:
    """Also when the broker's clock went back over midnight."""
    assert_no_hole(blocks(rows_of(*where, records) for where, records in log.items()), log)


@given(partitions)
def test_halves_of_halves_leave_no_hole(log: dict[tuple[Topic, int], list[Record]]) -> None:
    def cut(block: Block) -> list[Block]:
        if len(block) == 1:
            return [block]
        first, second = block.halves()
        assert len(first) == len(block) // 2
        assert len(first) + len(second) == len(block)
        return cut(first) + cut(second)

    whole = blocks(rows_of(*where, records) for where, records in log.items())
    assert_no_hole([piece for block in whole for piece in cut(block)], log)


@given(partitions)
def test_days_in_order_make_one_insert_each(log: dict[tuple[Topic, int], list[Record]]) -> None:
    straight = {where: sorted(records) for where, records in log.items()}
    made = blocks(rows_of(*where, records) for where, records in sorted(straight.items()))
    every = {day for records in log.values() for day, _ in records}
    assert len(made) <= len(every) + 1
    assert {block.day for block in made} == every
