import numpy as np
import pytest

from tests.utility_blender.planted import EXPLORE, make_world
from utility_blender.inclusion import Inclusion, count_shown, importance, replays, uncovered
from utility_blender.outcomes import ABSENT, NOT_SHOWN, Outcomes
from utility_blender.redraw import redraw

WORLD = make_world()


def ragged() -> Outcomes:
    """Returns requests with fewer candidates, shorter slates and candidates whose scores are level."""
    outcomes = WORLD.explored(6, WORLD.static, EXPLORE, seed=3)
    outcomes.scores_NCT[:, 10] = outcomes.scores_NCT[:, 4]
    outcomes.scores_NCT[:, 11] = outcomes.scores_NCT[:, 4]
    outcomes.position_NC[:, 30:] = ABSENT
    outcomes.scores_NCT[:, 30:] = 0.0
    factor_NT = outcomes.weights_NT / outcomes.scale_NT
    for row, size in enumerate((3, 8, 3, 0, 12, 30)):
        utility_C = (outcomes.scores_NCT[row, :30].astype(np.float64) * factor_NT[row]).sum(axis=1)
        order = [j for _, j in sorted((-utility, j) for j, utility in enumerate(utility_C.tolist()))]
        outcomes.position_NC[row, :30] = NOT_SHOWN
        outcomes.position_NC[row, order[:size]] = range(size)
    return outcomes


def slate_of(outcomes: Outcomes, row: int, weights_T: np.ndarray) -> list[int]:
    """Returns the slate by a plain sort: by utility, then by place."""
    scored = []
    for j in range(outcomes.position_NC.shape[1]):
        if outcomes.position_NC[row, j] != ABSENT:
            terms = (
                float(outcomes.scores_NCT[row, j, t]) * w for t, w in enumerate(weights_T / outcomes.scale_NT[row])
            )
            scored.append((-sum(terms), j))
    return [j for _, j in sorted(scored)][: int(outcomes.size_N[row])]


def test_counts_weights_and_what_is_uncovered_against_plain_loops() -> None:
    outcomes = ragged()
    drawn_NMT = redraw(outcomes, 20, np.random.default_rng(0))
    count_NC = count_shown(outcomes, drawn_NMT)
    other_NT = outcomes.center_NT[:, ::-1] * [1, 1, 1, 3.0]
    omega_NC = importance(outcomes, Inclusion(count_NC, 20), other_NT)
    uncovered_N = uncovered(outcomes, Inclusion(count_NC, 20), other_NT)
    for row in range(6):
        expected = np.zeros(40)
        for draw in range(20):
            expected[slate_of(outcomes, row, drawn_NMT[row, draw])] += 1
        assert count_NC[row].tolist() == expected.tolist()
        wanted = slate_of(outcomes, row, other_NT[row])
        for j in range(40):
            is_counted = j in wanted and outcomes.position_NC[row, j] >= 0
            assert omega_NC[row, j] == pytest.approx(21 / (expected[j] + 1) if is_counted else 0.0)
        assert uncovered_N[row] == sum(expected[j] == 0 for j in wanted)
    assert uncovered_N.sum() > 0


def test_a_logged_slate_replays_and_a_changed_one_does_not() -> None:
    outcomes = ragged()
    assert replays(outcomes).all()
    first, second = np.argsort(outcomes.position_NC[0])[-2:]
    outcomes.position_NC[0, [first, second]] = outcomes.position_NC[0, [second, first]]  # the same slate, another order
    out, into = int(np.argmax(outcomes.position_NC[1])), int(np.flatnonzero(outcomes.position_NC[1] == NOT_SHOWN)[0])
    outcomes.position_NC[1, [out, into]] = outcomes.position_NC[1, [into, out]]
    assert replays(outcomes).tolist() == [False, False, True, True, True, True]


def test_weights_average_to_one_for_any_policy_within_support() -> None:
    outcomes = WORLD.explored(1_500, WORLD.static, EXPLORE, seed=4)
    inclusion = Inclusion(count_shown(outcomes, redraw(outcomes, 200, np.random.default_rng(1))), 200)
    near_NT = outcomes.center_NT * [1.15, 0.9, 1.1, 0.95]
    for weights_NT in (outcomes.center_NT, near_NT):
        total_N = importance(outcomes, inclusion, weights_NT).sum(axis=1)
        assert abs(total_N.mean() / 8 - 1) < 3 * total_N.std() / 8 / np.sqrt(1_500) + 0.002
    far_NT = outcomes.center_NT * [0.05, 5.0, 0.05, 5.0]
    assert importance(outcomes, inclusion, far_NT).sum() / (8 * 1_500) < 0.9
