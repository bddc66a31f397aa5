"""Logging, set up once per process: a sentence, then `key=value`, on stderr."""

import logging
import sys
import time

LEVELS = ("debug", "info", "warning", "error")
QUIET = ("aiokafka", "faust", "mode", "httpx", "httpcore", "kafka", "uvicorn", "asyncio")
"""Libraries whose chatter below a warning is not ours to print."""


class LineFormatter(logging.Formatter):
    """`2026-01-31T12:00:00.123Z INFO joiner stream.joiner: Transaction committed. topic=examples offset=17`."""

    def __init__(self, process: str) -> None:
        super().__init__(f"%(asctime)s.%(msecs)03dZ %(levelname)s {process} %(name)s: %(message)s")

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        """Returns the record's time in UTC, to the second; the format adds the milliseconds."""
        return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))


def setup_logging(process: str, level: str) -> None:
    """Sends every record of this process to stderr. Called by the command line alone, once."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter(process))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in QUIET:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
