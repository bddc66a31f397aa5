"""From the losses of the tasks to the one loss that is run backward.

Letters: B rows, C width of the representation, T tasks.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor

from model.gradient_weighting import MAX_TASKS, MgdaConfig, MgdaWeighting, PeLtrConfig, PeLtrWeighting
from model.losses import LossConfig
from model.ranks import Ranks
from model.stateless_weighting import Float64Array, StatelessWeighting, weighted_sum
from model.uncertainty_weighting import UncertaintyConfig, UncertaintyWeighting


class LossWeighting(Protocol):
    """How much each task counts. A step is `combine`, a backward pass, and `after_step` if the step is made."""

    def combine(self, loss_T: Tensor, is_present_T: npt.NDArray[np.bool_], shared_BC: Tensor, step: int) -> Tensor:
        """Returns the scalar to be run backward.

        `loss_T` are the tasks' losses (`model.losses.multi_scenario_loss`), `is_present_T` says which tasks have a
        label in the batch, `shared_BC` is the representation that they are computed from, and `step` the number of
        steps made before this one. All but `shared_BC`, and the gradients on it, are those of all ranks. What is not
        finite stays not finite, and reaches no state.
        """

    def after_step(self) -> None:
        """Takes over what the last `combine` found."""

    def weights(self) -> Float64Array:
        """Returns the tasks' weights, [T]."""

    def state(self) -> dict[str, Tensor]:
        """Returns all that a resume needs, as copies."""

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Goes on from what `state` returned; from another method's state, or none, it starts anew."""


class FixedWeighting(StatelessWeighting):
    """sum_j omega_j L_j with given weights."""

    def combine(self, loss_T: Tensor, is_present_T: npt.NDArray[np.bool_], shared_BC: Tensor, step: int) -> Tensor:
        """Returns the weighted sum."""
        return weighted_sum(loss_T, self._weight_T)


def loss_weighting(config: LossConfig, tasks: Sequence[str], ranks: Ranks | None = None) -> LossWeighting:
    """Returns the method that a configuration names.

    Raises:
        ValueError: a weight or bound of a task that is none of `tasks`, or more tasks than the method can weigh.
    """
    ranks = ranks or Ranks.alone()
    bounds = config.pe_ltr.bounds if config.pe_ltr else {}
    for name, weights in (("task_weights", config.task_weights), ("pe_ltr.bounds", bounds)):
        unknown = sorted(set(weights) - set(tasks))
        if unknown:
            raise ValueError(f"loss.{name}: {unknown} are not tasks; {', '.join(tasks)}")
    if config.weighting in ("mgda", "pe_ltr") and len(tasks) > MAX_TASKS:
        raise ValueError(
            f"loss.weighting: {config.weighting} is not allowed with {len(tasks)} tasks; at most {MAX_TASKS}"
        )
    match config.weighting:
        case "fixed":
            return FixedWeighting(np.array([config.task_weights.get(task, 1.0) for task in tasks]))
        case "uncertainty":
            return UncertaintyWeighting(config.uncertainty or UncertaintyConfig(), len(tasks))
        case "mgda":
            return MgdaWeighting(config.mgda or MgdaConfig(), len(tasks), ranks)
        case "pe_ltr":
            return PeLtrWeighting(config.pe_ltr or PeLtrConfig(), tasks, ranks)
