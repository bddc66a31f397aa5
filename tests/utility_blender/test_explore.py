"""The exploration law of the blender: what is drawn is what the density says, and only for whom it may be drawn."""

import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utility_blender.explore import MAX_SHARE, ExploreConfig, draw, log_density, request_rng

CENTER_T = np.array([1.0, 5.0, -2.0])


def truncated_normal_cdf(x: np.ndarray, truncate: float) -> np.ndarray:
    phi = np.vectorize(lambda value: 0.5 * (1 + math.erf(value / math.sqrt(2))))
    return (phi(x) - phi(-truncate)) / (phi(truncate) - phi(-truncate))


def draws(config: ExploreConfig, num_draws: int, seed: int = 7) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.array([draw(CENTER_T, config, rng)[0] for _ in range(num_draws)])


@pytest.mark.parametrize(("tau", "truncate"), [(0.3, 2.0), (0.2, 2.0), (0.5, 1.0)])
def test_draws_follow_the_truncated_lognormal_law(tau: float, truncate: float) -> None:
    """Kolmogorov-Smirnov per task, critical value at p = 0.001."""
    config = ExploreConfig(tau=tau, truncate=truncate)
    num_draws = 4_000
    jitter_NT = np.log(draws(config, num_draws) / CENTER_T) / tau
    empirical_N = np.arange(1, num_draws + 1) / num_draws
    for task in range(len(CENTER_T)):
        cdf_N = truncated_normal_cdf(np.sort(jitter_NT[:, task]), truncate)
        distance = max(np.max(empirical_N - cdf_N), np.max(cdf_N - empirical_N + 1 / num_draws))
        assert distance < 1.95 / math.sqrt(num_draws)
        # The same test sees a tau mis-stated by 30 %, so it can fail.
        wrong_N = truncated_normal_cdf(np.clip(np.sort(jitter_NT[:, task]) * 1.3, -truncate, truncate), truncate)
        assert np.max(np.abs(empirical_N - wrong_N)) > 1.95 / math.sqrt(num_draws)


def test_the_density_of_one_task_integrates_to_one() -> None:
    config = ExploreConfig(tau=0.3)
    weights_N = np.linspace(0.4, 2.0, 200_001)
    density_N = np.array([math.exp(log_density(np.array([w]), np.array([1.0]), config)) for w in weights_N[::100]])
    assert np.trapezoid(density_N, weights_N[::100]) == pytest.approx(1.0, abs=2e-3)


def test_the_log_density_is_the_formula_with_its_exact_constant() -> None:
    config = ExploreConfig(tau=0.3)
    weights_T, logged = draw(CENTER_T, config, np.random.default_rng(3))
    by_hand = 0.0
    for weight, center in zip(weights_T, CENTER_T, strict=True):
        jitter = math.log(weight / center) / 0.3
        by_hand += -math.log(0.3 * abs(weight) * math.sqrt(2 * math.pi)) - jitter**2 / 2 - math.log(0.9544997361036416)
    assert logged == pytest.approx(by_hand, abs=1e-12)


def test_the_histogram_of_draws_matches_the_logged_density() -> None:
    config = ExploreConfig(tau=0.3)
    weights_N = draws(config, 20_000)[:, 0]
    counts, edges = np.histogram(weights_N, bins=12, range=(math.exp(-0.6), math.exp(0.6)))
    middles = (edges[1:] + edges[:-1]) / 2
    density = np.array([math.exp(log_density(np.array([m]), np.array([1.0]), config)) for m in middles])
    expected = density * np.diff(edges) * len(weights_N)
    assert np.all(np.abs(counts - expected) < 5 * np.sqrt(expected) + 0.05 * expected)


@settings(max_examples=60, deadline=None)
@given(
    center=st.lists(st.floats(0.01, 100).flatmap(lambda x: st.sampled_from([x, -x])), min_size=1, max_size=6),
    tau=st.floats(0.05, 1.0),
    truncate=st.floats(0.2, 4.0),
    seed=st.integers(0, 2**63),
)
def test_signs_and_truncation_are_kept_and_the_density_is_finite(
    center: list[float], tau: float, truncate: float, seed: int
) -> None:
    center_T = np.array(center)
    weights_T, logged = draw(center_T, ExploreConfig(tau=tau, truncate=truncate), np.random.default_rng(seed))
    assert np.all(np.sign(weights_T) == np.sign(center_T))
    assert np.all(np.abs(np.log(weights_T / center_T)) <= tau * truncate * (1 + 1e-9))
    assert math.isfinite(logged)


@pytest.mark.parametrize("weight", [-1.0, 0.5, 2.0], ids=["other sign", "too small", "too large"])
def test_weights_the_law_cannot_draw_have_density_zero(weight: float) -> None:
    assert log_density(np.array([weight]), np.array([1.0]), ExploreConfig()) == -math.inf


@pytest.mark.parametrize("share", [0.0125, 0.3])
def test_the_share_of_explored_requests_is_within_binomial_bounds(share: float) -> None:
    config = ExploreConfig(share=share, allow_above_cap=True)
    num_requests = 40_000
    explored = sum(request_rng(f"r-{i}", config) is not None for i in range(num_requests))
    assert abs(explored - share * num_requests) < 4 * math.sqrt(num_requests * share * (1 - share))


def test_share_zero_never_explores_and_share_one_always_does() -> None:
    assert all(request_rng(f"r-{i}", ExploreConfig()) is None for i in range(1_000))
    everyone = ExploreConfig(share=1.0, allow_above_cap=True)
    assert all(request_rng(f"r-{i}", everyone) is not None for i in range(1_000))


def test_a_draw_can_be_replayed_from_the_request_id_and_another_salt_chooses_others() -> None:
    config = ExploreConfig(share=0.5, allow_above_cap=True)
    other = ExploreConfig(share=0.5, allow_above_cap=True, salt="other")
    ids = [f"r-{i}" for i in range(400)]
    explored = [i for i in ids if request_rng(i, config) is not None]
    assert explored == [i for i in ids if request_rng(i, config) is not None]
    assert explored != [i for i in ids if request_rng(i, other) is not None]
    first, again = request_rng(explored[0], config), request_rng(explored[0], config)
    assert first is not None and again is not None
    assert draw(CENTER_T, config, first)[0].tolist() == draw(CENTER_T, config, again)[0].tolist()


def test_who_explores_says_nothing_about_what_is_drawn() -> None:
    """The mean jitter of the few requests below a small share is that of the law: no bias from a shared hash."""
    config = ExploreConfig(share=0.1, allow_above_cap=True)
    jitter = []
    for i in range(20_000):
        if (rng := request_rng(f"r-{i}", config)) is not None:
            jitter.append(math.log(draw(np.array([1.0]), config, rng)[0][0]) / config.tau)
    assert len(jitter) > 1_500
    assert abs(np.mean(jitter)) < 4 * 0.88 / math.sqrt(len(jitter))  # 0.88 = deviation of the law truncated at 2


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"min_history": -1}, "min_history: -1 is not allowed; at least 0"),
        ({"holdout": 0.6}, "holdout: 0.6 is not allowed; in [0, 0.5]"),
        ({"share": MAX_SHARE + 1e-9}, "share: 0.012500001 is not allowed; in [0, 0.0125] (allow_above_cap lifts this"),
        ({"share": 1.1, "allow_above_cap": True}, "share: 1.1 is not allowed; in [0, 1.0]"),
        ({"share": math.nan}, "share: nan is not allowed"),
        ({"tau": 0.0}, "tau: 0.0 is not allowed; in (0, 1]"),
        ({"truncate": 0.0}, "truncate: 0.0 is not allowed"),
        ({"salt": ""}, "salt: '' is not allowed; 1 to 64 bytes"),
    ],
)
def test_settings_that_are_refused_say_what_is_allowed(settings_: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        ExploreConfig(**settings_)  # type: ignore[arg-type]  # the point of the test


GRID = ExploreConfig(law="grid")


def test_a_grid_moves_the_two_largest_weights_and_each_arm_is_as_likely() -> None:
    rng = np.random.default_rng(3)
    given = [draw(CENTER_T, GRID, rng) for _ in range(4_900)]
    factors_NT = np.array([weights_T for weights_T, _ in given]) / CENTER_T
    assert (factors_NT[:, 0] == 1).all()
    arms, counts = np.unique(factors_NT[:, 1:].round(9), axis=0, return_counts=True)
    assert len(arms) == 49 and arms.min() == 0.5 and arms.max() == 2.0
    assert ((counts - 100) ** 2 / 100).sum() < 95  # chi-square of 48 degrees of freedom at p = 1e-4: 94.5
    assert [logged for _, logged in given] == pytest.approx([-math.log(49)] * 4_900)


@pytest.mark.parametrize("weights", [[1.0, 5.0 * 1.1, -2.0], [1.1, 5.0, -2.0], [1.0, -5.0, -2.0]], ids=str)
def test_weights_off_the_grid_have_density_zero(weights: list[float]) -> None:
    assert log_density(np.array(weights), CENTER_T, GRID) == -math.inf
    assert log_density(CENTER_T, CENTER_T, GRID) == pytest.approx(-math.log(49))


def test_of_many_tasks_those_that_hardly_count_stay_and_are_not_in_the_density() -> None:
    center_T = np.array([1.0, 2.0, -1.0, 0.1, 1.0, 1.0, 0.2])
    weights_T, logged = draw(center_T, ExploreConfig(), np.random.default_rng(0))
    assert (weights_T == center_T).tolist() == [False, False, False, True, False, False, True]
    large = center_T.__abs__() > 0.5
    assert logged == pytest.approx(log_density(weights_T[large], center_T[large], ExploreConfig()))
    moved_T = weights_T.copy()
    moved_T[3] *= 1.01
    assert log_density(moved_T, center_T, ExploreConfig()) == -math.inf
    six_T, _ = draw(center_T[1:], ExploreConfig(), np.random.default_rng(0))
    assert (six_T != center_T[1:]).all()


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"law": "normal"}, "law: 'normal' is not allowed; one of lognormal, grid"),
        ({"grid_levels": 1}, "grid_levels: 1 is not allowed; at least 2"),
        ({"grid_most": 1.0}, "grid_most: 1.0 is not allowed; a finite number above 1"),
    ],
)
def test_settings_of_the_grid_that_are_refused_say_what_is_allowed(settings_: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        ExploreConfig(**settings_)  # type: ignore[arg-type]  # the point of the test
