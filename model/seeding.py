"""One random stream per name, so that adding a parameter does not shift the draws of the others."""

import math
from collections.abc import Callable
from functools import partial

import torch
import xxhash
from torch import Tensor, nn


def named_generator(seed: int, name: str) -> torch.Generator:
    """Returns a generator whose draws depend on `seed` and `name` only.

    >>> draws = [torch.rand(1, generator=named_generator(7, name)) for name in ("a", "b", "a")]
    >>> (draws[0] == draws[2]).item(), (draws[0] == draws[1]).item()
    (True, False)
    """
    return torch.Generator().manual_seed(xxhash.xxh64_intdigest(f"{seed}/{name}".encode()) >> 1)


class Drawn(nn.Module):
    """A module that draws its own parameters, each from a generator of its own."""

    def draw(self, generator_of: Callable[[str], torch.Generator]) -> None:
        """Sets the parameters; `generator_of(name)` is the generator of one of them."""
        raise NotImplementedError


def initialise(net: nn.Module, seed: int, *, prefix: str = "") -> None:
    """Draws every parameter of a network of `Drawn` modules from generators seeded by `seed` and its full name.

    `prefix` is the name of `net` where it is a part of another.
    """
    for name, module in net.named_modules(prefix=prefix):
        if isinstance(module, Drawn):
            with torch.no_grad():
                module.draw(partial(_parameter_generator, seed, name))


def _parameter_generator(seed: int, prefix: str, name: str) -> torch.Generator:
    return named_generator(seed, f"{prefix}.{name}")


def draw_uniform(parameter: Tensor, fan_in: int, generator: torch.Generator, *, variance: float = 1.0) -> None:
    """Draws within sqrt(3 / fan_in), a variance of 1 / fan_in (LeCun et al., 1998), or `variance` times that.

    `nn.Linear` draws a third of that variance: after the five layers of HiNet hardly anything of x is left, and where
    every example is seen once the time to grow it back is lost. A 3-D tensor is a stack of layers, not one wide layer.
    """
    bound = math.sqrt(3.0 * variance / fan_in)
    parameter.uniform_(-bound, bound, generator=generator)


def draw_layers(
    weights: nn.ParameterList, biases: nn.ParameterList, generator_of: Callable[[str], torch.Generator]
) -> None:
    """Draws `weights` and `biases` of consecutive layers.

    Weights are [out, in], or [K, in, out] for K layers side by side: their second dimension is the fan-in.
    """
    for layer, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        draw_uniform(weight, weight.shape[1], generator_of(f"weights.{layer}"))
        draw_uniform(bias, weight.shape[1], generator_of(f"biases.{layer}"))
