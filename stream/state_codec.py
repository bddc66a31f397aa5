"""Slates and pending feedback to bytes and back, for the local store.

JSON, because that is what events were before: whatever the wire can carry, integers of any size included, comes back
equal. A change of the layout needs a new `stream.snapshot_record.FORMAT`.
"""

from typing import NamedTuple

import msgspec

from stream.schema import Feedback, Impression
from stream.state import Held, Slate
from stream.tally import Tally


class Waiting(NamedTuple):
    """Pending feedback, and when it expires."""

    held: Held
    expiry_ms: int


class _SlateRecord(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    impression: Impression
    offset: int
    stage: int
    positives: dict[str, dict[int, int]] | None
    seen: set[str] | None
    held: list[int] | None
    tally: Tally | None


class _WaitingRecord(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    feedback: Feedback
    offset: int
    is_new: bool
    expiry_ms: int


_ENCODER = msgspec.json.Encoder()
_SLATE = msgspec.json.Decoder(_SlateRecord)
_WAITING = msgspec.json.Decoder(list[_WaitingRecord])


def encode_slate(slate: Slate) -> bytes:
    """Returns a slate as bytes.

    >>> from stream.schema import Items
    >>> slate = Slate(Impression("r", "u", "home", 5, Items(["a"], {"size": [2**70]})), offset=7)
    >>> slate.positives = {"click": {0: 3}}
    >>> again = decode_slate(encode_slate(slate))
    >>> again.impression == slate.impression, again.offset, again.positives
    (True, 7, {'click': {0: 3}})
    """
    return _ENCODER.encode(
        _SlateRecord(slate.impression, slate.offset, slate.stage, slate.positives, slate.seen, slate.held, slate.tally)
    )


def decode_slate(data: bytes) -> Slate:
    """Returns the slate that `encode_slate` was given."""
    record = _SLATE.decode(data)
    slate = Slate(record.impression, record.offset, record.tally)
    slate.stage, slate.positives, slate.seen, slate.held = record.stage, record.positives, record.seen, record.held
    return slate


def encode_waiting(group: list[Waiting]) -> bytes:
    """Returns the pending feedback of one request as bytes."""
    return _ENCODER.encode(
        [_WaitingRecord(held.feedback, held.offset, held.is_new, expiry_ms) for held, expiry_ms in group]
    )


def decode_waiting(data: bytes) -> list[Waiting]:
    """Returns the pending feedback that `encode_waiting` was given."""
    return [
        Waiting(Held(record.feedback, record.offset, record.is_new), record.expiry_ms)
        for record in _WAITING.decode(data)
    ]
