"""The guard: takes back what goes wrong while it is in service, whatever the gate had promised.

Three pairs of streams, each per scenario, each judged by the request's reward and by every action worth less than
nothing: what explores against what does not; a version on trial against the one before; learned weights against the
production weights that a holdout keeps on being served.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from utility_blender.outcomes import Outcomes
from utility_blender.reward import RewardConfig, request_rewards
from utility_blender.rounds import explored
from utility_blender.sequential import SequentialTest

Pair = Literal["exploration", "trial", "learned"]
Side = Literal["tried", "control"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardConfig:
    """When something is taken back."""

    alpha: float = 0.001
    """Probability that a test ever trips without cause; in (0, 0.1]."""
    margin: float = 0.05
    """Loss of reward, or rise of an unwanted action, that is put up with, as a share; exploring costs a little by its
    nature. In [0, 1)."""

    def __post_init__(self) -> None:
        if not 0 < self.alpha <= 0.1:
            raise ValueError(f"alpha: {self.alpha} is not allowed; in (0, 0.1]")
        if not 0 <= self.margin < 1:
            raise ValueError(f"margin: {self.margin} is not allowed; in [0, 1)")


class Guard:
    """Compares the streams as their outcomes come in. Which version is which, `serve` says."""

    def __init__(self, config: GuardConfig, reward: RewardConfig) -> None:
        self._config = config
        self._reward = reward
        self._unwanted = tuple(sorted(action for action, value in reward.values.items() if value < 0))
        self._stable = self._trial = 0
        self._tests: dict[tuple[Pair, str, str], SequentialTest] = {}
        self.num_trial = 0
        """Requests served by the version on trial."""

    def serve(self, *, stable: int, trial: int) -> None:
        """Takes note of which versions serve; `trial` is 0 where none is. What was counted of others is dropped."""
        if stable != self._stable:
            self._tests.clear()
        elif trial != self._trial:
            self._tests = {key: test for key, test in self._tests.items() if key[0] != "trial"}
        if trial != self._trial:
            self.num_trial = 0
        self._stable, self._trial = stable, trial

    def add(self, outcomes: Outcomes) -> None:
        """Takes requests in: explored ones and those to compare with."""
        reward_N = request_rewards(outcomes, self._reward)
        places = {action: place for place, action in enumerate(outcomes.actions)}
        value_NA = outcomes.value_NCA.sum(axis=1)
        explored_N, version_N = explored(outcomes), outcomes.blender_N
        self.num_trial += int((~explored_N & (version_N == self._trial)).sum()) if self._trial else 0
        for row, scenario in enumerate(outcomes.contexts.scenario):
            # Tests ask for falling means, so unwanted actions count downwards.
            figures = {"reward": float(reward_N[row])}
            for action in self._unwanted:
                figures[action] = -float(value_NA[row, places[action]]) if action in places else 0.0
            for pair, side in self._sides(int(version_N[row]), is_explored=bool(explored_N[row])):
                for name, value in figures.items():
                    test = self._test(pair, scenario, name)
                    (test.tried if side == "tried" else test.control).add(value)

    def _sides(self, version: int, *, is_explored: bool) -> Iterator[tuple[Pair, Side]]:
        """Yields which side of which pair a request is on."""
        if is_explored:
            if version == self._stable:
                yield "exploration", "tried"
            return
        if version == self._stable:
            yield "exploration", "control"
            if self._trial:
                yield "trial", "control"
            if self._stable:
                yield "learned", "tried"
        elif version == 0:
            yield "learned", "control"
        if version == self._trial and self._trial:
            yield "trial", "tried"

    def _test(self, pair: Pair, scenario: str, name: str) -> SequentialTest:
        key = (pair, scenario, name)
        if key not in self._tests:
            self._tests[key] = SequentialTest(self._config.alpha, self._config.margin)
        return self._tests[key]

    def exploration_trip(self) -> str:
        """Returns why exploration must end; empty if it need not."""
        return self._trip("exploration")

    def trial_trip(self) -> str:
        """Returns why the version on trial must go; empty if it need not."""
        return self._trip("trial")

    def learned_trip(self) -> str:
        """Returns why the learned weights in service must go; empty if they need not."""
        return self._trip("learned")

    def settled(self, pair: Pair) -> None:
        """Takes note that what a trip asked for is done. Until then it is told again; from here its streams are new."""
        self._tests = {key: test for key, test in self._tests.items() if key[0] != pair}

    def _trip(self, wanted: Pair) -> str:
        for (pair, scenario, name), test in self._tests.items():
            if pair == wanted and test.look():
                sign = 1 if name == "reward" else -1
                return (
                    f"{name} per request of {scenario}: {sign * test.tried.mean:.4g} over {test.tried.n} requests, "
                    f"against {sign * test.control.mean:.4g} over {test.control.n} (alpha {self._config.alpha:g})"
                )
        return ""
