"""What users do, against the formulas and against brute force."""

from itertools import permutations

import numpy as np
import pytest

from sim.behaviour import Interest, Truth, sample_actions, truth
from sim.catalogue import NUM_LATENT
from sim.config import SimConfig
from sim.world import World

NOW_MS = 1_790_000_000_000
CONFIG = SimConfig(num_users=20, num_items=600)


def known(scenario: str = "home", *, interest_D: np.ndarray | None = None, num: int = 40) -> Truth:
    world = World(CONFIG)
    return truth(
        world,
        user_id="u4",
        scenario=scenario,
        now_ms=NOW_MS,
        candidates=world.candidates("u4", scenario, NOW_MS, num),
        interest_D=np.zeros(NUM_LATENT) if interest_D is None else interest_D,
    )


@pytest.mark.parametrize("scenario", ["home", "search", "deals"])
def test_actions_happen_as_often_as_the_truth_says(scenario: str) -> None:
    true = known(scenario, num=10)
    shown_K = np.arange(10)
    rng = np.random.default_rng(1)
    num = 10_000
    counts = {name: np.zeros(10) for name in ("click", "order", "hide")}
    for _ in range(num):
        for action in sample_actions(true, shown_K, CONFIG, rng):
            counts[action.action][action.position] += 1
    examined_K = true.examined(10)
    for name, column_N in (("click", true.click_N), ("order", true.order_N), ("hide", true.hide_N)):
        expected_K = column_N * examined_K
        sigma_K = np.sqrt(expected_K * (1 - expected_K) / num)
        assert (np.abs(counts[name] / num - expected_K) < 4.5 * sigma_K + 1e-4).all(), name


def test_orders_follow_their_click_and_hides_exclude_it() -> None:
    true, rng = known("deals"), np.random.default_rng(1)
    orders = hides = 0
    for _ in range(3_000):
        actions = sample_actions(true, rng.permutation(40)[:10], CONFIG, rng)
        assert actions == sorted(actions, key=lambda action: action.delay_ms)
        delay_ms = {(action.action, action.position): action.delay_ms for action in actions}
        for (name, position), ms in delay_ms.items():
            if name == "order":
                orders += 1
                assert delay_ms["click", position] < ms
            elif name == "hide":
                hides += 1
                assert ("click", position) not in delay_ms
    assert orders > 100
    assert hides > 100


def test_the_bounds_are_the_best_order_and_the_mean_of_all_orders() -> None:
    true = known(num=6)
    utilities = [true.expected_utility(np.array(order)) for order in permutations(range(6), 3)]
    random, best = true.bounds(3)
    assert best == pytest.approx(max(utilities))
    assert random == pytest.approx(np.mean(utilities))


def test_scenarios_disagree_about_the_same_items() -> None:
    by_scenario = {name: known(name) for name in ("home", "deals")}
    home, deals = (by_scenario[name].click_N for name in ("home", "deals"))
    assert np.corrcoef(home, deals)[0, 1] < 0.9
    appeal_N = World(CONFIG).candidates("u4", "home", NOW_MS, 40).appeal_N
    by_appeal = {
        name: float(np.corrcoef(appeal_N, np.log(t.order_N / t.click_N))[0, 1]) for name, t in by_scenario.items()
    }
    assert by_appeal["deals"] < by_appeal["home"] - 0.2


def test_a_click_raises_the_interest_in_similar_items_from_its_time_on() -> None:
    world = World(CONFIG)
    interest = Interest(half_life_s=45.0)
    item_D = world.candidates("u4", "home", NOW_MS, 40).vec_ND[3]
    interest.clicked("u4", item_D, NOW_MS + 1_000)
    assert not interest.at("u4", NOW_MS + 999).any()
    before, after = known(), known(interest_D=interest.at("u4", NOW_MS + 1_000))
    assert after.click_N[3] > before.click_N[3]
    similarity_N = world.candidates("u4", "home", NOW_MS, 40).vec_ND @ item_D
    gain_N = np.log(after.click_N / (1 - after.click_N)) - np.log(before.click_N / (1 - before.click_N))
    assert np.corrcoef(similarity_N, gain_N)[0, 1] > 0.99
    assert not interest.at("u5", NOW_MS + 1_000).any()


def test_interest_halves_in_a_half_life_and_saturates() -> None:
    item_D = np.eye(NUM_LATENT)[0]
    often, once = Interest(half_life_s=45.0), Interest(half_life_s=45.0)
    once.clicked("u1", 0.1 * item_D, NOW_MS)
    start = np.linalg.norm(once.at("u1", NOW_MS))
    assert np.linalg.norm(once.at("u1", NOW_MS + 45_000)) == pytest.approx(start / 2, rel=0.01)
    for _ in range(100):
        often.clicked("u1", item_D, NOW_MS)
    assert np.linalg.norm(often.at("u1", NOW_MS)) <= 1.0


def test_asking_in_between_does_not_change_the_interest() -> None:
    item_D = np.eye(NUM_LATENT)[0]
    asked, unasked = Interest(half_life_s=45.0), Interest(half_life_s=45.0)
    for interest in (asked, unasked):
        interest.clicked("u1", item_D, NOW_MS)
        interest.clicked("u1", item_D, NOW_MS + 5_000)
    for shift_ms in range(0, 20_000, 700):
        asked.at("u1", NOW_MS + shift_ms)
    np.testing.assert_allclose(asked.at("u1", NOW_MS + 20_000), unasked.at("u1", NOW_MS + 20_000), atol=1e-12)
