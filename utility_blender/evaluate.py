"""Off-policy evaluation: what would other weights have earned, told from explored requests alone."""

from typing import Protocol

from utility_blender.contexts import Contexts, Floats
from utility_blender.gate_config import GateConfig
from utility_blender.ope_report import OpeReport
from utility_blender.outcomes import Outcomes
from utility_blender.policy import Policy
from utility_blender.reward import RewardConfig


class QModel(Protocol):
    """A model of the request's reward as a function of context and weights."""

    def predict(self, contexts: Contexts, weights_NT: Floats, center_NT: Floats) -> Floats:
        """Returns reward_N expected under some weights, drawn around a centre; only their direction counts."""


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
    """Returns what explored requests tell of a policy against the one in service."""
    raise NotImplementedError
