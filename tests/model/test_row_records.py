"""Buckets of records: what is kept, and what a version sees, against a plain dictionary of histories."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from model.row_records import Records, bucket_of, merged, record_type, records_of, removals_of, rows_as_of

WIDTH, NUM_BUCKETS = 3, 4
ALL_KEYS = [number << 60 for number in range(-8, 8) if number] + [1, 2, -1]
KEYS = st.sampled_from(ALL_KEYS)
STEPS = st.lists(
    st.tuples(st.dictionaries(KEYS, st.one_of(st.none(), st.floats(-8, 8, width=32)), max_size=5), st.integers(0, 3)),
    min_size=1,
    max_size=12,
)


def write(buckets: dict[int, bytes], records: Records, floor: int) -> None:
    places = np.unique(bucket_of(records["key"], NUM_BUCKETS))
    old = [buckets.get(n) for n in places.tolist()]
    values, has_several = merged(old, places, records, num_buckets=NUM_BUCKETS, floor=floor)
    for value, several in zip(values, has_several.tolist(), strict=True):
        keys = np.frombuffer(value, records.dtype)["key"].tolist()
        assert several == (len(set(keys)) < len(keys))
    buckets.update(zip(places.tolist(), values, strict=True))


def read(buckets: dict[int, bytes], keys: list[int], version: int) -> dict[int, float]:
    keys_N = np.array(sorted(keys), np.int64)
    places, bucket_N = np.unique(bucket_of(keys_N, NUM_BUCKETS), return_inverse=True)
    found = rows_as_of([buckets.get(n) for n in places.tolist()], keys_N, bucket_N, version=version, width=WIDTH)
    assert not found.is_bad_N.any() and (found.weights_NW == found.weights_NW[:, :1]).all()
    return {key: found.weights_NW[n, 0].item() for n, key in enumerate(keys_N.tolist()) if found.has_row_N[n]}


@given(steps=STEPS)
@settings(max_examples=200, deadline=None)
def test_every_version_from_the_floor_on_sees_its_own_rows(
    steps: list[tuple[dict[int, float | None], int]],
) -> None:
    buckets: dict[int, bytes] = {}
    worlds: list[dict[int, float]] = [{}]
    floor = 0
    for version, (changes, risen) in enumerate(steps, start=1):
        floor = min(floor + risen, version - 1)
        rows = {key: value for key, value in changes.items() if value is not None}
        gone = [key for key, value in changes.items() if value is None]
        weights = np.repeat(np.array(list(rows.values()), np.float32)[:, None], WIDTH, axis=1).reshape(-1, WIDTH)
        write(
            buckets,
            np.concatenate(
                [
                    records_of(np.array(list(rows), np.int64), version, weights),
                    removals_of(np.array(gone, np.int64), version, WIDTH),
                ]
            ),
            floor,
        )
        worlds.append({key: value for key, value in (worlds[-1] | rows).items() if key not in gone})
        for seen in range(floor, version + 1):
            assert read(buckets, ALL_KEYS, seen) == worlds[seen]


def test_what_nobody_needs_is_not_kept() -> None:
    buckets: dict[int, bytes] = {}
    key, size = np.array([4]), record_type(WIDTH).itemsize
    [place] = bucket_of(key, NUM_BUCKETS).tolist()
    for version in (1, 2, 3):
        write(buckets, records_of(key, version, np.full((1, WIDTH), version, np.float32)), floor=2)
    assert len(buckets[place]) == 2 * size  # of 2 and 3
    write(buckets, removals_of(key, 4, WIDTH), floor=2)
    write(buckets, removals_of(key, 5, WIDTH), floor=2)
    assert len(buckets[place]) == 3 * size
    assert read(buckets, [4], 3) == {4: 3.0} and read(buckets, [4], 4) == {}
    write(buckets, removals_of(key, 6, WIDTH), floor=5)
    assert buckets[place] == b""


def test_what_is_no_row_is_as_none_and_says_so() -> None:
    whole = records_of(np.array([1, 5]), 1, np.ones((2, WIDTH), np.float32))
    whole["weights"][1, 2] = np.nan
    keys, bucket_N = np.array([1, 2, 5]), np.array([0, 1, 0])
    found = rows_as_of([whole.tobytes(), b"torn"], keys, bucket_N, version=1, width=WIDTH)
    assert found.has_row_N.tolist() == [True, False, False]
    assert found.is_bad_N.tolist() == [False, True, True]
    assert not found.weights_NW[1:].any()
    assert merged([b"torn"], np.array([1]), whole[:0], num_buckets=4, floor=0)[0] == [b""]
    assert record_type(16).itemsize == 80


def test_buckets_are_ranges_of_keys_as_many_as_there_are() -> None:
    keys = np.array([-(2**63), -(2**62) - 1, -(2**62), -1, 0, 1, 2**62 - 1, 2**62, 2**63 - 1])
    assert bucket_of(keys, 4).tolist() == [0, 0, 1, 1, 2, 2, 2, 3, 3]
    assert bucket_of(keys, 1).tolist() == [0] * 9
