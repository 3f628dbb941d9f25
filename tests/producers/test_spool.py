"""The spool: whatever happens to its files, what is read back is what was appended, in that order, or it is missing."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from banksman.producers import descriptors, frames
from banksman.producers.spool import Spool

CAP = 1 << 30
_folders = itertools.count()


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("spools")


def fresh(scratch: Path) -> Path:
    folder = scratch / str(next(_folders))
    folder.mkdir()
    return folder


def payload(seq: int, size: int = 40) -> bytes:
    return f'{{"n":{seq},"text":"{"x" * size}"}}'.encode()


def drain(spool: Spool, most: int = 7) -> Iterator[tuple[int, bytes]]:
    while events := spool.read(most, 1 << 20):
        spool.acknowledge(events)
        yield from ((event.place.seq, event.payload) for event in events)


def fill(spool: Spool, count: int, size: int = 40) -> list[tuple[int, bytes]]:
    made = [(seq, payload(seq, size)) for seq in range(spool.last_seq + 1, spool.last_seq + 1 + count)]
    for event in made:
        spool.append([event])
    return made


def segments(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.log"))


# ── frames ──

JSON_TEXT = st.binary(max_size=60).map(lambda raw: raw.replace(b"\0", b"0"))


@given(st.lists(JSON_TEXT, max_size=12), st.data())
def test_frames_come_back_whole_or_not_at_all(texts: list[bytes], data: st.DataObject) -> None:
    """Bytes are changed, cut out and put in anywhere: what is found was written, and in that order."""
    written = dict(enumerate(texts, 1))
    raw = bytearray(b"".join(frames.pack(seq, text) for seq, text in written.items()))
    for _ in range(data.draw(st.integers(0, 4))):
        if not raw:
            break
        at, length = data.draw(st.integers(0, len(raw) - 1)), data.draw(st.integers(0, 40))
        raw[at : at + length] = data.draw(st.binary(max_size=40))
    found = frames.read(bytes(raw), 0, last=True)
    assert all(written[frame.seq] == frame.payload for frame in found.frames)
    seqs = [frame.seq for frame in found.frames]
    assert seqs == sorted(set(seqs))
    assert found.used == len(raw)


@given(st.lists(JSON_TEXT, min_size=3, max_size=12), st.data())
def test_damage_costs_only_what_it_touches(texts: list[bytes], data: st.DataObject) -> None:
    parts = [frames.pack(seq, text) for seq, text in enumerate(texts, 1)]
    hit = data.draw(st.integers(0, len(parts) - 1))
    at = data.draw(st.integers(0, len(parts[hit]) - 1))
    damaged = bytearray(parts[hit])
    damaged[at] ^= data.draw(st.integers(1, 255))
    raw = b"".join([*parts[:hit], bytes(damaged), *parts[hit + 1 :]])
    found = frames.read(raw, 0, last=True)
    assert [frame.seq for frame in found.frames] == [seq for seq in range(1, len(parts) + 1) if seq != hit + 1]
    assert found.damaged == len(parts[hit])


@given(st.lists(JSON_TEXT, min_size=1, max_size=8), st.data())
def test_a_frame_that_is_cut_off_is_left_for_the_next_reading(texts: list[bytes], data: st.DataObject) -> None:
    raw = b"".join(frames.pack(seq, text) for seq, text in enumerate(texts, 1))
    cut = data.draw(st.integers(0, len(raw)))
    first = frames.read(raw[:cut], 0, last=False)
    after = first.frames[-1].seq if first.frames else 0
    rest = frames.read(raw[first.used :], after, last=True)
    assert [frame.payload for frame in (*first.frames, *rest.frames)] == texts
    assert first.damaged == rest.damaged == 0


# ── one life after another ──


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_lives_that_end_anywhere(scratch: Path, data: st.DataObject) -> None:
    """Appending, sending, dying with a torn tail, beginning again: each event is sent at least once, first in order.

    A life ends by dropping the object as kill -9 would: files as they are, plus a part of the frame that was being written.
    """
    folder = fresh(scratch)
    sent: list[tuple[int, bytes]] = []
    appended: list[tuple[int, bytes]] = []
    for _ in range(data.draw(st.integers(1, 5), label="lives")):
        spool = Spool(folder, cap=CAP, segment_bytes=1 << 16)
        spool._segment_bytes = 600  # a dozen frames, so that segments come and go
        for _ in range(data.draw(st.integers(0, 12), label="steps")):
            if data.draw(st.booleans(), label="append"):
                count = data.draw(st.integers(1, 9))
                batch = [(spool.last_seq + 1 + n, payload(spool.last_seq + 1 + n)) for n in range(count)]
                assert spool.append(batch)
                appended += batch
            elif events := spool.read(data.draw(st.integers(1, 9)), 400):
                sent += [(event.place.seq, event.payload) for event in events]
                if data.draw(st.booleans(), label="acknowledged"):
                    spool.acknowledge(events)
        last = spool._segments[-1]
        torn = frames.pack(spool.last_seq + 1, payload(spool.last_seq + 1))
        os.pwrite(last.fd, torn[: data.draw(st.integers(0, len(torn) - 1), label="torn")], last.end)
        for fd in spool.descriptors():
            descriptors.close(fd)
    spool = Spool(folder, cap=CAP)
    sent += list(drain(spool))
    spool.close()
    assert list(dict.fromkeys(sent)) == appended
    assert len({seq for seq, _ in appended}) == len(appended), "a number was given twice"
    shutil.rmtree(folder)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_files_that_were_damaged(scratch: Path, data: st.DataObject) -> None:
    """Any file of it changed, cut or emptied while nobody looked: no event is made up, changed or out of order."""
    folder = fresh(scratch)
    spool = Spool(folder, cap=CAP)
    spool._segment_bytes = 600
    appended = fill(spool, data.draw(st.integers(1, 40)))
    if events := spool.read(data.draw(st.integers(1, 20)), 1 << 20):
        spool.acknowledge(events)
    for fd in spool.descriptors():
        descriptors.close(fd)
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from([*segments(folder), folder / "cursor"]))
        raw = bytearray(path.read_bytes())
        at = data.draw(st.integers(0, len(raw)))
        match data.draw(st.sampled_from(["flip", "cut", "insert", "zeros"])):
            case "flip" if at < len(raw):
                raw[at] ^= 0xFF
            case "cut":
                del raw[at:]
            case "insert":
                raw[at:at] = data.draw(st.binary(max_size=30))
            case "zeros":
                raw[at : at + 20] = bytes(len(raw[at : at + 20]))
        path.write_bytes(raw)
    spool = Spool(folder, cap=CAP)
    after = fill(spool, 3)
    sent = list(drain(spool))
    spool.close()
    assert sent[-3:] == after
    known = dict(appended)
    old = sent[:-3]
    assert all(known[seq] == text for seq, text in old)
    assert [seq for seq, _ in sent] == sorted({seq for seq, _ in sent})
    shutil.rmtree(folder)


def test_numbers_go_on_after_everything_was_sent(tmp_path: Path) -> None:
    spool = Spool(tmp_path, cap=CAP)
    fill(spool, 5)
    list(drain(spool))
    spool.close()
    assert [path.stat().st_size for path in segments(tmp_path)] == [0], "what was sent stays on disk"
    again = Spool(tmp_path, cap=CAP)
    assert again.last_seq == 5
    assert again.empty
    assert list(drain(again)) == []
    assert fill(again, 1)[0][0] == 6
    assert [seq for seq, _ in drain(again)] == [6]
    again.close()


def test_nothing_is_readable_by_others(tmp_path: Path) -> None:
    spool = Spool(tmp_path, cap=CAP)
    fill(spool, 2)
    spool.set_aside(b"{}")
    spool.close()
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}


# ── bounds ──


def test_at_the_cap_the_oldest_are_dropped_and_counted(tmp_path: Path) -> None:
    spool = Spool(tmp_path, cap=400_000)
    appended = fill(spool, 2000, size=400)
    assert sum(path.stat().st_size for path in segments(tmp_path)) <= 400_000 + 1000
    sent = list(drain(spool, 100))
    assert sent == appended[-len(sent) :], "the newest are there, in order"
    assert spool.dropped == len(appended) - len(sent) > 0
    spool.close()


def test_dropped_while_it_was_being_sent_is_not_counted_as_lost(tmp_path: Path) -> None:
    spool = Spool(tmp_path, cap=400_000)
    fill(spool, 50, size=400)
    on_its_way = spool.read(20, 1 << 20)
    appended = 50 + len(fill(spool, 1950, size=400))
    assert spool.dropped > 50
    spool.acknowledge(on_its_way)
    assert len(list(drain(spool, 100))) + 20 + spool.dropped == appended
    spool.close()


def test_where_nothing_may_be_dropped_it_says_that_it_is_full(tmp_path: Path) -> None:
    spool = Spool(tmp_path, cap=300_000, keep=True)
    while not spool.full:
        fill(spool, 1, size=400)
    appended = fill(spool, 100, size=400)  # what was taken before anybody looked is kept all the same
    sent: list[int] = []
    while events := spool.read(100, 1 << 20):
        spool.acknowledge(events)
        sent += [event.place.seq for event in events]
    assert sent == list(range(1, appended[-1][0] + 1))
    assert spool.dropped == 0
    assert not spool.full
    spool.close()


def test_an_event_as_large_as_it_may_be(tmp_path: Path) -> None:
    spool = Spool(tmp_path, cap=CAP)
    big = b"[" + b"1" * (frames.MAX_PAYLOAD - 2) + b"]"
    spool.append([(1, b"{}"), (2, big), (3, big), (4, b"{}")])
    assert [[event.place.seq for event in spool.read(10, size)] for size in (1, 1 << 20)] == [[1], [1]]
    assert [text for _, text in drain(spool)] == [b"{}", big, big, b"{}"]
    assert spool.damaged == 0
    spool.close()


# ── a disk that takes no more ──


def test_a_full_disk_keeps_events_in_memory_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pwrite writes a part and then fails, as it does at the end of a disk; later there is room again."""
    spool = Spool(tmp_path, cap=CAP, memory=100_000)
    fill(spool, 3)
    real, room = os.pwrite, 0

    def full(fd: int, data: bytes, at: int) -> int:
        nonlocal room
        if fd == spool._cursor_fd:
            return real(fd, data, at)
        if room == 0:
            raise OSError(28, "No space left on device")
        written = real(fd, bytes(data)[:room], at)
        room -= written
        return written

    monkeypatch.setattr(os, "pwrite", full)
    room = 70  # one frame and a part of the next
    assert not spool.append([(4, payload(4)), (5, payload(5))])
    assert not spool.append([(6, payload(6))])
    assert not spool.written
    assert (spool.disk_errors, spool.last_disk_error) == (2, "No space left on device")
    first = spool.read(10, 1 << 20)
    assert [event.place.seq for event in first] == [1, 2, 3]
    spool.acknowledge(first)
    second = spool.read(2, 1 << 20)
    assert [event.place.seq for event in second] == [4, 5], "what is not on disk is sent from memory"
    spool.acknowledge(second)
    third = spool.read(2, 1 << 20)  # on its way while the disk takes it after all
    monkeypatch.setattr(os, "pwrite", real)
    assert spool.append([(7, payload(7))])
    spool.acknowledge(third)
    assert list(drain(spool)) == [(7, payload(7))]
    assert spool.damaged == spool.dropped == 0
    for fd in spool.descriptors():
        descriptors.close(fd)
    again = Spool(tmp_path, cap=CAP)
    assert (again.last_seq, again.empty) == (7, True)
    again.close()


def test_numbers_sent_from_memory_are_not_given_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed while the disk is full: what was sent from memory is known by number."""
    spool = Spool(tmp_path, cap=CAP)
    cursor, real = spool._cursor_fd, os.pwrite

    def full(fd: int, data: bytes, at: int) -> int:
        if fd != cursor:
            raise OSError(28, "No space left on device")
        return real(fd, data, at)

    monkeypatch.setattr(os, "pwrite", full)
    assert not spool.append([(1, payload(1)), (2, payload(2))])
    spool.acknowledge(spool.read(2, 1 << 20))
    for fd in spool.descriptors():
        descriptors.close(fd)
    monkeypatch.setattr(os, "pwrite", real)
    again = Spool(tmp_path, cap=CAP)
    assert again.last_seq == 2
    again.close()


def test_memory_has_a_bound_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = Spool(tmp_path, cap=CAP, memory=1000)
    monkeypatch.setattr(os, "pwrite", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    assert not spool.stuck
    spool.append([(1, payload(1, 2000))])
    assert spool.stuck
    assert spool.full
    monkeypatch.undo()
    assert spool.retry()
    assert not spool.stuck
    spool.close()
