"""Random histories and rows for the tests of networks that read them, in float64."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from model.sequence_inputs import SequenceInputs


def histories(
    lengths: Sequence[int], request_index: Sequence[int], width: int, *, seed: int = 0, longest: int | None = None
) -> SequenceInputs:
    """Returns histories of these lengths with random content, also where there is no action."""
    rng = np.random.default_rng(seed)
    num_requests, num_places = len(lengths), max(lengths, default=0) if longest is None else longest

    def drawn(*shape: int) -> Tensor:
        return torch.from_numpy(rng.normal(size=(*shape, width)))

    is_real_RL = torch.arange(num_places) < torch.tensor(lengths, dtype=torch.int64)[:, None]
    age_ms_RL = torch.from_numpy(np.sort(rng.integers(1, 1_000, (num_requests, num_places)), axis=1))
    return SequenceInputs(
        item_RLW=drawn(num_requests, num_places),
        action_RLW=drawn(num_requests, num_places),
        age_ms_RL=age_ms_RL * is_real_RL,
        is_real_RL=is_real_RL,
        user_RW=drawn(num_requests),
        request_index_B=torch.tensor(request_index, dtype=torch.int64),
        candidate_BW=drawn(len(request_index)),
    )


def reordered(sequence: SequenceInputs, order: Tensor) -> SequenceInputs:
    """Returns the histories with their actions in another order."""
    names = ("item_RLW", "action_RLW", "age_ms_RL", "is_real_RL")
    return dataclasses.replace(sequence, **{name: getattr(sequence, name)[:, order] for name in names})


def visible_actions(sequence: SequenceInputs, row: int, *, at_least_ms: float = 0.0) -> list[tuple[Tensor, Tensor]]:
    """Returns the (action, item) embeddings that a row may see, newest first; none is younger than `at_least_ms`."""
    r = int(sequence.request_index_B[row])
    return [
        (sequence.action_RLW[r, place], sequence.item_RLW[r, place])
        for place in range(sequence.is_real_RL.shape[1])
        if sequence.is_real_RL[r, place] and sequence.age_ms_RL[r, place] >= at_least_ms
    ]
