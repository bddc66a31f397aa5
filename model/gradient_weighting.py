"""Task weights by gradients: the mix of the tasks' gradients that is shortest, so that no task is worsened by another.

    minimise || sum_j w_j g_j ||^2   over   sum_j w_j = 1,  w_j >= c_j

g_j is the gradient of task j's loss on the shared representation (the upper bound MGDA-UB of Sener and Koltun, 2018),
before any clipping. A task without a label in the batch has no gradient: the others' mix is solved without it.

Letters: B rows, C width of the representation, T tasks, P those of them present, X gradients flat.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.ranks import Ranks
from model.simplex_qp import equal_mix, onto_simplex, relaxed_mix, shortest_mix
from model.stateless_weighting import Float64Array, StatelessWeighting, weighted_sum

MAX_TASKS = 10
"""The exact solver tries 2^T sets of tasks."""
Normalisation = Literal["none", "l2", "loss", "loss+"]

BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class MgdaConfig:
    """Multiple gradient descent."""

    normalisation: Normalisation = "none"
    """What each gradient is divided by before the mix is solved, since the shortest one favours small gradients:
    nothing, its length (`l2`), its task's loss (`loss`), or both (`loss+`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeLtrConfig:
    """Pareto-efficient learning to rank: multiple gradient descent with a least weight per task."""

    bounds: dict[str, float] = field(default_factory=dict)
    """Least weight of each task, at least 0, together at most 1; a task not named has 0."""
    relaxation: Literal["none", "published"] = "none"
    """`none`: the mix is solved exactly; `published`: by the paper's two steps, which is longer with over two tasks."""
    every_steps: int = 50
    """Steps between two solves, each of which costs a backward pass per task through its heads; at least 1."""
    decay: float = 0.9
    """Share of the former weights that a solve keeps, as it sees one micro-batch only; at least 0, below 1."""

    def __post_init__(self) -> None:
        for task, bound in self.bounds.items():
            if not bound >= 0:
                raise ValueError(f"bounds.{task}: {bound} is not allowed; at least 0")
        if sum(self.bounds.values()) > 1 + 1e-12:
            raise ValueError(f"bounds: a sum of {sum(self.bounds.values()):g} is not allowed; at most 1")
        if self.every_steps < 1:
            raise ValueError(f"every_steps: {self.every_steps} is not allowed; at least 1")
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay: {self.decay} is not allowed; at least 0, below 1")


class MgdaWeighting(StatelessWeighting):
    """The shortest mix of each micro-batch, solved at every step (Sener and Koltun, NeurIPS 2018)."""

    def __init__(self, config: MgdaConfig, num_tasks: int, ranks: Ranks) -> None:
        super().__init__(np.full(num_tasks, 1.0 / num_tasks))
        self._normalisation = config.normalisation
        self._ranks = ranks

    def combine(self, loss_T: Tensor, is_present_T: BoolArray, shared_BC: Tensor, step: int) -> Tensor:
        """Returns sum_j w_j L_j, to be run backward; absent tasks weigh 0."""
        present = np.flatnonzero(is_present_T)
        if len(present):
            gram_PP = _normalised(_gram(loss_T, present, shared_BC, self._ranks), loss_T, present, self._normalisation)
            if np.isfinite(gram_PP).all():
                self._weight_T = np.zeros(len(is_present_T))
                self._weight_T[present] = shortest_mix(gram_PP, np.zeros(len(present)))
        return weighted_sum(loss_T, self._weight_T)


class PeLtrWeighting:
    """Running weights that move towards the shortest mix within the bounds (PE-LTR, Lin et al., RecSys 2019).

    Departures, for a stream: solved every so many steps instead of at each, and smoothed. A task that is absent from
    the batch of a solve keeps its weight, and the others share the rest. Weights start equal, as far as the bounds go.
    """

    def __init__(self, config: PeLtrConfig, tasks: Sequence[str], ranks: Ranks) -> None:
        self._config = config
        self._ranks = ranks
        self._bound_T = np.array([config.bounds.get(task, 0.0) for task in tasks])
        self._solve = relaxed_mix if config.relaxation == "published" else shortest_mix
        self._weight_T = equal_mix(self._bound_T)
        self._next_T = self._weight_T

    def combine(self, loss_T: Tensor, is_present_T: BoolArray, shared_BC: Tensor, step: int) -> Tensor:
        """Returns sum_j w_j L_j, to be run backward, with new weights if step (from 0) is one that solves."""
        self._next_T = self._weight_T
        present = np.flatnonzero(is_present_T)
        if step % self._config.every_steps == 0 and len(present) > 1:
            gram_PP = _gram(loss_T, present, shared_BC, self._ranks)
            if np.isfinite(gram_PP).all():
                old_P, decay = self._weight_T[present], self._config.decay
                solved_P = self._solve(gram_PP, self._bound_T[present], float(old_P.sum()))
                self._next_T = self._weight_T.copy()
                self._next_T[present] = decay * old_P + (1 - decay) * solved_P
        return weighted_sum(loss_T, self._next_T)

    def after_step(self) -> None:
        """Keeps the weights that the step was made with."""
        self._weight_T = self._next_T

    def weights(self) -> Float64Array:
        """Returns the weights, [T]; their sum is 1."""
        return self._weight_T.copy()

    def state(self) -> dict[str, Tensor]:
        """Returns all that a resume needs, as copies."""
        return {"weight": torch.from_numpy(self._weight_T.copy())}

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Goes on from what `state` returned; from another method's state, or none, it starts anew.

        Weights that break the bounds, because those were changed, are moved to the nearest that keep them.
        """
        if tensors.keys() == {"weight"}:
            weight_T = tensors["weight"].numpy().copy()
            if (weight_T < self._bound_T).any():
                weight_T = self._bound_T + onto_simplex(weight_T - self._bound_T, 1.0 - float(self._bound_T.sum()))
            self._weight_T = weight_T


def _gram(loss_T: Tensor, present: npt.NDArray[np.int64], shared_BC: Tensor, ranks: Ranks) -> Float64Array:
    """Returns the inner products of the present tasks' gradients on the representation of all ranks' rows, [P, P]."""
    gram_PP: Float64Array = np.zeros((len(present), len(present)))
    if shared_BC.requires_grad:  # not on a rank without rows
        grads = [torch.autograd.grad(loss_T[task], shared_BC, retain_graph=True)[0] for task in present.tolist()]
        grad_PX = torch.stack(grads).flatten(1)
        grad_PX = grad_PX.to(torch.promote_types(grad_PX.dtype, torch.float32))
        gram_PP = (grad_PX @ grad_PX.t()).cpu().numpy().astype(np.float64)
    return ranks.sum_arrays([gram_PP])[0]


def _normalised(
    gram_PP: Float64Array, loss_T: Tensor, present: npt.NDArray[np.int64], normalisation: Normalisation
) -> Float64Array:
    """Returns the inner products of the gradients after each was divided by its length, loss, or both."""
    divisor_P = np.ones(len(present))
    if normalisation in ("l2", "loss+"):
        divisor_P *= np.sqrt(np.diag(gram_PP))
    if normalisation in ("loss", "loss+"):
        divisor_P *= loss_T.detach().cpu().numpy().astype(np.float64)[present]
    # Only a gradient of zero has a length or a loss of zero, and it stays what it is.
    divisor_P = np.where(divisor_P == 0, 1.0, divisor_P)
    normalised_PP: Float64Array = gram_PP / np.outer(divisor_P, divisor_P)
    return normalised_PP
