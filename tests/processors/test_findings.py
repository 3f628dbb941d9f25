"""Findings: the same ids on every replay, no flood, and no count that is lost."""

from __future__ import annotations

from typing import Any

from banksman import codec, events, stamps
from banksman.processors.archiver import letters
from banksman.processors.archiver.findings import AT_MOST, QUIET_MS, REMEMBERED, Findings, Sight, record_id
from banksman.processors.archiver.rows import Rows
from banksman.topics import Topic

NOW = 1_764_000_000_000


def rows(agents: list[str], *, first: int = 0, received: int = NOW, **columns: Any) -> Rows:
    """Notes that nobody signed."""
    count = len(agents)
    made: dict[str, Any] = {
        "agent": agents, "project": ["p"] * count, "session": ["s"] * count, "source": ["x"] * count,
        "id": [stamps.uuid7()] * count,
        "kind": ["note"] * count, "received": [received] * count, "time": [received * 1000] * count, "raw": [b"{}"] * count,
        "verified": [False] * count, "author": [""] * count, "late": [""] * count, "offset": list(range(first, first + count)),
    }  # fmt: skip
    return Rows(Topic.ACTIONS, 0, made | columns)


def see(findings: Findings, fingerprint: str, received: int, clock: int = NOW) -> events.Finding | None:
    sight = Sight(received, f"t/0/{received}", "d", fingerprint)
    return findings.see(sight, clock, severity="warn", title="t", evidence={}, suggestion="s")


def test_a_replay_tells_the_same_under_the_same_ids() -> None:
    once, again = Findings("archiver#1"), Findings("archiver#2")
    seen = [rows(["a", "b", "a"]), rows(["c"], first=3, verified=[True], late=["skew"])]
    ids = [[finding.id for part in seen for finding in one.about(part, NOW)] for one in (once, again)]
    assert ids[0] == ids[1]
    assert len(set(ids[0])) == 3


def test_nothing_is_said_of_what_is_right() -> None:
    assert list(Findings("x").about(rows(["a"], verified=[True]), NOW)) == []
    assert list(Findings("x").about(rows(["a"], verified=[True], late=["late"]), NOW)) == []


def test_a_flood_is_few_findings_and_their_counts_are_all_of_it() -> None:
    findings = Findings("x")
    told = []
    for n in range(100):
        told += list(findings.about(rows([f"made-up-{n % 50}"] * 7, first=n * 7), NOW + n))
    assert len(told) == AT_MOST + 1
    told += list(findings.overdue(NOW + 2 * QUIET_MS))
    assert sum(finding.count for finding in told) == 700
    assert len({finding.id for finding in told}) == len(told)
    assert list(findings.overdue(NOW + 5 * QUIET_MS)) == [], "said once"


def test_a_flood_of_warnings_hides_no_page() -> None:
    findings = Findings("x")
    flood = [finding for n in range(100) for finding in findings.about(rows([f"made-up-{n}"], first=n), NOW + n)]
    assert len(flood) == AT_MOST + 1
    in_limits = Rows(Topic.LIMITS, 0, rows(["buyer"], first=7, received=NOW + 200).columns)
    [page] = findings.about(in_limits, NOW)
    assert (page.severity, page.fingerprint) == ("page", "forged/limits/buyer")


def test_a_page_is_told_also_where_a_warning_was() -> None:
    findings = Findings("x")

    def tell(received: int, severity: str, times: int) -> events.Finding | None:
        sight = Sight(received, f"t/0/{received}", "dead_letters", "dead_letters", times)
        return findings.see(sight, NOW, severity=severity, title="t", evidence={}, suggestion="s")

    assert tell(NOW, "warn", 1)
    assert tell(NOW + 1, "warn", 2) is None
    page = tell(NOW + 2, "page", 500)
    assert page is not None
    assert (page.severity, page.count) == ("page", 502)
    assert tell(NOW + 3, "warn", 1) is None
    [rest] = findings.overdue(NOW + QUIET_MS)
    assert (rest.severity, rest.count) == ("page", 1)


def test_the_same_within_a_minute_is_counted_and_told_when_it_is_over() -> None:
    findings = Findings("x")
    assert see(findings, "f", NOW)
    assert see(findings, "f", NOW + 1) is None
    assert see(findings, "f", NOW + 2) is None
    assert list(findings.overdue(NOW + QUIET_MS - 1)) == []
    [again] = findings.overdue(NOW + QUIET_MS)
    assert (again.count, again.title, again.fingerprint) == (2, "2 more: t", "f")
    assert again.last_seen == stamps.rfc3339_ms(NOW + 2)


def test_the_next_one_takes_the_count_with_it() -> None:
    findings = Findings("x")
    see(findings, "f", NOW)
    see(findings, "f", NOW + 1)
    later = see(findings, "f", NOW + QUIET_MS)
    assert later is not None
    assert later.count == 2
    assert list(findings.overdue(NOW + 10 * QUIET_MS)) == []


def test_memory_has_a_bound() -> None:
    findings = Findings("x")
    for n in range(REMEMBERED * 2):
        see(findings, f"f{n}", NOW + n * QUIET_MS)
    assert len(findings._told) == REMEMBERED


def test_forged_control_is_a_page() -> None:
    forged = rows(["a"])
    [finding] = Findings("x").about(Rows(Topic.CONTROL, 0, forged.columns), NOW)
    assert finding.severity == "page"
    assert finding.evidence["record"] == "control/0/0"


def test_ids_are_uuid7_of_the_records_time() -> None:
    made = record_id(NOW, "a", 1)
    assert made[:13] == stamps.uuid7(NOW)[:13]
    assert made == record_id(NOW, "a", 1) != record_id(NOW, "a", 2)
    assert codec.validate({"v": 1, "id": made, "time": stamps.rfc3339(), "kind": "note", "source": "s", "project": "p",
                           "agent": "a", "session": "s", "text": ""}, Topic.ACTIONS).id == made  # fmt: skip


def test_a_letter_fits_in_kafka_whatever_the_record_is() -> None:
    """8 MiB of value, and as much of key and headers as there is, of bytes that grow most when they are shown."""
    worst = b"\xff" * (8 << 20)
    letter = letters.of_record(
        "why " + "\x01" * 10**6, "t", 0, 1, NOW, worst, worst * 3, [("\x01" * 10**6, worst), ("b", b"")]
    )
    assert len(letter.value) < 15 << 20
    small = letters.of_record("why", "t", 0, 1, NOW, b"k\xff", b"v", [("h", b"\xff"), ("n", None)])
    assert b'"key":"k\\\\xff"' in small.value
    assert b'"headers":{"h":"\\\\xff","n":""}' in small.value
