"""Payloads read in place: the same tensors as the library reads, and nothing but our error for all else."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from model.exceptions import SnapshotFormatError
from model.payload_view import view_payload

TENSORS = {
    "weights": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "keys": torch.tensor([-(2**63), 2**63 - 1]),
    "none": torch.empty(0, 4),
    "flag": torch.tensor([True, False, True]),
    "count": torch.tensor(7, dtype=torch.int32),
}


def block(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(**changes: Any) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_what_the_library_writes_is_read_as_it_reads_it(metadata: dict[str, str] | None) -> None:
    written = save(TENSORS, metadata)
    read = view_payload(written)
    assert read.keys() == load(written).keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert read[name].dtype == tensor.dtype and torch.equal(read[name], tensor)


def test_a_header_of_odd_length_leaves_tensors_between_words() -> None:
    data = np.array([1.5, -2.5], np.float32).tobytes()
    for num_blanks in range(8):
        header = json.dumps({"w": entry()}).encode() + b" " * num_blanks
        assert view_payload(block(header, data))["w"].tolist() == [1.5, -2.5]


def test_memory_that_can_be_written_is_not_copied_and_other_memory_is() -> None:
    written = save(TENSORS)
    ours = memoryview(bytearray(written))
    view_payload(ours)["weights"][0, 0] = 99.0
    assert load(bytes(ours))["weights"][0, 0] == 99.0
    for given in (written, memoryview(written)):
        view_payload(given)["weights"][0, 0] = 99.0
        assert load(written)["weights"][0, 0] == 0.0


@pytest.mark.parametrize(
    ("payload", "sentence"),
    [
        (b"", "its header would end at byte 8"),
        ((2**63).to_bytes(8, "little"), "its header would end"),
        (block(b"{"), "Input data was truncated"),
        (block(b'{"w":' + b"[" * 100_000), "recursion"),
        (block([]), "Expected `object`"),
        (block({"w": 3}), "Expected `object`"),
        (block({"w": entry(shape="2")}, bytes(8)), "Expected `array`"),
        (block({"w": entry(dtype="F64")}, bytes(8)), "w: type 'F64' is not allowed; F32, I64"),
        (block({"w": entry(shape=[-2])}, bytes(8)), "no negative size"),
        (block({"w": entry(shape=[3])}, bytes(8)), r"w: shape \[3\] of type F32 is not what bytes 0 to 8 hold"),
        (block({"w": entry(shape=[2**62, 4], data_offsets=[0, 0])}), "is not what bytes"),
        (block({"w": entry(data_offsets=[4, 12])}, bytes(12)), "is not what bytes 4 to 12 hold"),
        (block({"w": entry(data_offsets=[-8, 0])}), "is not what bytes -8 to 0 hold"),
        (block({"a": entry(), "b": entry()}, bytes(8)), "b: shape"),
        (block({"w": entry()}, bytes(7)), "its tensors end at byte"),
        (block({"w": entry()}, bytes(9)), "its tensors end at byte"),
    ],
)
def test_what_is_not_a_block_says_why(payload: bytes, sentence: str) -> None:
    with pytest.raises(SnapshotFormatError, match=f"payload of {len(payload)} bytes is not safetensors.*{sentence}"):
        view_payload(payload)
