"""docs/security.md: what it says that each may do in Kafka is what the code says."""

from __future__ import annotations

import re
from pathlib import Path

from banksman import acls
from banksman.topics import Topic

PAGE = (Path(__file__).parents[2] / "docs" / "security.md").read_text()


def test_the_table_of_acls_is_the_codes() -> None:
    head, *rows = re.findall(
        r"^\| (`?\w+`?) \|(.*)\|$", PAGE[PAGE.index("| kind |") :].partition("\n\n")[0], re.MULTILINE
    )
    topics = re.findall(r"`(\w+)`", head[1])
    assert topics == [topic.value for topic in Topic]
    said = {}
    for kind, cells in rows:
        *may, group, more = (cell.strip() for cell in cells.split("|"))
        said[kind.strip("`")] = (
            {topic: set(re.findall(r"\w+", cell)) for topic, cell in zip(topics, may, strict=True)},
            group.strip("`"), "configuration" in more, "sees ends and groups" in more, "`processors-…`" in more,
        )  # fmt: skip
    assert said == {
        kind: (
            {topic.value: _may(one, topic) for topic in Topic},
            one.group, one.checks, one.watches, one.tables,
        )
        for kind, one in acls.KINDS.items()
    }  # fmt: skip


def _may(needs: acls.Needs, topic: Topic) -> set[str]:
    every = ("read", needs.read), ("write", needs.write), ("create", needs.create)
    return {word for word, topics in every if topic in topics}
