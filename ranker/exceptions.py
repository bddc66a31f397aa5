"""Errors of the ranker, and the operator's next move. A snapshot that is refused is a `model.exceptions.SnapshotError`.

RankerError
|- RequestError              HTTP 400 and a counter; the text names the field and what is allowed
|- BufferFullError           HTTP 503 and a counter: the log is down for long, or too slow
|- PortTakenError            choose another port, or stop what listens there
`- TlsFileError              correct the file of `ranker.server.tls` that it names
"""


class RankerError(Exception):
    """Root of all errors of this package."""


class RequestError(RankerError):
    """A request that cannot be answered as it stands."""


class BufferFullError(RankerError):
    """Feedback that could not all be handed to the log."""


class PortTakenError(RankerError):
    """The port to listen on belongs to another process, or may not be opened."""


class TlsFileError(RankerError):
    """A certificate or key that cannot be used; the text names the setting."""
