"""Moods: a factor per action on the truth of a request, told in its context."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from sim.behaviour import Truth, truth
from sim.catalogue import NUM_LATENT
from sim.config import SimConfig
from sim.mood import MoodConfig
from sim.world import World

NOW_MS = 1_790_000_000_000
CALM = SimConfig(num_users=20, num_items=600)
MOODY = replace(CALM, moods={"look": MoodConfig(share=3.0), "buy": MoodConfig(click=0.5, order=2.0, hide=3.0)})


def known(config: SimConfig, now_ms: int) -> Truth:
    world = World(config)
    candidates = world.candidates("u4", "deals", now_ms, 40)
    given = {"user_id": "u4", "scenario": "deals", "now_ms": now_ms, "candidates": candidates}
    return truth(world, interest_D=np.zeros(NUM_LATENT), **given)


def test_a_mood_multiplies_the_truth_that_its_request_would_have_without() -> None:
    world, seen = World(MOODY), set()
    for now_ms in range(NOW_MS, NOW_MS + 20):
        mood = world.mood("u4", now_ms)
        assert mood is not None and world.context("u4", "deals", now_ms)["mood"] == mood[0]
        calm, moody = known(CALM, now_ms), known(MOODY, now_ms)
        expected_click_N = np.minimum(mood[1].click * calm.click_N, 0.95)
        assert np.allclose(moody.click_N, expected_click_N)
        assert np.allclose(moody.order_N, np.minimum(mood[1].order * calm.order_N, expected_click_N))
        assert np.allclose(moody.hide_N, np.minimum(mood[1].hide * calm.hide_N, 1 - expected_click_N))
        seen.add(mood[0])
    assert seen == {"look", "buy"}


def test_moods_are_met_as_often_as_their_share_says() -> None:
    world = World(MOODY)
    counts = Counter(world.mood("u1", now_ms)[0] for now_ms in range(NOW_MS, NOW_MS + 2_000))  # type: ignore[index]
    assert counts["look"] / 2_000 == pytest.approx(0.75, abs=4 * np.sqrt(0.75 * 0.25 / 2_000))


def test_a_world_without_moods_says_nothing_of_them() -> None:
    assert World(CALM).mood("u1", NOW_MS) is None
    assert "mood" not in World(CALM).context("u1", "home", NOW_MS)


@pytest.mark.parametrize("name", ["share", "click", "order", "hide"])
def test_factors_are_above_zero_and_finite(name: str) -> None:
    for value in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match=f"{name}: .* is not allowed; a finite number above 0"):
            MoodConfig(**{name: value})


def test_a_request_can_be_judged_again_by_what_was_logged_of_it() -> None:
    world, now_ms = World(MOODY), NOW_MS
    shown = world.candidates("u4", "deals", now_ms, 10)
    again = world.known_items(shown.id, now_ms + 3)
    assert again.id == shown.id and np.array_equal(again.vec_ND, shown.vec_ND)
    given = {"user_id": "u4", "scenario": "deals", "interest_D": np.zeros(NUM_LATENT)}
    mood = world.context("u4", "deals", now_ms)["mood"]
    first = truth(world, now_ms=now_ms, candidates=shown, **given)
    second = truth(world, now_ms=now_ms + 3, candidates=again, mood=mood, **given)
    assert np.allclose(first.value_N, second.value_N, rtol=1e-4)  # tastes drift a little in 3 ms
    with pytest.raises(ValueError, match="'i0-1' is not alive"):
        world.known_items(["i0-1"], now_ms)
