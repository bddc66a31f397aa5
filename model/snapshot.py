"""Snapshots as bytes: a JSON manifest and a safetensors payload. Never pickle.

A reader trusts nothing: length, hash, format, finite values and schema are checked before a tensor is handed out, and
each failure is an error class of its own (`model.exceptions`).
"""

import hashlib
import math
from typing import Any, Literal

import msgspec
import numpy as np
import torch

from model.exceptions import (
    SnapshotFiniteError,
    SnapshotHashError,
    SnapshotLengthError,
    SnapshotManifestError,
    SnapshotSchemaError,
)
from model.payload_view import DTYPES, Payload, view_payload
from model.row_store import RowsAt

MAX_FEEDBACK_TIMES = 200
"""Most entries of `Manifest.feedback_ms`."""

FORMAT = 1
"""Of manifest and payload. It rises when a reader of before would serve something else than what was published."""

SnapshotKind = Literal["full", "delta"]


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a snapshot is, where it comes from, how to check its payload. Times are event time unless said otherwise."""

    model: str
    """Name of the model line; versions count within it."""
    version: int
    base_version: int
    """The version a delta applies to; 0 for a full one."""
    kind: SnapshotKind
    step: int
    """Optimiser steps behind these weights."""
    created_ms: int
    """Processing time at which the trainer built it."""
    watermark_ms: int
    """Labels up to here are learned, in every partition that has brought any; 0 before the first."""
    offsets: dict[int, int]
    """Per partition of `examples`, the first offset that is not fully learned."""
    schema_hash: str
    config_hash: str
    metrics: dict[str, dict[str, dict[str, float | None]]]
    """Progressive validation over the last examples: task -> "all" or scenario -> figure."""
    payload_sha256: str
    payload_bytes: int
    epoch: int
    """Of the trainer that published it."""
    scenarios: list[str]
    """By index: the listed ones, then those that were added while the model learned."""
    tasks: list[str]
    model_config: dict[str, Any]
    """All a reader needs to build the network, as plain JSON."""
    scenario_parents: dict[str, str] = {}
    """Scenario that was added -> the one it started as."""
    meta: dict[str, Any] = {}
    """What the network wants to know beside its tensors, as plain JSON."""
    feedback_ms: list[int] = []
    """Event times of feedback that this version is the first to have learned, of tasks that learn it as it comes
    (policy `eager`): at most `MAX_FEEDBACK_TIMES` of them."""
    feedback_joined_ms: list[int] = []
    """Processing time at which the joiner wrote each of them to `examples`; -1 unknown. Empty: nobody noted it."""
    feedback_trained_ms: list[int] = []
    """Processing time at which each of them had been learned. Empty: nobody noted it."""
    run_id: str = ""
    """Of the run that trained it."""
    format: int = FORMAT
    calibration: dict[str, dict[str, tuple[float, float]]] = {}
    """Scenario -> task -> (a, b) of the served score, sigmoid(a z + b), a > 0; what is not there is (1, 0)."""
    cold_rows: RowsAt | None = None
    """Where to look for rows that are not in the payloads up to here; None: all there are are in them."""


def encode_payload(tensors: dict[str, torch.Tensor]) -> bytes:
    """Returns the tensors as one safetensors block: length of the header, header as JSON, data.

    Written here because the library's writer copies everything several times: 4 ms for 2.5 MB where this takes 0.3, and
    the trainer cannot train meanwhile. The tests read it back with the library.

    Raises:
        ValueError: a tensor of a type that snapshots do not hold.
    """
    header: dict[str, dict[str, Any]] = {}
    blocks: list[memoryview] = []
    end = 0
    # Widest elements first: then every tensor starts at a multiple of its element size.
    for name, tensor in sorted(tensors.items(), key=lambda named: (-named[1].element_size(), named[0])):
        if tensor.dtype not in DTYPES:
            raise ValueError(f"{name}: type {tensor.dtype} is not allowed; {', '.join(map(str, DTYPES))}")
        flat = tensor.detach().contiguous().reshape(-1)
        if flat.dtype == torch.bfloat16:  # numpy has no such type
            flat = flat.view(torch.int16)
        data = flat.numpy().view(np.uint8).data
        header[name] = {
            "dtype": DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [end, end + data.nbytes],
        }
        blocks.append(data)
        end += data.nbytes
    text = msgspec.json.encode(header)
    text += b" " * (-len(text) % 8)
    return b"".join([len(text).to_bytes(8, "little"), text, *blocks])


def payload_sha256(payload: Payload) -> str:
    """Returns the hash that goes into the manifest."""
    return hashlib.sha256(payload).hexdigest()


def encode_manifest(manifest: Manifest) -> bytes:
    """Returns the manifest as JSON."""
    return msgspec.json.encode(manifest)


def decode_manifest(data: bytes) -> Manifest:
    """Returns the manifest of these bytes.

    Raises:
        SnapshotManifestError: not JSON, a field missing or of the wrong type, or numbers that contradict each other.
    """
    try:
        manifest = msgspec.json.decode(data, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SnapshotManifestError(f"manifest cannot be read: {error}") from error
    if manifest.format != FORMAT:
        raise SnapshotManifestError(f"manifest: format {manifest.format} is not allowed; {FORMAT}: upgrade this reader")
    if manifest.version < 1:
        raise SnapshotManifestError(f"manifest: version {manifest.version} is not allowed; at least 1")
    if manifest.kind == "delta" and not 1 <= manifest.base_version < manifest.version:
        raise SnapshotManifestError(
            f"manifest: base_version {manifest.base_version} of delta {manifest.version} is not allowed; an earlier one"
        )
    for name in ("feedback_joined_ms", "feedback_trained_ms"):
        if len(getattr(manifest, name)) not in (0, len(manifest.feedback_ms)):
            raise SnapshotManifestError(f"manifest: {name} is not allowed; one entry for each of feedback_ms, or none")
    if manifest.kind == "full" and manifest.base_version != 0:
        raise SnapshotManifestError(
            f"manifest: base_version {manifest.base_version} of full version {manifest.version} is not allowed; 0"
        )
    at = manifest.cold_rows
    if at is not None and (at.num_buckets < 1 or at.num_buckets & (at.num_buckets - 1)):
        raise SnapshotManifestError(f"manifest: cold_rows.num_buckets {at.num_buckets} is not allowed; a power of two")
    for scenario, by_task in manifest.calibration.items():
        for task, (slope, offset) in by_task.items():
            if not (math.isfinite(slope) and slope > 0 and math.isfinite(offset)):
                raise SnapshotManifestError(
                    f"manifest: calibration.{scenario!r}.{task!r} {(slope, offset)} is not allowed; a > 0 and b, finite"
                )
    return manifest


def first_non_finite(tensors: dict[str, torch.Tensor]) -> str | None:
    """Returns the name of a tensor that holds NaN or infinity; None if there is none."""
    for name, tensor in tensors.items():
        # On numpy this is several times as fast as torch.isfinite, which makes temporaries.
        if tensor.is_floating_point() and not np.isfinite(tensor.detach().float().numpy()).all():
            return name
    return None


def open_snapshot(manifest: Manifest, payload: Payload, *, schema_hash: str) -> dict[str, torch.Tensor]:
    """Returns the tensors of a snapshot after checking everything that can be checked without the model.

    They look into the payload if it is writable memory (`model.payload_view`).

    Raises:
        SnapshotSchemaError: made for another schema than `schema_hash`.
        SnapshotLengthError: torn.
        SnapshotHashError: other bytes than were published.
        SnapshotFormatError: not safetensors.
        SnapshotFiniteError: NaN or infinity inside.
    """
    where = f"model={manifest.model} version={manifest.version}"
    if manifest.schema_hash != schema_hash:
        raise SnapshotSchemaError(
            f"snapshot is for schema {manifest.schema_hash}, this process runs {schema_hash}: {where}"
        )
    if len(payload) != manifest.payload_bytes:
        raise SnapshotLengthError(
            f"payload has {len(payload)} bytes, its manifest says {manifest.payload_bytes}: {where}"
        )
    if payload_sha256(payload) != manifest.payload_sha256:
        raise SnapshotHashError(f"payload does not have the SHA-256 of its manifest: {where}")
    tensors = view_payload(payload)
    bad = first_non_finite(tensors)
    if bad is not None:
        raise SnapshotFiniteError(f"tensor {bad} holds NaN or infinity: {where}")
    return tensors
