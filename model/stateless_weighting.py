"""What methods of weighing losses share: the weighted sum, and what those that remember nothing answer.

Letters: T tasks.
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Float64Array = npt.NDArray[np.float64]


def weighted_sum(loss_T: Tensor, weight_T: Float64Array) -> Tensor:
    """Returns sum_j w_j L_j; the weights have no gradient."""
    return (torch.as_tensor(weight_T, dtype=loss_T.dtype, device=loss_T.device) * loss_T).sum()


class StatelessWeighting:
    """Of a method no step of which depends on the one before."""

    def __init__(self, weight_T: Float64Array) -> None:
        self._weight_T = weight_T

    def after_step(self) -> None:
        """Keeps nothing."""

    def weights(self) -> Float64Array:
        """Returns the weights of the last step, [T]."""
        return self._weight_T.copy()

    def state(self) -> dict[str, Tensor]:
        """Returns nothing."""
        return {}

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Has nothing to take up."""
