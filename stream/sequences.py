"""A user's last actions as the agents store them: newest first, each event once, at most so many.

`merge` keeps the largest entries of a set under one total order. That makes it idempotent, commutative and
associative: a log delivered at least once, in any order and in any batches, ends in the same value (as long as a
repeated event id repeats its event; of two that differ the older counts).
"""

import zlib
from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from stream.exceptions import DecodeError
from stream.schema import Feedback


class StoredSequence(msgspec.Struct, frozen=True):
    """Columns of equal length, newest first; without `event` it is what `stream.codec.decode_sequence` reads."""

    item_id: list[str] = []
    action: list[str] = []
    ts: list[int] = []
    event: list[int] = []
    """CRC-32 of the event id. The ids themselves would double the value, which is read for every ranking; among a
    hundred entries two ids fall together once in a million users, and then one old action is missing."""


class _Entry(NamedTuple):
    """One action; the order of the fields is the order of entries, so that no two arrivals differ in a tie."""

    ts: int
    event: int
    item_id: str
    action: str


_DECODER = msgspec.json.Decoder(StoredSequence)


def encode(sequence: StoredSequence) -> bytes:
    """Returns the value for Redis."""
    return msgspec.json.encode(sequence)


def decode(data: bytes) -> StoredSequence:
    """Returns the sequence in a value from Redis.

    Raises:
        DecodeError: not a sequence of ours; the text says what is wrong.
    """
    try:
        sequence = _DECODER.decode(data)
    except msgspec.MsgspecError as error:
        raise DecodeError(str(error)) from error
    if len({len(sequence.item_id), len(sequence.action), len(sequence.ts), len(sequence.event)}) > 1:
        raise DecodeError("item_id, action, ts, event: lengths differ; they must be equal")
    return sequence


def merge(stored: StoredSequence, feedback: Iterable[Feedback], length: int) -> StoredSequence:
    """Returns the newest `length` of the stored and the new actions, each event id once.

    >>> click = Feedback("r1", "u1", "i1", "click", ts=5, event_id="a")
    >>> order = Feedback("r1", "u1", "i1", "order", ts=9, event_id="b")
    >>> merge(StoredSequence(), [click, order, click], length=100).action
    ['order', 'click']
    """
    entries: dict[int, _Entry] = {}
    known = map(_Entry, stored.ts, stored.event, stored.item_id, stored.action)
    new = (_Entry(fb.ts, zlib.crc32(fb.event_id.encode()), fb.item_id, fb.action) for fb in feedback)
    for entry in (*known, *new):
        other = entries.get(entry.event)
        entries[entry.event] = entry if other is None else min(entry, other)
    newest = sorted(entries.values(), reverse=True)[:length]
    return StoredSequence(
        item_id=[entry.item_id for entry in newest],
        action=[entry.action for entry in newest],
        ts=[entry.ts for entry in newest],
        event=[entry.event for entry in newest],
    )
