"""Rounds: what belongs to one, when it is due, and that learning never sees what judges it."""

import dataclasses

import numpy as np
import pytest

from tests.utility_blender.some_outcomes import some_outcomes
from utility_blender.rounds import Round, RoundsConfig

CONFIG = RoundsConfig(requests=500, most_requests=1_200, retry_growth=1.5)


def test_only_requests_explored_around_the_version_in_service_belong_to_a_round() -> None:
    one = some_outcomes(100, version=3)
    not_explored = dataclasses.replace(one, log_density_N=np.where(np.arange(100) < 30, np.nan, 0.0))
    in_round = Round(CONFIG, version=3)
    assert in_round.add(not_explored) == 70
    assert in_round.add(some_outcomes(100, version=2)) == 0
    assert (in_round.num_requests, in_round.num_missing, in_round.is_due) == (70, 430, False)


def test_a_round_is_due_when_it_is_full_and_after_a_refusal_when_it_has_grown() -> None:
    in_round = Round(CONFIG, version=0)
    in_round.add(some_outcomes(500))
    assert in_round.is_due
    in_round.refused()
    assert not in_round.is_due and in_round.num_missing == 250
    in_round.add(some_outcomes(250, seed=1))
    assert in_round.is_due and in_round.num_requests == 750


def test_a_full_round_keeps_the_newest_and_stays_due_again_and_again() -> None:
    in_round = Round(CONFIG, version=0)
    for seed in range(12):
        in_round.add(some_outcomes(200, seed=seed, first_ms=seed * 10_000))
    assert 1_200 <= in_round.num_requests < 1_400
    assert {name.split("-")[0] for part in in_round.split() for name in part.request_id} == {
        f"r{n}" for n in range(6, 12)
    }
    in_round.refused()
    assert in_round.num_missing == 500
    in_round.add(some_outcomes(500, seed=12, first_ms=120_000))
    assert in_round.is_due


def test_the_later_part_is_later_and_nothing_is_on_both_sides() -> None:
    in_round = Round(CONFIG, version=0)
    second_first = some_outcomes(300, seed=1, first_ms=5_000)
    in_round.add(second_first)
    in_round.add(some_outcomes(300, seed=2))
    earlier, later = in_round.split()
    assert earlier.ts_ms_N.max() < later.ts_ms_N.min()
    assert earlier.num_requests + later.num_requests == 600
    assert later.num_requests == pytest.approx(0.3 * 600, abs=2)
    assert sorted([*earlier.request_id, *later.request_id]) == sorted([f"r{s}-{n}" for s in (1, 2) for n in range(300)])


def test_requests_of_the_same_millisecond_are_never_parted() -> None:
    at_once = dataclasses.replace(some_outcomes(600), ts_ms_N=np.repeat(np.arange(6), 100))
    in_round = Round(CONFIG, version=0)
    in_round.add(at_once)
    earlier, later = in_round.split()
    assert set(earlier.ts_ms_N.tolist()).isdisjoint(later.ts_ms_N.tolist()) and later.num_requests == 100


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"requests": 499}, "requests"),
        ({"requests": 1_000, "most_requests": 999}, "most_requests"),
        ({"stage_requests": 0}, "stage_requests"),
        ({"retry_growth": 1.0}, "retry_growth"),
        ({"later_share": 0.0}, "later_share"),
        ({"stages": ()}, "stages"),
        ({"stages": (0.5, 0.5, 1.0)}, "stages"),
        ({"stages": (0.1, 0.5)}, "stages"),
    ],
)
def test_settings_that_make_no_round_are_refused_by_name(settings: dict[str, object], field: str) -> None:
    with pytest.raises(ValueError, match=f"^{field}: .* is not allowed"):
        RoundsConfig(**settings)  # type: ignore[arg-type]
