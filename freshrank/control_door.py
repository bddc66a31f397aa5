"""The door of `freshrank up`: a unix socket in the run's folder, for whoever owns the folder.

One connection, one line of JSON each way: `{"what": "kill", "name": "trainer"}` -> `{"done": "..."}` or
`{"error": "..."}`; an empty line asks what there is: `{"kill": [...], "pause": [...]}`.
"""

import logging
import select
import socket
import time
from pathlib import Path
from typing import Any

import msgspec

from freshrank.faults import Fault, Faults

_logger = logging.getLogger(__name__)
MAX_LINE_BYTES = 1_024
TURN_S = 0.25
"""How long one who connects may take to say what he wants: meanwhile nobody looks after the processes."""


class ControlDoor:
    """Takes orders while the supervisor's thread would sleep."""

    def __init__(self, path: Path, faults: Faults) -> None:
        """Opens the door; what a run that was killed has left in its place is removed.

        Raises:
            OSError: no socket can be made there; the path of one has about 100 characters at most.
        """
        self._path, self._faults = path, faults
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._listener.bind(str(path))
            path.chmod(0o600)
            self._listener.listen()
        except OSError:
            self._listener.close()
            raise

    def wait(self, seconds: float) -> None:
        """Takes orders for so long."""
        deadline_s = time.monotonic() + seconds
        while True:
            self._faults.poll()
            ready, _, _ = select.select([self._listener], [], [], max(deadline_s - time.monotonic(), 0.0))
            if not ready:
                return
            connection, _ = self._listener.accept()
            with connection:
                connection.settimeout(TURN_S)
                try:
                    connection.sendall(msgspec.json.encode(self._answer(_line(connection))) + b"\n")
                except OSError as error:
                    _logger.debug("Whoever knocked has gone. error=%s", error)

    def close(self) -> None:
        """Closes it, and lets go on what was stopped."""
        self._faults.end()
        self._listener.close()
        self._path.unlink(missing_ok=True)

    def _answer(self, line: bytes) -> dict[str, Any]:
        if not line:
            return self._faults.can()
        try:
            fault = msgspec.json.decode(line, type=Fault)
            self._faults.do(fault)
        except ValueError as error:
            return {"error": str(error)}
        _logger.warning("Broken on purpose. what=%s name=%s", fault.what, fault.name)
        return {"done": f"{fault.what} {fault.name}"}


def _line(connection: socket.socket) -> bytes:
    """Returns what one says up to the end of the line, or as much as there may be."""
    data = b""
    while b"\n" not in data and len(data) < MAX_LINE_BYTES and (more := connection.recv(MAX_LINE_BYTES)):
        data += more
    return data.partition(b"\n")[0].strip()
