"""The host's event stream, read with the standard library alone."""

import base64
import json
import os
import socket
import struct


class EventSocket:
    """A websocket that only listens."""

    def __init__(self, port: int, client: str, timeout: float = 120.0):
        self._socket = socket.create_connection(("127.0.0.1", port), timeout)
        key = base64.b64encode(os.urandom(16)).decode()
        self._socket.sendall(
            f"GET /ws?clientId={client} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        self._stream = self._socket.makefile("rb")
        while self._stream.readline().strip():  # the answer's headers end with an empty line
            pass

    def next(self) -> dict | tuple[int, bytes]:
        """The next event: a JSON message, or kind and content of a binary one."""
        opcode, payload = self._message()
        if opcode == 1:
            return json.loads(payload)
        if opcode == 2:
            return struct.unpack(">I", payload[:4])[0], payload[4:]
        return self.next()  # pings need no answer within the minutes of a test

    def _message(self) -> tuple[int, bytes]:
        opcode, parts, final = 0, [], False
        while not final:
            first, second = self._stream.read(2)
            final, opcode = bool(first & 0x80), (first & 0x0F) or opcode
            size = second & 0x7F
            if size >= 126:
                width = 2 if size == 126 else 8
                size = int.from_bytes(self._stream.read(width), "big")
            parts.append(self._stream.read(size))
        return opcode, b"".join(parts)

    def close(self) -> None:
        # The stream first, without which the connection would stay open; ComfyUI would take its late end for
        # that of the next connection of the same client, and send that one nothing.
        self._stream.close()
        self._socket.close()
