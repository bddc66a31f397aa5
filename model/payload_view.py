"""A safetensors block read in place: tensors that look into its bytes.

Written here because the library's reader copies every tensor and holds the interpreter's lock while it does: a ranker
would answer nobody for as long. The tests read the same blocks with the library.

    length of the header, 8 bytes, little-endian | header, JSON | data of all tensors, without gaps
"""

import math
from typing import Any

import msgspec
import numpy as np
import torch

from model.exceptions import SnapshotFormatError

Payload = bytes | memoryview
"""The bytes of a snapshot. A store that fetches them hands out writable memory that is the caller's own."""

DTYPES = {
    torch.float32: "F32",
    torch.int64: "I64",
    torch.bfloat16: "BF16",
    torch.int32: "I32",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""Element types that snapshots hold, and their names in a header."""
_OF_NAME = {name: dtype for dtype, name in DTYPES.items()}


class _Entry(msgspec.Struct):
    """What a header says of a tensor."""

    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


def view_payload(payload: Payload) -> dict[str, torch.Tensor]:
    """Returns the tensors of a block. They share its memory if that is writable; else a copy is made first.

    Raises:
        SnapshotFormatError: not such a block.
    """
    is_ours = isinstance(payload, memoryview) and not payload.readonly
    block = memoryview(payload) if is_ours else np.frombuffer(payload, np.uint8).copy().data
    try:
        start = 8 + int.from_bytes(block[:8], "little")
        if not 8 <= start <= len(block):
            raise ValueError(f"its header would end at byte {start}")
        header: dict[str, Any] = msgspec.json.decode(block[8:start], type=dict[str, Any])
        header.pop("__metadata__", None)
        entries = {name: msgspec.convert(entry, _Entry) for name, entry in header.items()}
        end = 0
        for name, entry in sorted(entries.items(), key=lambda named: named[1].data_offsets):
            _check(name, entry, end)
            end = entry.data_offsets[1]
        if start + end != len(block):
            raise ValueError(f"its tensors end at byte {start + end}")
        return {name: _tensor(block, start, entry) for name, entry in entries.items()}
    except (ValueError, RecursionError) as error:  # msgspec's errors are ValueErrors
        raise SnapshotFormatError(f"payload of {len(payload)} bytes is not safetensors: {error}") from error


def _check(name: str, entry: _Entry, end: int) -> None:
    """Refuses a tensor that does not begin where the one before ended, or is not as long as its shape."""
    if entry.dtype not in _OF_NAME:
        raise ValueError(f"{name}: type {entry.dtype!r} is not allowed; {', '.join(_OF_NAME)}")
    begin, stop = entry.data_offsets
    if min(entry.shape, default=0) < 0:
        raise ValueError(f"{name}: shape {entry.shape} is not allowed; no negative size")
    if begin != end or stop - begin != math.prod(entry.shape) * _OF_NAME[entry.dtype].itemsize:
        raise ValueError(f"{name}: shape {entry.shape} of type {entry.dtype} is not what bytes {begin} to {stop} hold")


def _tensor(block: memoryview, start: int, entry: _Entry) -> torch.Tensor:
    dtype = _OF_NAME[entry.dtype]
    count = math.prod(entry.shape)
    if not count:  # torch refuses to look at nothing
        return torch.empty(entry.shape, dtype=dtype)
    flat = torch.frombuffer(block, dtype=dtype, count=count, offset=start + entry.data_offsets[0])
    return flat.view(entry.shape)
