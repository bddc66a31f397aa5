"""Rows that left the trainer's memory, as bytes: a bucket is a string of records, so that many rows share one key.

A record says which weights a key has from a version on, until the next record of the same key says otherwise. So a
reader finds the rows of *its* version, whatever has been written since for later ones. A negative version says that
from there on the key has no row.

    key, int64 | version, int64 | weights, W float32        little-endian, by key and version in each bucket

Letters: N keys, U buckets, W embedding width.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from model.hashing import Int64Array

Records = npt.NDArray[np.void]
"""Structured, of `record_type`."""
FloatArray = npt.NDArray[np.float32]


class FoundRows(NamedTuple):
    """What a store says of N keys."""

    weights_NW: FloatArray
    """Zero where there is no row."""
    has_row_N: npt.NDArray[np.bool_]
    is_bad_N: npt.NDArray[np.bool_]
    """Whether something stands there that is no row: of another length, or not finite. It counts as none."""


def record_type(width: int) -> np.dtype[np.void]:
    """Returns the type of a record of rows of `width` floats."""
    fields: list[Any] = [("key", "<i8"), ("version", "<i8"), ("weights", "<f4", (width,))]
    return np.dtype(fields)


def bucket_of(keys_N: Int64Array, num_buckets: int) -> Int64Array:
    """Returns the bucket of each key, of a power of two: ranges of keys, which are hashes, so that all are as full.

    Rows that come in the order of their keys fill one bucket after the other.
    """
    shift = 64 - (num_buckets.bit_length() - 1)
    if shift == 64:
        return np.zeros(len(keys_N), np.int64)
    bucket_N: Int64Array = (keys_N >> shift) + num_buckets // 2
    return bucket_N


def records_of(keys_N: Int64Array, version: int, weights_NW: FloatArray) -> Records:
    """Returns one record for each key: these weights from `version` on."""
    records_N = np.empty(len(keys_N), record_type(weights_NW.shape[1]))
    records_N["key"], records_N["version"], records_N["weights"] = keys_N, version, weights_NW
    return records_N


def removals_of(keys_N: Int64Array, version: int, width: int) -> Records:
    """Returns one record for each key: no row from `version` on."""
    return records_of(keys_N, -version, np.zeros((len(keys_N), width), np.float32))


def merged(
    values_U: Sequence[bytes | None], buckets_U: Int64Array, new_N: Records, *, num_buckets: int, floor: int
) -> tuple[list[bytes], npt.NDArray[np.bool_]]:
    """Returns the buckets with new records in them and without those that no version from `floor` on needs.

    And for each whether some key has several records in it, [U]: then less will do once the floor has risen.
    `buckets_U` rises and holds the bucket of every new record. What is not a string of records is left out.
    """
    size = new_N.dtype.itemsize
    old_U = [value if value is not None and len(value) % size == 0 else b"" for value in values_U]
    all_N = np.frombuffer(b"".join([*old_U, new_N.tobytes()]), new_N.dtype)
    place_N = np.concatenate(
        [
            np.repeat(np.arange(len(old_U)), [len(old) // size for old in old_U]),
            np.searchsorted(buckets_U, bucket_of(new_N["key"], num_buckets)),
        ]
    )
    order_N = np.lexsort((np.abs(all_N["version"]), all_N["key"], place_N))
    all_N, place_N = all_N[order_N], place_N[order_N]
    # 1 the record after it is of the same key, and old enough for everybody
    age_N = np.abs(all_N["version"])
    has_next_N = np.append(all_N["key"][1:] == all_N["key"][:-1], False)
    next_N = np.append(age_N[1:], 0)
    is_needed_N = ~(has_next_N & ((next_N <= floor) | (next_N == age_N)))
    all_N, place_N = all_N[is_needed_N], place_N[is_needed_N]
    # 2 a removal that follows no row says nothing
    is_removal_N = all_N["version"] < 0
    follows_row_N = np.zeros(len(all_N), np.bool_)
    follows_row_N[1:] = (all_N["key"][1:] == all_N["key"][:-1]) & ~is_removal_N[:-1]
    says_something_N = ~is_removal_N | follows_row_N
    all_N, place_N = all_N[says_something_N], place_N[says_something_N]
    raw = all_N.tobytes()
    ends = np.searchsorted(place_N, np.arange(len(values_U)), side="right").tolist()
    values = [raw[start * size : end * size] for start, end in zip([0, *ends], ends, strict=False)]
    has_several_U = np.zeros(len(values_U), np.bool_)
    has_several_U[place_N[1:][all_N["key"][1:] == all_N["key"][:-1]]] = True
    return values, has_several_U


def rows_as_of(
    values_U: Sequence[bytes | None], keys_N: Int64Array, bucket_N: Int64Array, *, version: int, width: int
) -> FoundRows:
    """Returns the rows of distinct, rising keys as a version has them; `bucket_N`: the place of each in `values_U`."""
    dtype = record_type(width)
    is_whole_U = np.array([value is None or len(value) % dtype.itemsize == 0 for value in values_U], np.bool_)
    whole = [value for value, is_whole in zip(values_U, is_whole_U.tolist(), strict=True) if value and is_whole]
    records = np.frombuffer(b"".join(whole), dtype)
    place = np.searchsorted(keys_N, records["key"]).clip(max=max(len(keys_N) - 1, 0))
    is_asked = (np.abs(records["version"]) <= version) & (keys_N[place] == records["key"])
    records, place = records[is_asked], place[is_asked]
    newest_N = np.full(len(keys_N), -1)
    newest_N[place] = np.arange(len(records))  # of several the last one stays, which is the newest
    found = np.flatnonzero(newest_N >= 0)
    found = found[records["version"][newest_N[found]] > 0]
    weights_NW = np.zeros((len(keys_N), width), np.float32)
    weights_NW[found] = records["weights"][newest_N[found]]
    is_finite_N = np.isfinite(weights_NW).all(axis=1)
    weights_NW[~is_finite_N] = 0
    has_row_N = np.zeros(len(keys_N), np.bool_)
    has_row_N[found] = True
    return FoundRows(weights_NW, has_row_N & is_finite_N, ~is_finite_N | ~is_whole_U[bucket_N])
