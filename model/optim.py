"""Row-wise Adagrad for embedding rows; learning rates and clipping of both kinds of parameters.

Letters: U distinct rows, W embedding width.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from model.hashing import Int64Array


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimConfig:
    """Learning rates and clipping."""

    dense_lr: float = 1e-3
    """Adam's learning rate of the network; greater than 0."""
    aux_lr: float = 0.01
    """Adam's learning rate of the auxiliary heads of some label policies; greater than 0."""
    row_lr: float = 0.05
    """Row-wise Adagrad's learning rate of the embedding rows; greater than 0."""
    row_eps: float = 1e-8
    """Added to the root of a row's accumulator; greater than 0."""
    row_half_life_ms: int | None = None
    """Event time in which half of a row's accumulator is forgotten, so that its rate recovers on a stream that drifts;
    at least 1; null: plain Adagrad, whose rate only falls."""
    dense_clip: float = 10.0
    """Largest global norm of the network's gradient; greater than 0."""
    row_clip: float = 1.0
    """Largest norm of one embedding row's gradient; greater than 0."""

    def __post_init__(self) -> None:
        for name in ("dense_lr", "aux_lr", "row_lr", "row_eps", "dense_clip", "row_clip"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: {getattr(self, name)} is not allowed; greater than 0")
        if self.row_half_life_ms is not None and self.row_half_life_ms < 1:
            raise ValueError(f"row_half_life_ms: {self.row_half_life_ms} is not allowed; at least 1, or null")


def clip_dense(grads: list[Tensor], norm: float, most: float) -> bool:
    """Scales gradients of the given global norm in place, so that it is `most`. Returns whether it was larger."""
    if norm > most:
        torch._foreach_mul_(grads, most / norm)
    return norm > most


def clip_rows(grad_UW: Tensor, norm_U: Tensor, most: float) -> Tensor:
    """Returns the rows' gradients of the given norms, none of them longer than `most`."""
    return grad_UW * torch.where(norm_U > most, most / norm_U, 1.0)[:, None]


def faded(accumulator_U: Tensor, age_ms_U: Int64Array, half_life_ms: int) -> Tensor:
    """Returns the accumulators of rows that were last stepped `age_ms_U` of event time ago: s 2^(-age / half life)."""
    kept_U = np.exp2(-age_ms_U / half_life_ms).astype(np.float32)
    return accumulator_U * torch.from_numpy(kept_U).to(accumulator_U.device)


def rowwise_adagrad(
    weight_UW: Tensor, accumulator_U: Tensor, grad_UW: Tensor, *, lr: float | Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Returns the new weights and accumulators of distinct rows whose gradients are already summed per row.

    s <- s + mean_c g_c^2,   w <- w - lr g / (sqrt(s) + eps)          (one accumulator per row)

    `lr` is one for all rows or one per row, [U].
    """
    accumulator_U = accumulator_U + grad_UW.square().mean(dim=1)
    step_U = lr / (accumulator_U.sqrt() + eps)
    return weight_UW - step_U[:, None] * grad_UW, accumulator_U
