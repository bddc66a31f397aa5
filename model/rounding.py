"""Rounding to bfloat16 by chance, so that what is too small for one step is not lost in all of them.

A bfloat16 has 8 significant bits: rounded to the nearest, a change of less than a 512th of a weight is nothing, however
often it comes. Rounded up or down with the probabilities that make the mean right, small changes add up (Gupta et al.,
2015, arXiv 1502.02551).

Letters: U rows, W their width, C draws of a row.
"""

import torch
import xxhash
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_FACTORS = ((30, 0xBF58476D1CE4E5B9 - (1 << 64)), (27, 0x94D049BB133111EB - (1 << 64)))
_DROPPED_BITS = 16
_KEPT = -(1 << _DROPPED_BITS)


def rounded_by_chance(weight_UW: Tensor, key_U: Tensor, draw: str) -> Tensor:
    """Returns float32 weights as bfloat16, each one of its two neighbours, the nearer the likelier.

    `key_U`, int64, are what the rows are known by: what is drawn for a row depends on its key and on `draw` alone, not
    on its place, the other rows or the device. What bfloat16 holds exactly stays, and so does what is not finite.

    >>> weight = torch.full((10_000, 1), 1 + 0.3 / 128)
    >>> rounded = rounded_by_chance(weight, torch.arange(10_000), "a")
    >>> rounded.unique().tolist(), round(float((rounded > 1).float().mean()), 1)
    ([1.0, 1.0078125], 0.3)
    """
    bits_UW = weight_UW.view(torch.int32)
    up_UW = bits_UW + _draws(key_U, draw, weight_UW.shape[1])
    rounded_UW = (up_UW & _KEPT).view(torch.float32)
    return torch.where(weight_UW.isfinite(), rounded_UW, weight_UW).bfloat16()


def _draws(key_U: Tensor, draw: str, width: int) -> Tensor:
    """Returns a number of 16 bits for each weight, [U, width] int32: splitmix64 from each row's key."""
    salt = xxhash.xxh64_intdigest(draw.encode())
    salt -= (salt >> 63) << 64
    start_U = _mixed(key_U * _GOLDEN + salt)
    step_C = torch.arange(1, -(-width // 4) + 1, device=key_U.device) * _GOLDEN
    drawn_UC = _mixed(start_U[:, None] + step_C)
    return drawn_UC.view(torch.int16)[:, :width].to(torch.int32) & (1 << _DROPPED_BITS) - 1


def _mixed(number: Tensor) -> Tensor:
    """Returns splitmix64's mix of each number, as `model.hashing`; int64 wraps as uint64 does."""
    for shift, factor in _FACTORS:
        number = (number ^ _shifted(number, shift)) * factor
    return number ^ _shifted(number, 31)


def _shifted(number: Tensor, by: int) -> Tensor:
    """Returns the numbers shifted to the right, zeros coming in from the left."""
    return (number >> by) & (1 << 64 - by) - 1
