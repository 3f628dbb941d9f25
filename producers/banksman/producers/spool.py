"""Events on disk between the agent and the other side: appended, read in order, forgotten once they are acknowledged.

A folder holds segments `SEQ.log` (SEQ: the first number in it, 20 digits), each about 8 MB of frames; `cursor`, how far the
other side has acknowledged; `refused`, what it will never take. Bytes are in the page cache when `append` returns: they
survive a kill -9 of this process, not a power cut. When the disk takes no more, events stay in memory, in order.

One thread appends, one reads; the lock makes that safe. Whoever opens a spool holds its folder (claims.py).
"""

from __future__ import annotations

import contextlib
import logging
import os
import struct
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple
from zlib import crc32

from banksman.producers import descriptors, frames

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

SEGMENT_BYTES = 8 << 20
REFUSED_BYTES = 16 << 20
_CURSOR = struct.Struct(">QQQ")
_CRC = struct.Struct(">I")
_log = logging.getLogger("banksman.emitter")


@dataclass
class Segment:
    """One file. `end`: behind its last whole frame."""

    first: int
    path: Path
    fd: int
    end: int = 0


class Place(NamedTuple):
    """Behind an event: its segment's first number (0: the event was in memory), the offset there, its own number."""

    segment: int
    offset: int
    seq: int


class Event(NamedTuple):
    """One event that waits to be sent."""

    payload: bytes
    place: Place


class Spool:
    """One folder, held by this process.

    `cap` bytes: at it the oldest segment is dropped and its events counted, or, with `keep`, nothing is and `full` says so.
    """

    def __init__(
        self,
        folder: Path,
        *,
        cap: int,
        keep: bool = False,
        memory: int = 64 << 20,
        segment_bytes: int = SEGMENT_BYTES,
    ) -> None:
        """OSError: the folder cannot be used."""
        self.folder = folder
        self._cap, self._keep, self._memory = cap, keep, memory
        self._segment_bytes = max(1 << 16, min(segment_bytes, cap // 4))
        self._lock = threading.Lock()
        self.dropped = self.damaged = self.refused = self.disk_errors = 0
        self.last_disk_error = ""
        self._unwritten: list[tuple[int, bytes]] = []  # (seq, payload), when the disk takes no more
        self._unwritten_bytes = 0
        self._segments: list[Segment] = []
        self._cursor_fd = -1
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    # ── opening ──

    def _open(self) -> None:
        self._cursor_fd = descriptors.opened(self.folder / "cursor", os.O_RDWR | os.O_CREAT)
        place = self._read_cursor()
        for path in sorted(self.folder.glob("*.log")):
            if path.stem.isdigit() and len(path.stem) == 20:
                fd = descriptors.opened(path, os.O_RDWR)
                self._segments.append(Segment(int(path.stem), path, fd, os.fstat(fd).st_size))
        last = self._segments[-1].first - 1 if self._segments else 0
        if self._segments:
            last = max(last, self._mend(self._segments[-1]))
        self.last_seq = max(last, place.seq)
        """The number of the newest event that was appended."""
        self._acknowledged = place.seq
        if not self._segments:
            self._add_segment(self.last_seq + 1)
        self._at = self._start(place)
        self._save_cursor()  # its block on disk is taken now: when the disk is full it can still be written

    def _mend(self, segment: Segment) -> int:
        """Cut off a torn tail: what stands behind the last whole frame -> that frame's number (0: there is none)."""
        seq, at, whole = 0, 0, 0
        while at < segment.end:
            data = os.pread(segment.fd, frames.MAX_FRAME, at)
            if not data:
                break
            found = frames.read(data, seq, last=at + len(data) >= segment.end)
            if found.frames:
                seq, whole = found.frames[-1].seq, at + found.frames[-1].end
            at += found.used or len(data)
        if whole < segment.end:
            self.damaged += segment.end - whole
            _log.warning("%s: %d bytes at its end are no event and were cut off", segment.path, segment.end - whole)
            os.ftruncate(segment.fd, whole)
            segment.end = whole
        return seq

    def _start(self, place: Place) -> tuple[int, int]:
        for segment in self._segments:
            if segment.first == place.segment:
                self._forget_before(segment.first)
                return segment.first, min(place.offset, segment.end)
        return self._segments[0].first, 0

    def _read_cursor(self) -> Place:
        raw = os.pread(self._cursor_fd, _CURSOR.size + 4, 0)
        if len(raw) == _CURSOR.size + 4 and _CRC.unpack(raw[-4:])[0] == crc32(raw[:-4]):
            return Place(*_CURSOR.unpack(raw[:-4]))
        return Place(0, 0, 0)  # begin at the oldest: events that were acknowledged are sent again, none is left out

    # ── appending ──

    def append(self, events: Sequence[tuple[int, bytes]]) -> bool:
        """Events with ascending numbers, whole or not at all. False: the disk takes no more; they are kept in memory."""
        with self._lock:
            self._unwritten += events
            self._unwritten_bytes += sum(len(payload) for _, payload in events)
            if events:
                self.last_seq = events[-1][0]
            return self._write()

    def retry(self) -> bool:
        """Try again what the disk did not take. True: nothing is left."""
        with self._lock:
            return self._write()

    def _write(self) -> bool:
        try:
            while self._unwritten:
                if self._segments[-1].end >= self._segment_bytes:
                    self._add_segment(self._unwritten[0][0])
                self._make_room()
                self._write_some(self._segments[-1])
        except OSError as error:
            self.disk_errors += 1
            self.last_disk_error = error.strerror or str(error)
            return False
        return True

    def _write_some(self, segment: Segment) -> None:
        parts: list[bytes] = []
        size = count = 0
        for seq, payload in self._unwritten:
            if parts and segment.end + size >= self._segment_bytes:
                break
            parts.append(frames.pack(seq, payload))
            size += len(parts[-1])
            count += 1
        data = memoryview(b"".join(parts))
        at = segment.end
        while data:
            written = os.pwrite(segment.fd, data, at)
            data, at = data[written:], at + written
        segment.end = at  # a part that was written before the disk was full is not counted, and written over later
        self._forget_unwritten(count)

    def _add_segment(self, first: int) -> None:
        path = self.folder / f"{first:020d}.log"
        fd = descriptors.opened(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        self._segments.append(Segment(first, path, fd))

    def _make_room(self) -> None:
        while not self._keep and len(self._segments) > 1 and self._size() >= self._cap:
            oldest = self._segments[0]
            start = self._at[1] if self._at[0] == oldest.first else 0
            lost = self._frames_of(oldest, start)
            self.dropped += len(lost)
            if lost:
                self._acknowledged = lost[-1].seq
            _log.warning("the spool is at its cap: %d events that were never sent are dropped", len(lost))
            self._at = (self._segments[1].first, 0)
            self._forget_before(self._segments[1].first)

    def _frames_of(self, segment: Segment, start: int) -> list[frames.Frame]:
        data = os.pread(segment.fd, segment.end - start, start)
        return frames.read(data, self._acknowledged, last=True).frames

    # ── reading ──

    def read(self, most: int, most_bytes: int) -> list[Event]:
        """The oldest events that are not acknowledged: at most so many, and so many bytes, but one at least."""
        with self._lock:
            while True:
                segment = self._current()
                here = self._from_file(segment, most, most_bytes)
                if here:
                    return here
                if segment is self._segments[-1]:
                    break
                following = self._segments[self._segments.index(segment) + 1]
                self._at = (following.first, 0)
                self._forget_before(following.first)
            return self._from_memory(most, most_bytes)

    def _from_file(self, segment: Segment, most: int, most_bytes: int) -> list[Event]:
        while (start := self._at[1]) < segment.end:
            length = min(segment.end - start, max(frames.MAX_FRAME, most_bytes))
            data = os.pread(segment.fd, length, start)
            if len(data) < length:  # somebody else cut the file: what is gone is gone
                segment.end = start + len(data)
            found = frames.read(data, self._acknowledged, last=start + len(data) >= segment.end)
            if found.damaged:
                self.damaged += found.damaged
                _log.warning("%s: %d damaged bytes are left out", segment.path, found.damaged)
            if not found.frames:
                self._at = (segment.first, start + (found.used or len(data)))
                continue
            taken: list[Event] = []
            size = 0
            for frame in found.frames:
                size += len(frame.payload)
                if taken and (len(taken) >= most or size > most_bytes):
                    break
                taken.append(Event(frame.payload, Place(segment.first, start + frame.end, frame.seq)))
            return taken
        return []

    def _from_memory(self, most: int, most_bytes: int) -> list[Event]:
        taken: list[Event] = []
        size = 0
        for seq, payload in self._unwritten:
            size += len(payload)
            if taken and (len(taken) >= most or size > most_bytes):
                break
            taken.append(Event(payload, Place(0, 0, seq)))
        return taken

    def acknowledge(self, events: Sequence[Event]) -> None:
        """These, the oldest, need not be sent any more."""
        place = events[-1].place
        with self._lock:
            if (
                place.seq <= self._acknowledged
            ):  # dropped for want of room while they were on their way: sent all the same
                self.dropped -= len(events)
                return
            gone = sum(event.place.seq <= self._acknowledged for event in events)
            self.dropped -= gone
            self._acknowledged = place.seq
            if place.segment:
                self._at = (place.segment, place.offset)
            else:
                sent = sum(seq <= place.seq for seq, _ in self._unwritten[: len(events)])
                self._forget_unwritten(sent)
            self._save_cursor()

    def _forget_unwritten(self, count: int) -> None:
        self._unwritten_bytes -= sum(len(payload) for _, payload in self._unwritten[:count])
        del self._unwritten[:count]

    def _save_cursor(self) -> None:
        raw = _CURSOR.pack(*self._at, self._acknowledged)
        try:
            os.pwrite(self._cursor_fd, raw + _CRC.pack(crc32(raw)), 0)
        except OSError as error:  # after a kill more is sent again than had to be; nothing is lost
            self.disk_errors += 1
            self.last_disk_error = error.strerror or str(error)

    def set_aside(self, line: bytes) -> None:
        """Keep a line about an event that can never be sent, while there is room for such; it is counted in any case."""
        self.refused += 1
        try:
            fd = os.open(
                self.folder / "refused", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
            )
            try:
                if os.fstat(fd).st_size + len(line) < REFUSED_BYTES:
                    os.write(fd, line + b"\n")
            finally:
                os.close(fd)
        except OSError as error:
            self.disk_errors += 1
            self.last_disk_error = error.strerror or str(error)

    def _current(self) -> Segment:
        return next(segment for segment in self._segments if segment.first == self._at[0])

    def _forget_before(self, first: int) -> None:
        while self._segments and self._segments[0].first < first:
            old = self._segments.pop(0)
            descriptors.close(old.fd)
            with contextlib.suppress(OSError):  # it is tried again when the spool is opened next
                old.path.unlink()

    # ── what is there ──

    def _size(self) -> int:
        return sum(segment.end for segment in self._segments)

    @property
    def acknowledged(self) -> int:
        """The number of the newest event that need not be sent any more."""
        return self._acknowledged

    @property
    def written(self) -> bool:
        """Whether everything that was appended is on disk."""
        return not self._unwritten

    @property
    def stuck(self) -> bool:
        """The disk takes no more, and memory holds what it may."""
        return self._unwritten_bytes >= self._memory

    @property
    def full(self) -> bool:
        """Stuck, or at the cap where nothing may be dropped."""
        return self.stuck or (self._keep and self.waiting >= self._cap)

    @property
    def waiting(self) -> int:
        """Bytes that are not acknowledged. Without the lock, which is held while the disk works: agents' calls ask for this."""
        return max(0, self._size() - self._at[1] + self._unwritten_bytes)

    @property
    def in_memory(self) -> int:
        """Bytes that the disk did not take; after `close` they are lost."""
        return self._unwritten_bytes

    @property
    def empty(self) -> bool:
        """Whether nothing waits to be sent."""
        with self._lock:
            return not self._unwritten and self._at == (self._segments[-1].first, self._segments[-1].end)

    # ── letting go ──

    def close(self) -> None:
        """Close the files; where everything was acknowledged, nothing of it stays on disk."""
        with self._lock, contextlib.suppress(OSError):  # what cannot be tidied up now is when it is opened next
            self._write()
            self.dropped += len(self._unwritten)
            self._unwritten.clear()
            if self._segments and self._at == (self._segments[-1].first, self._segments[-1].end) and self._at[1]:
                self._add_segment(self.last_seq + 1)
                self._at = (self._segments[-1].first, 0)
                self._save_cursor()
                self._forget_before(self._at[0])
        for fd in self.descriptors():
            descriptors.close(fd)
        self._segments.clear()
        self._cursor_fd = -1

    def descriptors(self) -> list[int]:
        """The open files."""
        return [segment.fd for segment in self._segments] + ([self._cursor_fd] if self._cursor_fd >= 0 else [])
