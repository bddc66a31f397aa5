"""Where the arithmetic of training runs."""

from typing import Literal

import torch

DeviceName = Literal["auto", "cpu", "cuda"]


def device_of(name: DeviceName) -> torch.device:
    """Returns the device of this name; `auto` is the first CUDA device where there is one, else the CPU.

    Raises:
        ValueError: `cuda`, and there is none.
    """
    has_cuda = torch.cuda.is_available()
    if name == "cuda" and not has_cuda:
        raise ValueError("device: cuda is not allowed on this machine, it has no CUDA device; auto, cpu")
    return torch.device("cuda" if name != "cpu" and has_cuda else "cpu")
