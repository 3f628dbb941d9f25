"""A TCP proxy between a client and a server: cuts, swallows answers, refuses, slows, says nothing, when a test wants it."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from typing import Self


class Proxy:
    """Listens on a port of its own, which `at` may name, and passes everything on to `port`."""

    def __init__(self, port: int, at: int = 0) -> None:
        self._to = port
        self._listening = socket.create_server(("127.0.0.1", at))
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        self._lock = threading.Lock()
        self._away = False
        self.on_answer: Callable[[bytes], bytes | None] = lambda data: data
        """What becomes of bytes that come back: themselves, or None, which cuts the connection instead."""
        self.answers = 0
        self.delay = 0.0
        """Seconds that every piece of what passes is kept, in both directions."""
        self._passes = threading.Event()
        self._passes.set()

    @property
    def port(self) -> int:
        return int(self._listening.getsockname()[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self.speak()
        self.cut()

    def away(self) -> None:
        """From now on every connection is cut at once."""
        self._away = True
        self.cut()

    def back(self) -> None:
        self._away = False

    def silence(self) -> None:
        """From now on connections are open, and nothing comes through, as behind a firewall that drops."""
        self._passes.clear()

    def speak(self) -> None:
        """What was kept back goes on, and all that follows."""
        self._passes.set()

    def cut(self) -> None:
        """Cut what is open."""
        with self._lock:
            pairs, self._pairs = self._pairs, set()
        for pair in pairs:
            for one in pair:
                with contextlib.suppress(OSError):  # it was closed already
                    one.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            try:
                if self._away:
                    client.close()
                    continue
                server = socket.create_connection(("127.0.0.1", self._to))
            except OSError:
                client.close()
                continue
            with self._lock:
                self._pairs.add((client, server))
            if self._away:  # since it was looked at
                self.cut()
            threading.Thread(target=self._pump, args=(client, server, False), daemon=True).start()
            threading.Thread(target=self._pump, args=(server, client, True), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, back: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if back:
                    self.answers += 1
                    passed = self.on_answer(data)
                    if passed is None:
                        break
                    data = passed
                if self.delay:
                    time.sleep(self.delay)  # this is what is slow
                self._passes.wait()
                sink.sendall(data)
        for one in (source, sink):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        if back:  # the last of the two closes both
            with self._lock:
                self._pairs.discard((sink, source))
        source.close()
