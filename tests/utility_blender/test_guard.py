"""The guard: each loss trips its own pair of streams, and nothing else."""

import dataclasses

import numpy as np
import pytest

from tests.utility_blender.some_outcomes import some_outcomes
from utility_blender.guard import Guard, GuardConfig
from utility_blender.outcomes import Outcomes
from utility_blender.reward import RewardConfig

REWARD = RewardConfig(values={"click": 1.0, "hide": -2.0})


def given(num: int, *, version: int, explore: bool, click: float = 0.3, hide: float = 0.05, seed: int = 0) -> Outcomes:
    """Returns requests whose first item is clicked and hidden with these probabilities."""
    rng = np.random.default_rng([seed, version, explore])
    made = some_outcomes(num, seed=seed, version=version)
    value_NCA = np.zeros((num, 6, 2))
    value_NCA[:, 0, 0], value_NCA[:, 0, 1] = rng.random(num) < click, rng.random(num) < hide
    density_N = made.log_density_N if explore else np.full(num, np.nan)
    return dataclasses.replace(made, actions=("click", "hide"), value_NCA=value_NCA, log_density_N=density_N)


def guard(*, stable: int, trial: int = 0) -> Guard:
    made = Guard(GuardConfig(), REWARD)
    made.serve(stable=stable, trial=trial)
    return made


def trips(watched: Guard) -> dict[str, bool]:
    return {
        "exploration": bool(watched.exploration_trip()),
        "trial": bool(watched.trial_trip()),
        "learned": bool(watched.learned_trip()),
    }


def test_nothing_trips_where_all_streams_are_alike() -> None:
    watched = guard(stable=3, trial=4)
    for version, explore in ((3, True), (3, False), (4, False), (0, False)):
        watched.add(given(4_000, version=version, explore=explore))
    assert trips(watched) == {"exploration": False, "trial": False, "learned": False}
    assert watched.num_trial == 4_000


@pytest.mark.parametrize("harm", [{"click": 0.2}, {"hide": 0.12}])
@pytest.mark.parametrize(
    ("pair", "version", "explore"), [("exploration", 3, True), ("trial", 4, False), ("learned", 3, False)]
)
def test_a_loss_trips_its_own_pair(pair: str, version: int, explore: bool, harm: dict[str, float]) -> None:
    watched = guard(stable=3, trial=4 if pair != "learned" else 0)
    for other in ((3, True), (3, False), (4, False), (0, False)):
        if other != (version, explore) and not (pair == "learned" and other == (3, True)):
            watched.add(given(4_000, version=other[0], explore=other[1], seed=1))
    watched.add(given(4_000, version=version, explore=explore, seed=2, **harm))
    found = trips(watched)
    assert found[pair] and not [name for name, is_so in found.items() if is_so and name != pair]


def test_the_reason_names_figures_and_is_told_until_settled() -> None:
    watched = guard(stable=0)
    watched.add(given(4_000, version=0, explore=False))
    watched.add(given(4_000, version=0, explore=True, hide=0.3))
    reason = watched.exploration_trip()
    assert "per request of" in reason and "alpha 0.001" in reason and "requests, against" in reason
    assert watched.exploration_trip() == reason
    watched.settled("exploration")
    assert watched.exploration_trip() == ""


def test_a_new_version_starts_from_nothing() -> None:
    watched = guard(stable=1, trial=2)
    watched.add(given(4_000, version=1, explore=False))
    watched.add(given(4_000, version=2, explore=False, click=0.05))
    watched.serve(stable=1, trial=3)
    assert (trips(watched)["trial"], watched.num_trial) == (False, 0)


def test_an_action_never_met_counts_as_none() -> None:
    watched = guard(stable=0)
    for explore in (True, False):
        only_clicks = given(500, version=0, explore=explore)
        value_NCA = only_clicks.value_NCA[:, :, :1]
        watched.add(dataclasses.replace(only_clicks, actions=("click",), value_NCA=value_NCA))
    assert not any(trips(watched).values())


@pytest.mark.parametrize(("name", "value"), [("alpha", 0.0), ("alpha", 0.2), ("margin", -0.1), ("margin", 1.0)])
def test_settings_are_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"^{name}: {value} is not allowed"):
        GuardConfig(**{name: value})
