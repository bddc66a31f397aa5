"""`quadratic_q`: of 400 arms of the exploration law around the weights in service, the one that a model likes best.

The arms are of the law that was logged: from a wider one the model would extrapolate, which halved its gain (design:
blender.md, section 5).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from utility_blender.contexts import Contexts, Floats
from utility_blender.fit import Fitted
from utility_blender.learn_config import LearnConfig
from utility_blender.learned import as_learned, policy_from_dict, policy_to_dict
from utility_blender.outcomes import Outcomes
from utility_blender.policy import Policy, StaticPolicy
from utility_blender.quadratic_model import QuadraticModel, fit_quadratic_model
from utility_blender.reward import RewardConfig


@dataclass(frozen=True, slots=True)
class QuadraticPolicy:
    """The best arm of the model around the centre's weights."""

    center: Policy
    model: QuadraticModel

    kind = "quadratic_q"

    def weights(self, contexts: Contexts) -> Floats:
        """See `Policy.weights`."""
        return self.model.best_arms(contexts, self.center.weights(contexts))

    def as_dict(self) -> dict[str, Any]:
        """See `policy_to_dict`."""
        return {"center": policy_to_dict(self.center), "model": self.model.as_dict()}

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> "QuadraticPolicy":
        """See `policy_from_dict`."""
        return QuadraticPolicy(policy_from_dict(data["center"]), QuadraticModel.from_dict(data["model"]))


def fit_quadratic_q(
    outcomes: Outcomes,
    center: Policy,
    static: StaticPolicy,
    config: LearnConfig,
    reward: RewardConfig,
    *,
    numeric: Sequence[str],
    seed: int,
) -> Fitted:
    """See `utility_blender.fit.fit`; of all the outcomes, there is nothing to choose."""
    model = fit_quadratic_model(outcomes, reward, config=config, numeric=numeric, seed=seed)
    if isinstance(center, StaticPolicy):
        center = as_learned(center, outcomes.tasks)  # knows the names of its tasks when it is written down
    return Fitted(QuadraticPolicy(center, model), {"ridge": config.ridge, "arms": len(model.arms_AT)})
