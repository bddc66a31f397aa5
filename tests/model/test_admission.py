"""Counts towards admission: never too low, bounded, fading."""

import numpy as np
import pytest

from model.admission import Admission, AdmissionConfig, AdmissionCounts, Admissions
from model.sharding import NUM_SHARDS, owner_of, shards_of_rank


def keys(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def test_counts_add_up_and_asking_changes_nothing() -> None:
    counts = AdmissionCounts(AdmissionConfig(counter_bits=16))
    counts.add(keys(11, -22), keys(2, 1))
    for _ in range(2):
        assert counts.with_added(keys(11, -22, 33), keys(1, 1, 1)).tolist() == [3, 2, 1]


def test_a_count_is_never_too_low_and_seldom_too_high() -> None:
    rng, counts = np.random.default_rng(0), AdmissionCounts(AdmissionConfig(counter_bits=16))
    ids, true = rng.integers(-(2**63), 2**63 - 1, 1_000), np.zeros(1_000, np.int64)
    for _ in range(10):
        seen = rng.choice(1_000, 200, replace=False)
        counts.add(ids[seen], np.ones(200, np.int64))
        true[seen] += 1
    found = counts.with_added(ids, np.zeros(1_000, np.int64))
    assert (found >= true).all() and (found > true).mean() < 0.05


def test_counts_stop_at_255_and_fade() -> None:
    counts = AdmissionCounts(AdmissionConfig(counter_bits=18))
    counts.add(keys(5, 6 << 32), keys(200, 100))
    counts.add(keys(5, 6 << 32), keys(56, 100))  # 256 counts for the 256 counters of one shard: halved
    assert counts.with_added(keys(5, 6 << 32), keys(0, 0)).tolist() == [127, 200]


def test_state_goes_on_where_it_was() -> None:
    first, second = (AdmissionCounts(AdmissionConfig(counter_bits=18)) for _ in range(2))
    first.add(keys(5, 6), keys(200, 50))
    second.load_state(first.state())
    for counts in (first, second):
        counts.add(keys(5), keys(6))
    assert first.with_added(keys(5, 6), keys(0, 0)).tolist() == second.with_added(keys(5, 6), keys(0, 0)).tolist()


def test_shards_count_apart_as_they_do_together() -> None:
    rng, config = np.random.default_rng(1), AdmissionConfig(counter_bits=14)
    whole, parts = AdmissionCounts(config), [AdmissionCounts(config) for _ in range(3)]
    ids = rng.integers(-(2**63), 2**63 - 1, 3_000)
    for _ in range(20):
        seen = rng.choice(ids, 400, replace=False)
        added = rng.integers(1, 4, 400)
        whole.add(seen, added)
        for rank, part in enumerate(parts):
            own = owner_of(seen, 3) == rank
            part.add(seen[own], added[own])
    for rank, part in enumerate(parts):
        shards = shards_of_rank(rank, 3)
        others = np.setdiff1d(np.arange(NUM_SHARDS), shards)
        for name, array in part.state().items():
            assert array[shards].any() and np.array_equal(array[shards], whole.state()[name][shards])
            assert not array[others].any()


def test_a_bad_number_of_counters_is_refused() -> None:
    with pytest.raises(ValueError, match="counter_bits: 13 is not allowed; 14 to 30"):
        AdmissionConfig(counter_bits=13)


def planned(admission: Admission, clock: int, key_count: int, examples: int = 1) -> Admissions:
    return admission.plan(keys(*range(1, key_count + 1)), keys(*[0] * key_count), keys(*[examples] * key_count), clock)


@pytest.mark.parametrize(("examples", "needed"), [(1, 4), (3, 4), (1, 1), (2, 10)])
def test_each_example_admits_with_its_probability(examples: int, needed: int) -> None:
    admission = Admission(AdmissionConfig(), keys(needed), np.array([True]), seed=1)
    plan, expected = planned(admission, 5, 20_000, examples), 1.0 - (1.0 - 1.0 / needed) ** examples
    assert len(plan.keys) / 20_000 == pytest.approx(expected, abs=4 * (expected * (1 - expected) / 20_000) ** 0.5)
    assert len(plan.counted_keys) == 0, "draws need no counts"


def test_a_draw_depends_on_seed_key_and_clock_alone() -> None:
    one, same, other = (Admission(AdmissionConfig(), keys(4), np.array([True]), seed=seed) for seed in (1, 1, 2))
    drawn = planned(one, 5, 1_000).keys.tolist()
    assert drawn == planned(same, 5, 1_000).keys.tolist()
    assert [key for key in drawn if key <= 300] == planned(same, 5, 300).keys.tolist(), "not on the other values"
    assert drawn != planned(one, 6, 1_000).keys.tolist() and drawn != planned(other, 5, 1_000).keys.tolist()


def test_fields_may_have_different_rules() -> None:
    admission = Admission(AdmissionConfig(), keys(1, 2, 0, 2), np.array([False, False, False, True]), seed=1)
    plan = admission.plan(keys(11, 12, 13), keys(0, 1, 2), keys(1, 1, 9), clock=0)
    assert (plan.keys.tolist(), plan.fields.tolist()) == ([11], [0])
    assert (plan.counted_keys.tolist(), plan.counted.tolist()) == ([12], [1])
