"""One random stream per name, so that adding a parameter does not shift the draws of the others."""

import torch
import xxhash


def named_generator(seed: int, name: str) -> torch.Generator:
    """Returns a generator whose draws depend on `seed` and `name` only.

    >>> draws = [torch.rand(1, generator=named_generator(7, name)) for name in ("a", "b", "a")]
    >>> (draws[0] == draws[2]).item(), (draws[0] == draws[1]).item()
    (True, False)
    """
    return torch.Generator().manual_seed(xxhash.xxh64_intdigest(f"{seed}/{name}".encode()) >> 1)
