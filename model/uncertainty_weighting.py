"""Task weights by uncertainty: each task's noise is learned, and a noisier one weighs less (Kendall et al., CVPR 2018).

Letters: T tasks, B rows, C width of the representation.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.stateless_weighting import Float64Array, weighted_sum

_BETAS, _EPS = (0.9, 0.999), 1e-8


@dataclass(frozen=True, slots=True, kw_only=True)
class UncertaintyConfig:
    """How fast the uncertainties follow the losses."""

    lr: float = 0.01
    """Adam's learning rate of the log variances; greater than 0."""

    def __post_init__(self) -> None:
        if not self.lr > 0:
            raise ValueError(f"lr: {self.lr} is not allowed; greater than 0")


class UncertaintyWeighting:
    """Sum over the present tasks of e^(-s_j) L_j + s_j / 2, as for classification; s_j = log sigma_j^2, 0 at first.

    Where it is stationary e^(-s_j) = 1 / (2 L_j): it makes the losses equally large, so a rare task gets a large
    weight. Three things that would spoil it: a clamp at s >= 0 (for L < 1/2 the gradient 1 - 2L drives s below 0, where
    the clamp has none); a task that is absent from a batch and pays s / 2 all the same (its weight would grow by
    nothing but absence), here neither s nor its moments move then; and weight decay on s, which has an Adam of its own.
    """

    def __init__(self, config: UncertaintyConfig, num_tasks: int) -> None:
        self._lr = config.lr
        self._s_T, self._first_T, self._second_T, self._steps_T = (np.zeros(num_tasks) for _ in range(4))
        self._last: tuple[Float64Array, npt.NDArray[np.bool_]] | None = None

    def combine(self, loss_T: Tensor, is_present_T: npt.NDArray[np.bool_], shared_BC: Tensor, step: int) -> Tensor:
        """Returns the loss to be run backward; s is stepped by its own gradient, 1/2 - e^(-s) L."""
        self._last = loss_T.detach().cpu().numpy().astype(np.float64), is_present_T
        return weighted_sum(loss_T, self.weights()) + 0.5 * float(self._s_T[is_present_T].sum())

    def after_step(self) -> None:
        """Makes Adam's step of the present tasks' s."""
        assert self._last is not None
        value_T, is_present_T = self._last
        grad_T = 0.5 - np.exp(-self._s_T) * value_T
        for moment_T, beta, target_T in (
            (self._first_T, _BETAS[0], grad_T),
            (self._second_T, _BETAS[1], grad_T**2),
        ):
            moment_T[is_present_T] += (1 - beta) * (target_T - moment_T)[is_present_T]
        self._steps_T += is_present_T
        count_T = np.maximum(self._steps_T, 1)
        first_T = self._first_T / (1 - _BETAS[0] ** count_T)
        second_T = self._second_T / (1 - _BETAS[1] ** count_T)
        self._s_T -= np.where(is_present_T, self._lr * first_T / (np.sqrt(second_T) + _EPS), 0.0)

    def weights(self) -> Float64Array:
        """Returns e^(-s_j), [T]."""
        weight_T: Float64Array = np.exp(-self._s_T)
        return weight_T

    def state(self) -> dict[str, Tensor]:
        """Returns all that a resume needs, as copies."""
        return {name: torch.from_numpy(array.copy()) for name, array in self._arrays().items()}

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Goes on from what `state` returned; from another method's state, or none, it starts anew."""
        arrays = self._arrays()
        if tensors.keys() == arrays.keys():
            for name, array in arrays.items():
                array[:] = tensors[name].numpy()

    def _arrays(self) -> dict[str, Float64Array]:
        return {
            "log_variance": self._s_T,
            "first_moment": self._first_T,
            "second_moment": self._second_T,
            "steps": self._steps_T,
        }
