"""Explored directions have mean zero once centred on their law, and nothing else will do.

Design, acceptance test 6: subtracting the static weights or the centre violates it, so the test can fail.
"""

import numpy as np
import pytest

from tests.utility_blender.some_outcomes import some_outcomes
from utility_blender.centring import angles, tilts, unit
from utility_blender.contexts import Floats
from utility_blender.explore import ExploreConfig, draw
from utility_blender.outcomes import Outcomes

STATIC_T = np.array([1.0, 1.0, 0.5, -2.0])


def explored(center_T: Floats, num: int = 20_000, tau: float = 0.5) -> Outcomes:
    """Returns outcomes whose draws are real; all else is made up."""
    outcomes, config, rng = some_outcomes(num), ExploreConfig(tau=tau), np.random.default_rng(5)
    drawn_NT = np.array([draw(center_T, config, rng)[0] for _ in range(num)])
    fields = {name: getattr(outcomes, name) for name in outcomes.__dataclass_fields__}
    return Outcomes(
        **{
            **fields,
            "tasks": ("a", "b", "c", "d"),
            "center_NT": np.tile(center_T, (num, 1)),
            "weights_NT": drawn_NT,
            "tau_N": np.full(num, tau),
        }
    )


def in_standard_errors(values_NT: Floats) -> Floats:
    return np.abs(values_NT.mean(axis=0)) / (values_NT.std(axis=0) / np.sqrt(len(values_NT)))


@pytest.mark.parametrize("factors", [(1, 1, 1, 1), (2, 0.5, 1, 1), (0.5, 1, 2, 0.7)], ids=str)
def test_tilts_have_mean_zero_around_each_centre_and_other_origins_do_not(factors: tuple[float, ...]) -> None:
    center_T = STATIC_T * np.array(factors)
    outcomes = explored(center_T)
    tilt = tilts(outcomes, np.random.default_rng(0))
    assert in_standard_errors(tilt.tilt_NT).max() < 3.5  # the largest of four
    direction_NT = unit(outcomes.weights_NT)
    for origin_T in (unit(STATIC_T[None]), unit(center_T[None])):
        assert in_standard_errors(direction_NT - origin_T).max() > 6


def test_the_reach_is_the_rms_angle_of_the_draws() -> None:
    outcomes = explored(STATIC_T, tau=0.3)
    logged = np.sqrt(np.mean(angles(outcomes.weights_NT, outcomes.center_NT) ** 2))
    assert tilts(outcomes, np.random.default_rng(0)).angle == pytest.approx(logged, rel=0.02)


def test_a_weight_that_was_not_drawn_does_not_move_in_fresh_draws() -> None:
    outcomes = explored(STATIC_T, num=2_000)
    outcomes.weights_NT[:, 1:] = outcomes.center_NT[:, 1:]
    tilt = tilts(outcomes, np.random.default_rng(0))
    logged = np.sqrt(np.mean(angles(outcomes.weights_NT, outcomes.center_NT) ** 2))
    assert tilt.angle == pytest.approx(logged, rel=0.05)


def test_tilts_do_not_depend_on_the_length_of_weights() -> None:
    outcomes = explored(STATIC_T, num=500)
    longer = explored(STATIC_T, num=500)
    longer.weights_NT[:] *= 9.0
    longer.center_NT[:] *= 9.0
    one, other = (tilts(given, np.random.default_rng(0)) for given in (outcomes, longer))
    assert np.allclose(one.tilt_NT, other.tilt_NT) and one.angle == pytest.approx(other.angle)


def test_draws_of_another_law_are_refused() -> None:
    outcomes = explored(STATIC_T, num=10)
    outcomes.tau_N[3] = np.nan
    with pytest.raises(ValueError, match="outcomes: some were not drawn by the lognormal law"):
        tilts(outcomes, np.random.default_rng(0))


def test_small_angles_are_exact() -> None:
    assert angles(np.array([[1.0, 1e-9]]), np.array([[5.0, 0.0]]))[0] == pytest.approx(np.degrees(1e-9), rel=1e-6)
    assert angles(np.array([[1.0, 0.0]]), np.array([[-1.0, 0.0]]))[0] == pytest.approx(180.0)
