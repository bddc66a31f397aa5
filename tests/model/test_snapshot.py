"""Snapshots as bytes: what was published is what is opened, and everything else is refused by its own name."""

from typing import Any

import msgspec
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load

from model.exceptions import (
    SnapshotError,
    SnapshotFiniteError,
    SnapshotFormatError,
    SnapshotHashError,
    SnapshotLengthError,
    SnapshotManifestError,
    SnapshotSchemaError,
)
from model.snapshot import (
    Manifest,
    decode_manifest,
    encode_manifest,
    encode_payload,
    open_snapshot,
    payload_sha256,
)

TENSORS = {
    "rows.keys": torch.tensor([-(2**63), 0, 2**63 - 1]),
    "rows.weights": torch.arange(6, dtype=torch.float32).reshape(2, 3).T,
    "rows.evicted": torch.empty(0, dtype=torch.int64),
}
PAYLOAD = encode_payload(TENSORS)


def manifest_of(payload: bytes, **changes: Any) -> Manifest:
    manifest = Manifest(
        model="main",
        version=3,
        base_version=2,
        kind="delta",
        step=10,
        created_ms=2,
        watermark_ms=1,
        offsets={0: 4},
        schema_hash="s",
        config_hash="c",
        metrics={"click": {"all": {"n": 0, "auc": None}}},
        payload_sha256=payload_sha256(payload),
        payload_bytes=len(payload),
        epoch=1,
        scenarios=["home"],
        tasks=["click"],
        model_config={"preset": "small", "hinet": None},
        feedback_ms=[1, 2],
    )
    return msgspec.structs.replace(manifest, **changes)


def test_what_is_published_is_what_is_opened() -> None:
    opened = open_snapshot(manifest_of(PAYLOAD), PAYLOAD, schema_hash="s")
    assert opened.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert torch.equal(opened[name], tensor)
        assert opened[name].dtype == tensor.dtype


tensors_drawn = st.dictionaries(
    st.text(min_size=1, max_size=8),
    st.tuples(
        st.sampled_from([torch.float32, torch.int64, torch.int32, torch.int8, torch.uint8, torch.bool]),
        st.lists(st.integers(0, 4), max_size=3),
    ),
    max_size=6,
)


@given(tensors_drawn)
def test_the_library_reads_what_we_write(drawn: dict[str, tuple[torch.dtype, list[int]]]) -> None:
    tensors = {name: (torch.rand(shape) * 100).to(dtype) for name, (dtype, shape) in drawn.items()}
    read = load(encode_payload(tensors))
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor)


def test_a_type_that_snapshots_do_not_hold_is_refused() -> None:
    with pytest.raises(ValueError, match="w: type torch.complex64 is not allowed; torch.float32, torch.int64"):
        encode_payload({"w": torch.ones(1, dtype=torch.complex64)})


def test_a_manifest_survives_the_wire() -> None:
    manifest = manifest_of(PAYLOAD, feedback_joined_ms=[3, -1], feedback_trained_ms=[4, 4])
    assert decode_manifest(encode_manifest(manifest)) == manifest


def test_manifest_of_an_older_trainer_can_be_read() -> None:
    fields = msgspec.json.decode(encode_manifest(manifest_of(PAYLOAD)))
    for name in ("feedback_joined_ms", "feedback_trained_ms"):
        del fields[name]
    manifest = decode_manifest(msgspec.json.encode(fields))
    assert (manifest.feedback_ms, manifest.feedback_joined_ms, manifest.feedback_trained_ms) == ([1, 2], [], [])


def test_stamps_of_a_manifest_belong_to_its_feedback() -> None:
    with pytest.raises(SnapshotManifestError, match="feedback_joined_ms is not allowed; one entry for each"):
        decode_manifest(encode_manifest(manifest_of(PAYLOAD, feedback_joined_ms=[3])))


@pytest.mark.parametrize(
    ("payload", "changes", "error"),
    [
        (PAYLOAD[:-1], {}, SnapshotLengthError),
        (b"", {}, SnapshotLengthError),
        (PAYLOAD[:-1] + b"\x01", {}, SnapshotHashError),
        (b"not safetensors", {"payload_bytes": 15, "payload_sha256": payload_sha256(b"not safetensors")}, None),
        (PAYLOAD, {"schema_hash": "other"}, SnapshotSchemaError),
    ],
)
def test_each_fault_has_a_name(payload: bytes, changes: dict[str, Any], error: type[SnapshotError] | None) -> None:
    with pytest.raises(error or SnapshotFormatError):
        open_snapshot(manifest_of(PAYLOAD, **changes), payload, schema_hash="s")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_is_never_handed_out(value: float) -> None:
    payload = encode_payload({"good": torch.ones(3), "bad": torch.tensor([0.0, value])})
    with pytest.raises(SnapshotFiniteError, match="tensor bad holds NaN or infinity: model=main version=3"):
        open_snapshot(manifest_of(payload), payload, schema_hash="s")


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "manifest cannot be read"),
        (b"\xff\xfe", "manifest cannot be read"),
        (b"[]", "Expected `object`"),
        (b"{}", "missing required field"),
        (encode_manifest(manifest_of(PAYLOAD, version=0)), "version 0 is not allowed; at least 1"),
        (encode_manifest(manifest_of(PAYLOAD, base_version=3)), "base_version 3 of delta 3 is not allowed"),
        (encode_manifest(manifest_of(PAYLOAD, base_version=0)), "base_version 0 of delta 3 is not allowed"),
        (encode_manifest(manifest_of(PAYLOAD, kind="full")), "base_version 2 of full version 3 is not allowed; 0"),
        (encode_manifest(manifest_of(PAYLOAD, format=2)), "format 2 is not allowed; 1: upgrade this reader"),
        (b'{"model_config":{"x":' + b"[" * 100_000, "recursion"),
        (encode_manifest(manifest_of(PAYLOAD)).replace(b'"delta"', b'"half"'), "Invalid enum value 'half'"),
        (encode_manifest(manifest_of(PAYLOAD)).replace(b'"step":10', b'"step":"ten"'), r"Expected `int`.*\$.step"),
    ],
)
def test_a_manifest_that_cannot_be_read_says_why(data: bytes, sentence: str) -> None:
    with pytest.raises(SnapshotManifestError, match=sentence):
        decode_manifest(data)


@given(st.binary(max_size=200), st.booleans())
def test_arbitrary_bytes_raise_only_our_errors(data: bytes, is_prefixed: bool) -> None:
    payload = PAYLOAD[:20] + data if is_prefixed else data
    with pytest.raises(SnapshotError):
        open_snapshot(manifest_of(payload), payload, schema_hash="s")
    with pytest.raises(SnapshotManifestError):
        decode_manifest(data)
