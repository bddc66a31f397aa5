"""Dropout whose masks come from a generator that is handed in."""

import torch
from torch import Tensor


def dropped_out(features: Tensor, share: float, noise: torch.Generator | None) -> Tensor:
    """Returns the features, of which a training forward drops a share and scales up the others; all without `noise`.

    Masks are drawn where the generator is, so that it gives the same ones on every device.
    """
    if noise is None or not share:
        return features
    draw = torch.rand(features.shape, generator=noise, device=noise.device).to(features.device)
    return torch.where(draw < share, 0.0, features / (1.0 - share))
