"""A TCP relay between a site and its coordinator: counts bytes, cuts the line at a chosen byte, or goes silent."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from types import TracebackType
from typing import Literal

Direction = Literal["up", "down"]


class Relay:
    """Forwards `endpoint` to the target. A fault is planned once, and strikes once; lines dialled later are whole."""

    def __init__(self, target: str) -> None:
        host, port = target.removeprefix("tcp://").rsplit(":", 1)
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self.passed: dict[Direction, int] = {"up": 0, "down": 0}
        self.num_dialled = 0
        self._plan: tuple[str, Direction, int] | None = None  # what to do, and after how many more bytes of which way
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._sockets: list[socket.socket] = []
        self._start(self._accept)

    def cut(self, way: Direction, after_bytes: int) -> None:
        """Let so many more bytes pass, then close that line at both ends. After 0 bytes down, a reply is lost."""
        self._plan = ("cut", way, after_bytes)

    def go_silent(self, way: Direction, after_bytes: int) -> None:
        """Let so many more bytes pass, then swallow all: both ends believe that the line is there."""
        self._plan = ("silence", way, after_bytes)

    def _start(self, work: object, *args: object) -> None:
        thread = threading.Thread(target=work, args=args, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                site, _ = self._listener.accept()
                try:
                    coordinator = socket.create_connection(self._target)
                except OSError:
                    site.close()
                    continue
                self.num_dialled += 1
                self._sockets += [site, coordinator]
                silent = threading.Event()
                self._start(self._pump, site, coordinator, "up", silent)
                self._start(self._pump, coordinator, site, "down", silent)

    def _pump(self, source: socket.socket, sink: socket.socket, way: Direction, silent: threading.Event) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                if silent.is_set():
                    continue
                fault, data = self._next(way, data)
                sink.sendall(data)
                if fault == "cut":
                    break
                if fault == "silence":
                    silent.set()
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _next(self, way: Direction, data: bytes) -> tuple[str, bytes]:
        fault = ""
        with self._lock:
            if self._plan and self._plan[1] == way:
                kind, _, left = self._plan
                if len(data) > left:
                    fault, data, self._plan = kind, data[:left], None
                else:
                    self._plan = (kind, way, left - len(data))
            self.passed[way] += len(data)
        return fault, data

    def __enter__(self) -> Relay:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for end in self._sockets:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for end in self._sockets:
            end.close()
