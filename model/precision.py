"""In which type a network's matrix products are computed."""

from typing import Literal

import torch

Precision = Literal["float32", "bfloat16"]


def products_in(precision: Precision, device_type: str = "cpu") -> torch.autocast:
    """Returns a context in which matrix products take operands of this type.

    With `bfloat16` the products of a forward pass (and so of its backward pass) have half as wide operands and results
    and are summed in float32; parameters, optimiser and loss stay float32. Where the CPU has no such products
    (`avx512_bf16`, `amx_bf16`) they are slower than those of float32.
    """
    return torch.autocast(device_type, torch.bfloat16, enabled=precision == "bfloat16")
