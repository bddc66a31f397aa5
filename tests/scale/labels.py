"""How late labels came, from the examples themselves: what a moved partition costs is in the log."""

import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from freshrank.config import RunConfig
from stream.log import EXAMPLES, Message
from stream.schema import KINDS
from tests.chaos.log import read_topic

_COLUMNS = ("kind", "label", "delay_ms")
LATE_MS = 2_000
"""A label that came so long after it could have come was delayed; a quiet partition's clock alone takes up to 1.5 s."""


class Emitted(NamedTuple):
    """All labels of one eager task, in the order of the log."""

    partition_N: NDArray[np.int64]
    at_ms_N: NDArray[np.int64]
    """When the joiner wrote it."""
    delay_ms_N: NDArray[np.int64]
    """How long after it could have: the action for a 1, the close of the window for a 0."""

    def within(self, from_ms: int, to_ms: int) -> "Emitted":
        """Returns the labels that were written in a span of time: those that something held up come after it began."""
        is_in_N = (self.at_ms_N >= from_ms) & (self.at_ms_N < to_ms)
        return Emitted(*(column[is_in_N] for column in self))

    def figures(self) -> dict[str, int]:
        """Returns how many there are, how many were delayed, and the longest and usual delay."""
        if not len(self.delay_ms_N):
            return {"labels": 0}
        return {
            "labels": len(self.delay_ms_N),
            "delayed": int((self.delay_ms_N > LATE_MS).sum()),
            "p50_ms": int(np.median(self.delay_ms_N)),
            "longest_ms": int(self.delay_ms_N.max()),
        }


def emitted(run: RunConfig, task: str) -> Emitted:
    """Returns the labels of a task that the log has."""
    return from_messages(run, task, read_topic(run.kafka, EXAMPLES))


def from_messages(run: RunConfig, task: str, messages: Sequence[Message]) -> Emitted:
    """Returns the labels of a task that messages hold."""
    close_ms = run.schema.tasks[task].window_ms + run.join.grace_ms + run.join.out_of_orderness_ms
    rows: list[tuple[int, int, int]] = []
    for message in messages:
        table = pa.ipc.open_stream(io.BytesIO(message.value)).read_all()
        columns = [table[name].to_pylist() for name in ("ts", *(f"{each}.{task}" for each in _COLUMNS))]
        for shown_ms, kinds, labels, delays in zip(*columns, strict=True):
            for kind, label, delay_ms in zip(kinds, labels, delays, strict=True):
                if KINDS[kind] != "none":
                    due_ms = shown_ms + (delay_ms if label else close_ms)
                    rows.append((message.partition, message.timestamp_ms, message.timestamp_ms - due_ms))
    return Emitted(*np.array(rows, np.int64).reshape(-1, 3).T)
