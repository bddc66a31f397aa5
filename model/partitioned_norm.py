"""Partitioned normalisation: every scenario by its own statistics (Sheng et al., CIKM 2021, Eq. 1-2).

    z' = gamma gamma_p (x - mu_p) / sqrt(var_p + eps) + beta + beta_p

mu_p and var_p are the rows' of scenario p in a learning forward, running ones otherwise. A scenario with fewer than
`min_rows` rows is normalised by its running statistics also when it learns, and these do not move then. They move by
`momentum`, but are the plain mean of the first 1 / momentum updates (0 and 1 before the first), so that a rare scenario
does not wait long for statistics of its own; only `commit` moves them.

Letters: B rows, D width, N rows of one scenario.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.network import scenario_slices
from model.seeding import Drawn

EPSILON = 1e-5


class Affine(Drawn):
    """Scale and shift, [D]; they start as one and zero."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.empty(width))
        self.beta = nn.Parameter(torch.empty(width))

    def draw(self, generator_of: Callable[[str], torch.Generator]) -> None:
        """Sets one and zero."""
        self.gamma.fill_(1.0)
        self.beta.zero_()


class RunningStatistics(nn.Module):
    """Mean and unbiased variance of one scenario's rows, [D]."""

    mean: Tensor
    var: Tensor
    num_updates: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("var", torch.ones(width))
        self.register_buffer("num_updates", torch.zeros((), dtype=torch.int64))

    def update(self, mean: Tensor, var: Tensor, momentum: float) -> None:
        """Moves them towards a micro-batch's."""
        self.num_updates += 1
        share = (1.0 / self.num_updates.to(self.mean.dtype)).clamp_min(momentum)
        self.mean += share * (mean - self.mean)
        self.var += share * (var - self.var)


class PartitionedNorm(nn.Module):
    """x, rows sorted by scenario -> normalised x, [B, D]."""

    def __init__(self, num_scenarios: int, width: int, *, min_rows: int, momentum: float) -> None:
        super().__init__()
        self._min_rows, self._momentum = min_rows, momentum
        self._pending: list[tuple[int, Tensor, Tensor]] = []
        self.shared = Affine(width)
        self.scenarios = nn.ModuleList(Affine(width) for _ in range(num_scenarios))
        self.statistics = nn.ModuleList(RunningStatistics(width) for _ in range(num_scenarios))

    def forward(self, x_BD: Tensor, row_offsets: Sequence[int], *, learns: bool) -> Tensor:
        """Returns the normalised rows; a learning forward keeps their statistics for `commit`."""
        if learns:
            self._pending = []
        parts = [x_BD[:0]]
        for scenario, start, stop in scenario_slices(row_offsets):
            own, running = self.scenarios[scenario], self.statistics[scenario]
            assert isinstance(own, Affine) and isinstance(running, RunningStatistics)
            mean, var = running.mean, running.var
            by_rows = learns and stop - start >= self._min_rows
            if by_rows:  # with momentum 1 these become the rows' own
                mean, var = torch.zeros_like(mean), torch.zeros_like(var)
                self._pending.append((scenario, mean, var))
            gamma, beta = self.shared.gamma * own.gamma, self.shared.beta + own.beta
            rows_ND = x_BD[start:stop]
            parts.append(F.batch_norm(rows_ND, mean, var, gamma, beta, by_rows, momentum=1.0, eps=EPSILON))
        return torch.cat(parts)

    def commit(self) -> None:
        """Moves the running statistics towards those of the last learning forward, once."""
        for scenario, mean, var in self._pending:
            running = self.statistics[scenario]
            assert isinstance(running, RunningStatistics)
            running.update(mean, var, self._momentum)
        self._pending = []
