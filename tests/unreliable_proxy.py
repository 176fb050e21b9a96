"""A door in front of a server that misbehaves on command: errors, late answers, connections that are cut."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress


class Proxy:
    """Passes bytes on to the store, or answers itself with errors, late, or not at all."""

    def __init__(self, port: int) -> None:
        self.target, self.mode, self.hits = port, "pass", 0
        self.server = socket.create_server(("127.0.0.1", 0))
        self.port = self.server.getsockname()[1]
        self.left = 0
        threading.Thread(target=self._serve, daemon=True).start()

    def fail(self, mode: str, times: int) -> None:
        """Misbehave for the next connections."""
        self.mode, self.left, self.hits = mode, times, 0

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self.server.accept()
            except OSError:
                return
            threading.Thread(target=self._connection, args=(client,), daemon=True).start()

    def _connection(self, client: socket.socket) -> None:
        mode = self.mode if self.left > 0 else "pass"
        if mode != "pass":
            self.left, self.hits = self.left - 1, self.hits + 1
        if mode in ("500", "503"):
            client.recv(65536)
            body = b"<Error><Code>SlowDown</Code><Message>try later</Message></Error>"
            client.sendall(
                f"HTTP/1.1 {mode} Trouble\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body
            )
            client.close()
            return
        if mode == "cut":
            client.recv(4096)
            client.close()
            return
        if mode == "slow":
            time.sleep(3)
        with client, socket.create_connection(("127.0.0.1", self.target)) as server:
            there = threading.Thread(target=_pump, args=(client, server), daemon=True)
            there.start()
            _pump(server, client)
            there.join()

    def close(self) -> None:
        """Stop listening."""
        self.server.close()


def _pump(source: socket.socket, target: socket.socket) -> None:
    try:
        while chunk := source.recv(65536):
            target.sendall(chunk)
    except OSError:
        pass
    for end in (source, target):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
