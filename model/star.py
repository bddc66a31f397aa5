"""STAR: one shared network, and factors of it per domain (Sheng et al., CIKM 2021, arXiv 2101.11427, Eq. 1-8).

    star   u <- relu((W W_p) u + b + b_p), u = PN(x) at first; W W_p element by element; no relu after the last layer
    z      = star + auxiliary network on [x, Emb(p)], two layers shared by all domains

A domain is a scenario; PN is `model.partitioned_norm`. Where the paper is silent: W_p starts at 1 and b_p at 0, so that
the star layers start as one shared network; the last star layer and the auxiliary network have one output per task.

Letters: B rows, C width of [last hidden layer, auxiliary hidden layer], T tasks, D input width, N rows of one scenario.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.network import Network, NetworkInputs, NetworkShape, scenario_slices
from model.network_config import check_counts
from model.partitioned_norm import PartitionedNorm
from model.scenario_embedding import ScenarioEmbedding, embed_scenarios
from model.seeding import Drawn, draw_layers, initialise


@dataclass(frozen=True, slots=True, kw_only=True)
class STARConfig:
    """Widths and statistics. The default has 0.72 M parameters at D = 320, three scenarios and two tasks."""

    layers: tuple[int, ...] = (384, 128)
    """Hidden widths of the star layers; at least one."""
    auxiliary_hidden: int = 64
    """Hidden width of the auxiliary network; at least 1."""
    scenario_embedding: int = 16
    """Width of the scenario embedding that the auxiliary network sees; at least 1."""
    pn_min_rows: int = 16
    """Rows of a scenario in a micro-batch from which on they are normalised by their own statistics; at least 2."""
    momentum: float = 0.1
    """Share of a micro-batch in the running statistics; above 0, at most 1."""

    def __post_init__(self) -> None:
        check_counts(self)
        if not self.layers:
            raise ValueError("layers: () is not allowed; at least one")
        if self.pn_min_rows < 2:
            raise ValueError(f"pn_min_rows: {self.pn_min_rows} is not allowed; at least 2")
        if not 0 < self.momentum <= 1:
            raise ValueError(f"momentum: {self.momentum} is not allowed; above 0, at most 1")


class Layers(Drawn):
    """Weights, [out, in], and biases of consecutive layers."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        shapes = [(out, fan_in) for fan_in, out in zip(widths, widths[1:], strict=False)]
        self.weights = nn.ParameterList(torch.empty(shape) for shape in shapes)
        self.biases = nn.ParameterList(torch.empty(out) for out, _ in shapes)

    def layer(self, index: int, input_Bd: Tensor, factors: "Layers | None" = None) -> Tensor:
        """Returns one layer's output; with `factors` of it, that of a domain."""
        weight, bias = self.weights[index], self.biases[index]
        if factors is not None:
            weight, bias = weight * factors.weights[index], bias + factors.biases[index]
        return F.linear(input_Bd, weight, bias)

    def draw(self, generator_of: Callable[[str], torch.Generator]) -> None:
        """Draws the layers."""
        draw_layers(self.weights, self.biases, generator_of)


class Factors(Layers):
    """One domain's W_p and b_p; at first they change nothing."""

    def draw(self, generator_of: Callable[[str], torch.Generator]) -> None:
        """Sets W_p = 1, b_p = 0."""
        for weight, bias in zip(self.weights, self.biases, strict=True):
            weight.fill_(1.0)
            bias.zero_()


class STAR(Network):
    """The whole network; C is the last hidden star layer and the auxiliary network's hidden layer."""

    scores_as_it_learns = False

    def __init__(self, config: STARConfig, shape: NetworkShape, *, seed: int | None) -> None:
        """With `seed` None the parameters are left undrawn, to be loaded."""
        super().__init__(shape, representation_width=config.layers[-1] + config.auxiliary_hidden)
        self._config = config
        widths, num_scenarios = [shape.width, *config.layers, shape.num_tasks], shape.num_scenarios
        self.norm = PartitionedNorm(num_scenarios, shape.width, min_rows=config.pn_min_rows, momentum=config.momentum)
        self.star = Layers(widths)
        self.factors = nn.ModuleList(Factors(widths) for _ in range(num_scenarios))
        self.embeddings = nn.ModuleList(ScenarioEmbedding(config.scenario_embedding) for _ in range(num_scenarios))
        self.auxiliary = Layers([shape.width + config.scenario_embedding, config.auxiliary_hidden, shape.num_tasks])
        if seed is not None:
            initialise(self, seed)

    def scenario_lists(self) -> list[nn.ModuleList]:
        """Returns the norms' parameters and statistics, the factors and the embeddings."""
        return [self.norm.scenarios, self.norm.statistics, self.factors, self.embeddings]

    def representation(self, inputs: NetworkInputs) -> Tensor:
        """Returns the last hidden layers, [B, C]; a training forward normalises by the rows' statistics."""
        x_BD, row_offsets = inputs.x.whole(), inputs.row_offsets
        u_Bd = self.norm(x_BD, row_offsets, learns=inputs.noise is not None)
        parts = [x_BD.new_empty(0, self._config.layers[-1])]
        for scenario, start, stop in scenario_slices(row_offsets):
            u_Nd = u_Bd[start:stop]
            for index in range(len(self._config.layers)):
                u_Nd = F.relu(self.star.layer(index, u_Nd, self._factors(scenario)))
            parts.append(u_Nd)
        known_BD = torch.cat([x_BD, embed_scenarios(self.embeddings, row_offsets)], dim=1)
        return torch.cat([torch.cat(parts), F.relu(self.auxiliary.layer(0, known_BD))], dim=1)

    def task_logits(self, c_BC: Tensor, row_offsets: Sequence[int]) -> Tensor:
        """Returns the logits, [B, T], from what `representation` returned."""
        last = len(self._config.layers)
        u_Bd, hidden_Bh = torch.split(c_BC, [self._config.layers[-1], self._config.auxiliary_hidden], dim=1)
        logits = [c_BC.new_empty(0, self.shape.num_tasks)]
        for scenario, start, stop in scenario_slices(row_offsets):
            logits.append(self.star.layer(last, u_Bd[start:stop], self._factors(scenario)))
        return torch.cat(logits) + self.auxiliary.layer(1, hidden_Bh)

    def after_step(self) -> None:
        """Moves the running statistics towards those of the last training forward."""
        self.norm.commit()

    def start_at(self, task: int, prior: float) -> None:
        """Makes a task's logits start near the logit of `prior`, a probability, in every scenario."""
        with torch.no_grad():
            self.star.biases[-1][task] = math.log(prior / (1 - prior))
            self.auxiliary.biases[-1][task] = 0.0
            for scenario in range(self.num_scenarios):
                self._factors(scenario).biases[-1][task] = 0.0

    def _factors(self, scenario: int) -> Factors:
        factors = self.factors[scenario]
        assert isinstance(factors, Factors)
        return factors
