"""A name server of a few lines, as Docker and clusters have one: every name has the addresses it is given."""

import ipaddress
import socket
import struct
import threading

_HEADER = struct.Struct(">6H")
_ANSWER = struct.Struct(">HHHIH")
_RESPONSE, _TYPE_A = 0x8180, 1
_QUESTION_POINTER = 0xC00C
"""Where the name of the only question stands."""


class NameServer:
    """Answers questions for addresses (A) over UDP with all of `addresses`, whatever the name; to others: none."""

    def __init__(self, host: str, port: int = 53) -> None:
        """Listens and answers at once, from a thread of its own."""
        self.addresses: list[str] = []
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((host, port))
        self.port = int(self._socket.getsockname()[1])
        self._is_over = threading.Event()
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        """Answers no more."""
        self._is_over.set()
        self._socket.close()

    def _serve(self) -> None:
        while not self._is_over.is_set():
            try:
                query, client = self._socket.recvfrom(4_096)
            except OSError:
                return
            self._socket.sendto(answer(query, list(self.addresses)), client)


def answer(query: bytes, addresses: list[str]) -> bytes:
    """Returns the answer to a query with one question."""
    number = _HEADER.unpack_from(query)[0]
    end = query.index(b"\0", _HEADER.size) + 5
    (kind,) = struct.unpack_from(">H", query, end - 4)
    found = addresses if kind == _TYPE_A else []
    records = b"".join(
        _ANSWER.pack(_QUESTION_POINTER, _TYPE_A, 1, 1, 4) + ipaddress.IPv4Address(address).packed for address in found
    )
    return _HEADER.pack(number, _RESPONSE, 1, len(found), 0, 0) + query[_HEADER.size : end] + records
