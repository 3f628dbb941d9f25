"""What a service of ours says for live use, exactly so: by whom a record of `control`, `limits` or `alerts` has to be signed to
count, and what its headers have to say.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from banksman import codec
from banksman.errors import InvalidEvent
from banksman.events import kind_of
from banksman.signing import REPLAY, may_write

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aiokafka.structs import ConsumerRecord

    from banksman.events import Event
    from banksman.signing import Author, Verifier
    from banksman.topics import Topic


def service_event(
    record: ConsumerRecord, topic: Topic, full_topic: str, verifier: Verifier
) -> tuple[Event, Author] | None:
    """A record's event and the service that wrote it. None: it counts for nothing; the archiver stores it, and tells of it."""
    if record.value is None:
        return None
    author = verifier.author(full_topic, record.key, record.headers, record.value)
    if author is None:
        return None
    try:
        event = codec.decode(record.value, topic)
    except InvalidEvent:
        return None
    return None if doubt(author, event, dict(record.headers), topic) else (event, author)


def doubt(author: Author | None, event: Event, headers: Mapping[str, bytes | None], topic: Topic) -> str:
    """Why an event in one of the services' topics does not count, or ""."""
    kind = kind_of(event)
    if author is None:
        return "nobody of ours has signed it"
    if not author.service or not may_write(author, topic, kind=kind, project=None, agent=None):
        return f"{author} may not write {topic}"
    if headers.get("ce_id") != event.id.encode() or headers.get("ce_type") != f"banksman.{kind}".encode():
        return "its headers name another event than its body"
    if REPLAY in headers:
        return f"a replay touches no {topic}"
    return ""
