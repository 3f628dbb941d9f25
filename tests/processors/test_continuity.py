"""A topic that was made anew under an old database: the archiver says so and ends, and passes over nothing."""

from __future__ import annotations

import asyncio

import pytest
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.structs import OffsetAndMetadata
from tests.processors.conftest import Archive
from tests.processors.test_hostile import committed, letters

from banksman import provision
from banksman.processors.archiver.positions import go_on
from banksman.topics import Topic


def made_anew(archive: Archive) -> None:
    """`actions` is deleted, and made again with nothing in it."""

    async def work() -> None:
        admin: AIOKafkaAdminClient = await provision.connect_admin(archive.kafka)
        name = archive.kafka.topic(Topic.ACTIONS)
        try:
            await admin.delete_topics([name])
            while name in await admin.list_topics():  # noqa: ASYNC110 - there is nothing to be waited for
                await asyncio.sleep(0.05)  # between two looks
        finally:
            await admin.close()
        await provision.create_topics(archive.kafka)

    asyncio.run(work())


def archived(archive: Archive, records: int) -> None:
    process = archive.start()
    archive.publish(*[archive.action(text=str(n)) for n in range(records)])
    archive.until(lambda: archive.count() == records and committed(archive) == records)
    process.terminate()
    assert process.wait(20) == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("records", "says"), [(2, "ends at 2, and was archived up to 4"), (9, "is not the log that was archived")]
)
def test_a_topic_made_anew_is_refused_whether_it_is_shorter_or_longer(
    archive: Archive, records: int, says: str
) -> None:
    archived(archive, 5)
    made_anew(archive)
    archive.publish(*[archive.action(text=f"new {n}") for n in range(records)])
    refused = archive.start()
    assert refused.wait(60) == 4
    archive.running.remove(refused)
    last = (archive.folder / "archiver1.log").read_text().splitlines()[-1]
    assert says in last
    assert archive.kafka.topic(Topic.ACTIONS) in last
    assert "BANKSMAN_CLICKHOUSE_DATABASE" in last
    assert archive.count() == 5


@pytest.mark.slow
def test_a_topic_made_anew_under_a_running_archiver_is_refused_too(archive: Archive) -> None:
    running = archive.start()
    archive.publish(*[archive.action(text=str(n)) for n in range(5)])
    archive.until(lambda: archive.count() == 5)
    made_anew(archive)
    archive.publish(archive.action(text="new"))
    assert running.wait(90) == 4
    archive.running.remove(running)
    assert archive.count() == 5


def test_of_a_topic_of_which_nothing_was_stored_nothing_is_missing(archive: Archive) -> None:
    """All of the old one were dead letters: there is no row that a new record could be taken for."""
    archive.publish(*[(Topic.ACTIONS, b"a", b"bad", [])] * 3)
    process = archive.start()
    archive.until(lambda: committed(archive) == 3)
    process.terminate()
    assert process.wait(20) == 0
    made_anew(archive)
    archive.publish(archive.action(text="new"))
    archive.start()
    archive.until(lambda: archive.count() == 1)
    assert len(letters(archive, 3)) == 3


def test_where_to_go_on() -> None:
    def commit(offset: int, stored: int) -> OffsetAndMetadata:
        return OffsetAndMetadata(offset, f"stored={stored}")

    assert go_on(-1, None, 10) == 0
    assert go_on(4, None, 10) == 5
    assert go_on(4, commit(8, 4), 10) == 8, "dead letters at the end"
    assert go_on(4, commit(8, 7), 10) == 5, "the database was brought back from a backup"
    assert go_on(4, OffsetAndMetadata(8, ""), 10) == 5, "somebody else's commit"
    assert go_on(4, commit(8, 4), 6) == 8, "for the caller to find that the log is shorter"
    assert go_on(-1, commit(8, -1), 6) == 0
    assert go_on(-1, commit(8, -1), 8) == 8
