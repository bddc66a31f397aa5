"""What gates make of experts. Letters: B rows, K experts, d width."""

from collections.abc import Sequence

import torch
from torch import Tensor


def weighted_sum(weight_BK: Tensor, experts: Sequence[Tensor] | Tensor) -> Tensor:
    """Returns the experts' outputs, K times [B, d], mixed by each row's weights, [B, d].

    In inference mode the experts are added up one by one in place, which reads each of them once; a backward pass
    would have to keep every sum on the way.

    >>> weighted_sum(torch.tensor([[1.0, 2.0]]), torch.tensor([[[3.0, 0.0]], [[4.0, 1.0]]]))
    tensor([[11.,  2.]])
    """
    if not torch.is_inference_mode_enabled():
        experts_KBd = experts if isinstance(experts, Tensor) else torch.stack(list(experts))
        mixed_Bd: Tensor = (weight_BK.t()[:, :, None] * experts_KBd).sum(dim=0)
        return mixed_Bd
    (weight_B1, first_Bd), *others = zip(torch.split(weight_BK, 1, dim=1), experts, strict=True)
    mixed_Bd = weight_B1 * first_Bd
    for weight_B1, expert_Bd in others:
        mixed_Bd.addcmul_(weight_B1, expert_Bd)
    return mixed_Bd
