"""The one sum of a step over the ranks: the network's gradients, and all counts of the step with them.

Why not `DistributedDataParallel`: it wants one forward of one module whose parameters never change, and averages. Here
a step runs the network in parts, tasks' gradients may be asked for alone, scenarios are added while training, a
parameter without a gradient anywhere must stay without one, and ranks may have no row at all.
"""

from collections.abc import Collection, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from model.ranks import Ranks


def add_up(
    ranks: Ranks, parameters: Collection[nn.Parameter], counts: Sequence[npt.NDArray[np.int64]]
) -> list[npt.NDArray[np.int64]]:
    """Adds up the parameters' gradients over the ranks, in place, and returns counts added up.

    A parameter without a gradient on all ranks stays without. Counts are exact up to 2^24 in sum. Every rank gets the
    same bits.
    """
    if ranks.size == 1:
        return list(counts)
    shapes = [parameter.shape for parameter in parameters]
    sizes = [parameter.numel() for parameter in parameters]
    device = next(iter(parameters)).device
    has_grad = np.array([parameter.grad is not None for parameter in parameters], np.int64)
    small = np.concatenate([has_grad, *(count.ravel() for count in counts)]).astype(np.float32)
    flat = torch.cat([*(_flat_grad(parameter) for parameter in parameters), torch.from_numpy(small).to(device)])
    ranks.sum_(flat)
    *grads, summed = torch.split(flat, [*sizes, len(small)])
    has_any, *totals = np.split(
        summed.cpu().numpy().astype(np.int64), np.cumsum([len(has_grad), *(count.size for count in counts)])[:-1]
    )
    for parameter, grad, shape, has in zip(parameters, grads, shapes, has_any.tolist(), strict=True):
        parameter.grad = grad.view(shape) if has else None
    return [total.reshape(count.shape) for total, count in zip(totals, counts, strict=True)]


def _flat_grad(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter).flatten() if parameter.grad is None else parameter.grad.flatten()
