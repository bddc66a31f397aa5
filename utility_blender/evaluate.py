"""Off-policy evaluation: what would other weights have earned, told from explored requests alone.

All lifts are over the centre in service and paired: both policies are valued on the same rows, so what their slates
share cancels. Rewards are taken as they came, not winsorised. Estimators: design of the blender, section 9.

Shape letters: N requests.
"""

from collections.abc import Iterator

import numpy as np

from utility_blender.evaluate_group import Group, QModel
from utility_blender.gate_config import GateConfig
from utility_blender.inclusion import replays
from utility_blender.ope_report import OpeReport
from utility_blender.outcomes import Bools, Ints, Outcomes
from utility_blender.policy import Policy
from utility_blender.redraw import log_densities
from utility_blender.reward import RewardConfig, item_rewards

POOLED = "pooled"
"""Name of the group of scenarios that are too small to be judged alone."""


def admissible(outcomes: Outcomes, *, denied: set[int]) -> Bools:
    """Returns which requests may enter a fit or an estimate, mask_N: drawn by a known density, by no denied snapshot.

    `denied` are the versions of snapshots that were rolled back. Requests with fallback weights never explore.
    """
    is_denied_N = np.isin(outcomes.snapshot_N, sorted(denied))
    admitted_N: Bools = ~is_denied_N & np.isfinite(outcomes.log_density_N)
    return admitted_N


def evaluate(
    policy: Policy,
    center: Policy,
    outcomes: Outcomes,
    reward: RewardConfig,
    config: GateConfig,
    *,
    seed: int,
    q_model: QModel | None = None,
) -> OpeReport:
    """Returns what explored requests tell of a policy against the one in service; see `Evaluation`."""
    return Evaluation(center, outcomes, reward, config, seed=seed, q_model=q_model).of(policy)


class Evaluation:
    """A slice of explored requests that policies are judged on: draws that do not depend on the policy are made once.

    Without a `q_model` the doubly robust estimate fits its own, across halves of the slice's users.

    Raises:
        ValueError: rewards that do not split into items, or requests not drawn by the lognormal law.
    """

    def __init__(
        self,
        center: Policy,
        outcomes: Outcomes,
        reward: RewardConfig,
        config: GateConfig,
        *,
        seed: int,
        q_model: QModel | None = None,
    ) -> None:
        item_rewards(outcomes, reward)
        self._center, self._outcomes, self._reward, self._config = center, outcomes, reward, config
        self._seed, self._q_model = seed, q_model
        num = outcomes.num_requests
        self._replayed = float(replays(outcomes).mean()) if num else 0.0
        log_N = log_densities(outcomes.weights_NT, outcomes.center_NT, outcomes.tau_N, outcomes.truncate_N)
        self._densities = float(np.isclose(log_N, outcomes.log_density_N, atol=1e-6).mean()) if num else 0.0
        self._is_judged = num >= config.min_requests and self._replayed == 1
        self._groups = [
            Group(name, outcomes.take(rows), center, reward, config, seed=seed, q_model=q_model)
            for name, rows in (_groups(outcomes, config.pool_below) if self._is_judged else ())
        ]

    def of(self, policy: Policy) -> OpeReport:
        """Returns the report on a policy."""
        return OpeReport(
            num_requests=self._outcomes.num_requests,
            replayed=self._replayed,
            densities=self._densities,
            negative=tuple(sorted(action for action, worth in self._reward.values.items() if worth < 0)),
            groups=tuple(group.of(policy) for group in self._groups),
        )


def _groups(outcomes: Outcomes, pool_below: int) -> Iterator[tuple[str, Ints]]:
    """Yields the groups to judge: each large scenario, then all small ones together (a lone one by its own name)."""
    names = np.array(outcomes.contexts.scenario)
    found, counts = np.unique(names, return_counts=True)
    small = [str(name) for name, count in zip(found, counts, strict=True) if count < pool_below]
    for name in found.tolist():
        if name not in small:
            yield name, np.flatnonzero(names == name)
    if small:
        yield (small[0] if len(small) == 1 else POOLED), np.flatnonzero(np.isin(names, small))
