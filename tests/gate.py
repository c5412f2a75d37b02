"""A network that a test can cut: the connections to a server on loopback go through it, as bytes.

It knows nothing of what they carry. What a storage answers, and how it fails at that, is in
`fault_proxy`, which reads every request.
"""

from __future__ import annotations

import select
import socket
import threading
from contextlib import suppress


class Gate:
    """Passes on what comes to `endpoint`, while it is open. Shut, connections are refused, as where
    there is no network; mute, they are taken and never answered, as where packets are lost."""

    def __init__(self, endpoint: str) -> None:
        host, _, port = endpoint.removeprefix("http://").partition(":")
        self._server = (host, int(port))
        self._connections: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._mute = False
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._port = self._listener.getsockname()[1]
        #: How many connections came while it was mute.
        self.unanswered = threading.Semaphore(0)
        self._begin()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def shut(self) -> None:
        """Cut off every connection, and refuse more."""
        with suppress(OSError):  # wakes the thread that waits in accept()
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._cut()

    def open(self) -> None:
        """Let everything through again."""
        if self._mute:
            self._mute = False
            self._cut()
        else:
            self._listener = socket.create_server(("127.0.0.1", self._port))
            self._begin()

    def close(self) -> None:
        """The end of it."""
        self.shut()

    def mute(self) -> None:
        """Cut off every connection; take more, and answer none."""
        self._mute = True
        self._cut()

    def _begin(self) -> None:
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def _cut(self) -> None:
        with self._lock:
            for connection in self._connections:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                threading.Thread(target=self._pass_on, args=(client,), daemon=True).start()

    def _pass_on(self, client: socket.socket) -> None:
        if self._mute:
            with client, self._known(client):
                self.unanswered.release()
                with suppress(OSError):
                    while client.recv(1 << 16):
                        pass
            return
        with (
            client,
            socket.create_connection(self._server) as server,
            self._known(client, server),
            suppress(OSError),
        ):
            self._relay(client, server)

    def _known(self, *connections: socket.socket) -> _Known:
        return _Known(self._lock, self._connections, connections)

    @staticmethod
    def _relay(client: socket.socket, server: socket.socket) -> None:
        other = {client: server, server: client}
        while True:
            for ready in select.select([client, server], [], [])[0]:
                data = ready.recv(1 << 16)
                if not data:
                    return
                other[ready].sendall(data)


class _Known:
    """Connections that can be cut, for the time of a block."""

    def __init__(
        self,
        lock: threading.Lock,
        all: set[socket.socket],
        connections: tuple[socket.socket, ...],
    ) -> None:
        self._lock, self._all, self._connections = lock, all, connections

    def __enter__(self) -> None:
        with self._lock:
            self._all.update(self._connections)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._all.difference_update(self._connections)
