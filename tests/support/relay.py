"""The control: a plain pass-through that relays every byte unchanged and judges nothing."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
from types import TracebackType
from typing import Self

CHUNK = 65536


class Relay:
    """Listens on a free port of 127.0.0.1 and joins every connection to ``target``; half-closes are passed on."""

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port: int = self._listener.getsockname()[1]
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._accept, daemon=True, name="relay")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(5)

    def _accept(self) -> None:
        while not self._closed.is_set():
            try:
                downstream, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._join, args=(downstream,), daemon=True, name="relay-connection").start()

    def _join(self, downstream: socket.socket) -> None:
        with downstream:
            try:
                upstream = socket.create_connection(self._target, timeout=10)
            except OSError:
                return
            upstream.settimeout(None)
            with upstream, contextlib.suppress(OSError):
                self._pump(downstream, upstream)

    def _pump(self, downstream: socket.socket, upstream: socket.socket) -> None:
        other = {downstream: upstream, upstream: downstream}
        with selectors.DefaultSelector() as selector:
            for side in other:
                selector.register(side, selectors.EVENT_READ)
            open_sides = 2
            while open_sides and not self._closed.is_set():
                for key, _ in selector.select(timeout=0.5):
                    side = key.fileobj
                    assert isinstance(side, socket.socket)
                    data = side.recv(CHUNK)
                    if data:
                        other[side].sendall(data)
                    else:
                        selector.unregister(side)
                        open_sides -= 1
                        with contextlib.suppress(OSError):
                            other[side].shutdown(socket.SHUT_WR)
                        if side is upstream:
                            return
