"""Position bias: a shallow tower beside the network, in training only (NetEase Yanxuan's and YouTube's rankers).

    training   z = z_main + z_bias,   z_bias = W relu(p + s + V c);   0 where nothing was shown (position -1)
               p: a row per position, s: one per scenario, V c: of a block of the context, each left out at times
    serving    z = z_main + a constant per scenario and task: with it the mean of sigma(z) is that of
               sigma(z_main + z_bias) over the learned rows

So served probabilities stay calibrated on average over the positions that were shown, and the order is that of z_main.
(The mean of z_bias as the constant does not do it: with a curve of two logits it served 10 % too few clicks.) The
constant is a running mean of one Newton step per batch from where it stands.

The tower sees nothing of the item or the user: it would take over relevance. A feature left out is zero and the others
are not scaled up for it, so that what the tower says with all of them is not shrunk.

Letters: B rows, M scenarios, T tasks, W block width, H hidden width, C width of the representation.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.network import Network, NetworkInputs, NetworkShape, of_each_row, scenario_slices
from model.network_around import NetworkAround
from model.network_config import check_counts
from model.scenario_embedding import ScenarioEmbedding, embed_scenarios
from model.seeding import Drawn, draw_uniform, initialise


@dataclass(frozen=True, slots=True, kw_only=True)
class PositionBiasConfig:
    """The tower that takes the effect of the position off the network."""

    max_position: int = 50
    """Positions from here on are one; at least 1."""
    hidden: int = 64
    """Hidden width; a wide one learns the curve faster, and costs next to nothing; at least 1."""
    context: str | None = None
    """A context feature that the effect of a position differs by, for example `context.device`; absent: none."""
    dropout: float = 0.1
    """Share of the rows in which a training forward leaves out the position, and likewise the scenario and the context;
    at least 0 and below 1."""
    half_life_rows: float = 20_000.0
    """Rows after which a row counts half in the constant that serving adds; greater than 0."""

    def __post_init__(self) -> None:
        check_counts(self)
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: {self.dropout} is not allowed; at least 0 and below 1")
        if not self.half_life_rows > 0:
            raise ValueError(f"half_life_rows: {self.half_life_rows} is not allowed; greater than 0")
        if self.context is not None and not self.context.startswith("context."):
            raise ValueError(f"context: {self.context} is not allowed; context.<feature>")


class PositionTower(Drawn):
    """Logits of each row's position in its scenario, [B, T].

    Raises:
        ValueError: the context feature is no field of the model.
    """

    rows_M: Tensor

    def __init__(self, config: PositionBiasConfig, shape: NetworkShape, *, seed: int | None) -> None:
        """With `seed` None the parameters are left undrawn, to be loaded."""
        super().__init__()
        self._config = config
        self._columns = (
            None if config.context is None else shape.columns(config.context, setting="position_bias.context")
        )
        self.position = nn.Parameter(torch.empty(config.max_position + 1, config.hidden))
        self.scenarios = nn.ModuleList(
            ScenarioEmbedding(config.hidden, fan_in=config.hidden) for _ in range(shape.num_scenarios)
        )
        self.context = None
        if config.context is not None:
            self.context = nn.Parameter(torch.empty(config.hidden, shape.block_width))
        self.out = nn.Parameter(torch.empty(shape.num_tasks, config.hidden))
        self.register_buffer("rows_M", torch.zeros(shape.num_scenarios))
        if seed is not None:
            initialise(self, seed)

    def forward(self, inputs: NetworkInputs, noise: torch.Generator | None) -> Tensor:
        """Returns z_bias; with `noise` features are left out as in a training forward."""
        assert inputs.position_B is not None
        position_B = inputs.position_B.clamp(0, self._config.max_position)
        features = [F.embedding(position_B, self.position), embed_scenarios(self.scenarios, inputs.row_offsets)]
        if self.context is not None:
            features.append(F.linear(inputs.x.whole()[:, self._columns].detach(), self.context))
        if noise is not None and self._config.dropout:
            features = [self._left_out(feature_BH, noise) for feature_BH in features]
        z_BT = F.linear(F.relu(torch.stack(features).sum(dim=0)), self.out)
        return torch.where(inputs.position_B[:, None] >= 0, z_BT, 0.0)

    def _left_out(self, feature_BH: Tensor, noise: torch.Generator) -> Tensor:
        is_kept_B1 = torch.rand(len(feature_BH), 1, generator=noise) >= self._config.dropout
        return feature_BH * is_kept_B1.to(feature_BH.device)

    def shares_of_batch(self, num_rows_M: Tensor) -> Tensor:
        """Returns how much each scenario's new rows count in its running mean, [M]; 0 for no rows.

        A cumulative mean for the first half-life, exponential from then on.
        """
        decay_M = 1.0 - 2.0 ** (-num_rows_M / self._config.half_life_rows)
        return torch.maximum(decay_M, num_rows_M / (self.rows_M + num_rows_M).clamp_min(1.0))

    def draw(self, generator_of: Callable[[str], torch.Generator]) -> None:
        """Draws all rows of the hidden layer alike, and the output."""
        for name in ("position", "context", "out"):
            if getattr(self, name) is not None:
                draw_uniform(getattr(self, name), self._config.hidden, generator_of(name))


class PositionBiased(NetworkAround):
    """A network whose training logits have a position's effect added, and whose own logits a constant for it."""

    constant_MT: Tensor

    def __init__(self, network: Network, shape: NetworkShape, tower: PositionTower | None) -> None:
        """Without a tower it can only serve."""
        super().__init__(network, shape)
        self.tower = tower
        self.register_buffer("constant_MT", torch.zeros(network.num_scenarios, shape.num_tasks))
        self._learned: tuple[Tensor, Tensor] | None = None

    def task_logits(self, c_BC: Tensor, row_offsets: Sequence[int]) -> Tensor:
        """Returns the inner network's plus the constants, [B, T]."""
        return self.network.task_logits(c_BC, row_offsets) + of_each_row(self.constant_MT, row_offsets)

    def all_head_logits(self, c_BC: Tensor) -> Tensor:
        """Returns the inner network's plus the constants, [B, M, T]."""
        return self.network.all_head_logits(c_BC) + self.constant_MT

    def position_bias(self, inputs: NetworkInputs, logits_BT: Tensor) -> Tensor:
        """Returns what a training forward adds to `task_logits`: z_bias without the constant that is in there."""
        assert self.tower is not None
        constants_BT = of_each_row(self.constant_MT, inputs.row_offsets)
        with torch.no_grad():
            p_BT = logits_BT.sigmoid()
            gap_BT = (logits_BT + self.tower(inputs, None) - constants_BT).sigmoid() - p_BT
            num_rows_M, step_MT = torch.zeros_like(self.tower.rows_M), torch.zeros_like(self.constant_MT)
            for i, start, stop in scenario_slices(inputs.row_offsets):
                slope_T = (p_BT * (1.0 - p_BT))[start:stop].sum(dim=0)
                step_MT[i] = (gap_BT[start:stop].sum(dim=0) / slope_T.clamp_min(1e-9)).clamp(-1.0, 1.0)
                num_rows_M[i] = stop - start
        self._learned = step_MT, num_rows_M
        bias_BT: Tensor = self.tower(inputs, inputs.noise)
        return bias_BT - constants_BT

    def after_step(self) -> None:
        """Takes the last training forward's rows into the constants."""
        super().after_step()
        assert self.tower is not None and self._learned is not None
        step_MT, num_rows_M = self._learned
        self.constant_MT += self.tower.shares_of_batch(num_rows_M)[:, None] * step_MT
        self.tower.rows_M += num_rows_M

    def own_lists(self) -> list[nn.ModuleList]:
        """Returns the tower's."""
        return [] if self.tower is None else [self.tower.scenarios]

    def add_scenario(self, donor: int) -> int:
        """Adds a scenario that starts as a copy of `donor`, its constants too. Returns its index."""
        index = super().add_scenario(donor)
        self.constant_MT = torch.cat([self.constant_MT, self.constant_MT[donor : donor + 1]])
        if self.tower is not None:
            self.tower.rows_M = torch.cat([self.tower.rows_M, self.tower.rows_M[donor : donor + 1]])
        return index

    def for_serving(self) -> Network:
        """Returns the same network without the tower."""
        served = PositionBiased(self.network.for_serving(), self.shape, None)
        served.constant_MT = self.constant_MT
        return served
