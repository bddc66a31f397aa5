"""The scale of scores: measured per scenario, and a change of it changes no ranking."""

import numpy as np
import pytest

from tests.utility_blender.some_outcomes import some_outcomes
from utility_blender.explore import ExploreConfig, log_density
from utility_blender.outcomes import slates, utilities
from utility_blender.scale import FLOOR, rescaled, score_scale


def test_the_scale_is_the_deviation_over_the_candidates_that_are_there() -> None:
    outcomes = some_outcomes(200)
    for scenario, scale_T in score_scale(outcomes).items():
        rows = [row for row, name in enumerate(outcomes.contexts.scenario) if name == scenario]
        scores = [
            outcomes.scores_NCT[row, place].astype(np.float64)
            for row in rows
            for place in range(6)
            if outcomes.position_NC[row, place] != -2
        ]
        assert scale_T == pytest.approx(np.std(scores, axis=0))


def test_scores_that_never_differ_get_the_least_scale() -> None:
    outcomes = some_outcomes(50)
    outcomes.scores_NCT[:, :, 1] = 0.25
    outcomes.scores_NCT[~outcomes.present_NC] = 0.0
    assert all(scale_T[1] == FLOOR for scale_T in score_scale(outcomes).values())


def test_rescaling_changes_no_utility_no_slate_and_keeps_the_density_right() -> None:
    outcomes = some_outcomes(200)
    config = ExploreConfig()
    rows = zip(outcomes.weights_NT, outcomes.center_NT, strict=True)
    exact_N = np.array([log_density(weights_T, center_T, config) for weights_T, center_T in rows])
    object.__setattr__(outcomes, "log_density_N", exact_N)
    other = rescaled(outcomes, score_scale(outcomes))
    before_NC, after_NC = utilities(outcomes, outcomes.weights_NT), utilities(other, other.weights_NT)
    assert np.allclose(before_NC[outcomes.present_NC], after_NC[outcomes.present_NC])
    assert np.array_equal(slates(before_NC, outcomes.size_N), slates(after_NC, other.size_N))
    again = zip(other.weights_NT, other.center_NT, strict=True)
    assert other.log_density_N == pytest.approx([log_density(w_T, c_T, config) for w_T, c_T in again])


def test_the_density_of_weights_that_were_not_drawn_and_of_a_grid_stays() -> None:
    outcomes = some_outcomes(20)
    outcomes.weights_NT[:10, 0] = outcomes.center_NT[:10, 0]
    outcomes.tau_N[15:] = np.nan
    scale_of = {"home": np.array([0.5, 0.25]), "search": np.array([0.5, 0.25])}
    gained_N = rescaled(outcomes, scale_of).log_density_N - outcomes.log_density_N
    assert gained_N == pytest.approx([np.log(4)] * 10 + [np.log(8)] * 5 + [0.0] * 5)
