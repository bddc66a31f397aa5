"""The world of scored requests: what its truth is, and that it is the same for the same seed."""

import numpy as np
import pytest

from sim.scored_world import ScoredWorld, ScoredWorldConfig

WORLD = ScoredWorld(ScoredWorldConfig(), seed=4)


def test_the_same_seed_is_the_same_world() -> None:
    again, other = ScoredWorld(ScoredWorldConfig(), seed=4), ScoredWorld(ScoredWorldConfig(), seed=5)
    assert np.array_equal(WORLD.production_A, again.production_A)
    assert not np.allclose(WORLD.production_A, other.production_A)
    first, second, third = (WORLD.requests(50, seed=seed) for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert not np.array_equal(first.scores_NCA, third.scores_NCA)


def test_probabilities_are_scores_times_multipliers_times_activity() -> None:
    requests = WORLD.requests(400, seed=3)
    probability_NCA = WORLD.probabilities(requests)
    assert probability_NCA.min() > 0 and probability_NCA.max() < 1
    multiplier_NA = WORLD.multipliers(requests.numbers_NF, requests.mood_N)
    assert multiplier_NA.min() >= 0.5 and multiplier_NA.max() <= 2
    for row, candidate, action in ((0, 0, 0), (7, 39, 3), (399, 20, 1)):
        expected = float(requests.scores_NCA[row, candidate, action])
        expected *= float(multiplier_NA[row, action]) * float(requests.activity_N[row])
        assert probability_NCA[row, candidate, action] == pytest.approx(expected, rel=1e-9)


def test_a_users_requests_share_what_is_the_users_only() -> None:
    requests = WORLD.requests(1_000, seed=3)
    user = int(np.bincount(requests.user_N).argmax())
    mine = requests.user_N == user
    assert mine.sum() >= 5
    assert len(np.unique(requests.activity_N[mine])) == 1
    assert len(np.unique(requests.numbers_NF[mine, :2], axis=0)) == 1
    assert len(np.unique(requests.numbers_NF[mine, 2])) == mine.sum()


def test_contexts_move_actions_apart() -> None:
    requests = WORLD.requests(5_000, seed=6)
    log_NA = np.log(WORLD.multipliers(requests.numbers_NF, requests.mood_N))
    assert (log_NA.std(axis=0) > 0.3).all()
    correlation_AA = np.corrcoef(log_NA.T)
    assert correlation_AA[~np.eye(4, dtype=bool)].max() < 0.5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reward": (1.0,)}, "reward: .* one number for each"),
        ({"reward": (3.0, 1.0, 0.0, -2.0)}, "reward: .* none 0"),
        ({"rates": (0.1, 0.1, 0.5, 0.1)}, "rates: .* between 0 and 0.38 each"),
        ({"misjudged": (1.0, 1.0, -1.0, 1.0)}, "misjudged: .* above 0 each"),
        ({"num_shown": 41}, "num_shown: 41 is not allowed; 1 to 40"),
        ({"requests_per_user": 0.5}, "requests_per_user: 0.5 is not allowed; at least 1"),
    ],
)
def test_bad_settings_are_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ScoredWorldConfig(**changes)
