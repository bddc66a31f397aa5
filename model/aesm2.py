"""AESM2: experts selected per row, for its scenario and then for each task (Zou et al., SIGIR 2022, arXiv 2205.14321).

    scenario layers   u <- layer(u, context Emb(scenario)) of the row's scenario among all,   u = x at first
    task layer        u_t = layer(u, context [Emb(scenario), Emb(task)]) of task t among all
    tower             z_t = Tower_it(u_t), each scenario's own
    loss              delta times the sum of the layers' divergences is added

The layer is `model.expert_selection`. Departures: one task layer, as what a second sees would differ by task, at the
cost of all its experts once per task. Noise is off by default, as dropout is where every example is seen once.

The selection has no gradient except through g and the divergences: watch for dead experts in `gate_usage`.

Letters: B rows, T tasks, n experts, d width of u, e embedding width, C = d + e, Q queries per row, K experts of a gate.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from model.expert_selection import Selected, Selection, SelectionLayer
from model.gate_usage import GateUsage, usage_of_tasks
from model.inputs import RowInputs
from model.network import Network, NetworkInputs, NetworkShape, scenario_slices
from model.network_config import check_counts
from model.scenario_embedding import ScenarioEmbedding, embed_scenarios
from model.scenario_towers import ScenarioTowers
from model.seeding import Drawn, draw_uniform, initialise


@dataclass(frozen=True, slots=True, kw_only=True)
class AESM2Config:
    """Widths, counts and selection. The default has 0.68 M parameters at D = 320, three scenarios and two tasks."""

    num_experts: int = 10
    """Experts of a layer; at least 1."""
    num_specific: int = 3
    """Experts selected as the row's scenario's or task's; 1 to `num_experts`."""
    num_shared: int = 3
    """Experts selected as everybody's; 1 to `num_experts`. One may be selected as both."""
    scenario_layers: int = 1
    """Scenario layers before the task layer; at least 1."""
    expert_hidden: int = 128
    """Hidden width of an expert; at least 1."""
    expert_width: int = 64
    """Output width of an expert; at least 1."""
    embedding: int = 16
    """Width of the scenario and task embeddings that the gates see; at least 1."""
    tower: tuple[int, ...] = (32,)
    """Hidden widths of a tower."""
    divergence_weight: float = 0.01
    """delta: weight in the loss of how far the selected experts are from belonging to one, or to all; at least 0."""
    noise: float = 0.0
    """Standard deviation of the noise on gate logits in training; at least 0."""

    def __post_init__(self) -> None:
        check_counts(self)
        for name in ("num_specific", "num_shared"):
            if getattr(self, name) > self.num_experts:
                raise ValueError(
                    f"{name}: {getattr(self, name)} is not allowed; at most num_experts, {self.num_experts}"
                )
        for name in ("divergence_weight", "noise"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise ValueError(f"{name}: {getattr(self, name)} is not allowed; finite, at least 0")


class TaskEmbeddings(Drawn):
    """A learnt row per task, [T, e]."""

    def __init__(self, num_tasks: int, width: int) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.empty(num_tasks, width))

    def draw(self, generator_of: Callable[[str], torch.Generator]) -> None:
        """Draws within -1 and 1."""
        draw_uniform(self.rows, 1, generator_of("rows"))


class AESM2(Network):
    """The whole network; C is what the scenario layers make of x, and Emb(scenario).

    It cannot grow: every selection compares all scenarios, so a new one would change what the others get.
    """

    cannot_grow = (
        "architecture: aesm2 is not allowed with a new scenario; it compares all scenarios, so a new one changes the"
        " scores of the others"
    )

    def __init__(self, config: AESM2Config, shape: NetworkShape, *, seed: int | None) -> None:
        """With `seed` None the parameters are left undrawn, to be loaded."""
        super().__init__(shape, representation_width=config.expert_width + config.embedding)
        self._config = config
        self.scores_as_it_learns = config.noise == 0
        self._divergences: list[Tensor] = []
        self._noise: torch.Generator | None = None
        num_scenarios, num_tasks = shape.num_scenarios, shape.num_tasks
        widths = [shape.width] + [config.expert_width] * (config.scenario_layers - 1)
        layer = partial(
            SelectionLayer,
            Selection(
                num_experts=config.num_experts,
                num_specific=config.num_specific,
                num_shared=config.num_shared,
                noise=config.noise,
            ),
            hidden=config.expert_hidden,
            out=config.expert_width,
        )
        self.scenario_layers = nn.ModuleList(
            layer(width, num_alternatives=num_scenarios, context=config.embedding) for width in widths
        )
        self.task_layer = layer(config.expert_width, num_alternatives=num_tasks, context=2 * config.embedding)
        self.embeddings = nn.ModuleList(ScenarioEmbedding(config.embedding) for _ in range(num_scenarios))
        self.task_embeddings = TaskEmbeddings(num_tasks, config.embedding)
        self.towers = ScenarioTowers(num_scenarios, num_tasks, config.expert_width, config.tower)
        if seed is not None:
            initialise(self, seed)

    def scenario_lists(self) -> list[nn.ModuleList]:
        """Returns embeddings and towers; gates are of all scenarios, in one bank."""
        return [self.embeddings, self.towers]

    def start_at(self, task: int, prior: float) -> None:
        """Makes a task's logits start near the logit of `prior`, a probability, in every scenario."""
        self.towers.start_at(task, prior)

    def representation(self, inputs: NetworkInputs) -> Tensor:
        """Returns what the scenario layers make of the rows and their Emb(scenario), [B, C]."""
        embedding_Be = embed_scenarios(self.embeddings, inputs.row_offsets)
        layers = self._scenario_layers(inputs, embedding_Be)
        self._noise = inputs.noise  # for the task layer, whose forward is the second half of this one
        if inputs.noise is not None:
            self._divergences = [layer.divergence for layer in layers]
        return torch.cat([layers[-1].out_QBd[0], embedding_Be], dim=1)

    def task_logits(self, c_BC: Tensor, row_offsets: Sequence[int]) -> Tensor:
        """Returns the logits, [B, T], from what `representation` returned."""
        noise, self._noise = self._noise, None
        selected = self._task_layer(c_BC, noise)
        if noise is not None:
            self._divergences.append(selected.divergence)
        logits_BT: Tensor = self.towers(selected.out_QBd, row_offsets)
        return logits_BT

    def auxiliary_loss(self) -> Tensor | None:
        """Returns delta times the divergences of the last training forward."""
        return self._config.divergence_weight * torch.stack(self._divergences).sum() if self._divergences else None

    def after_step(self) -> None:
        """Forgets the divergences, and with them the graph they hold."""
        self._divergences = []

    def gate_usage(self, inputs: NetworkInputs) -> list[GateUsage]:
        """Returns the weights of every expert, row by row: zero where it was not selected."""
        embedding_Be = embed_scenarios(self.embeddings, inputs.row_offsets)
        layers = self._scenario_layers(inputs, embedding_Be)
        tasks = self._task_layer(torch.cat([layers[-1].out_QBd[0], embedding_Be], dim=1), None)
        usage = []
        for scenario, start, stop in scenario_slices(inputs.row_offsets):
            for number, layer in enumerate(layers):
                weight_Bn = layer.weight_BQn[start:stop, 0]
                usage.append(
                    GateUsage(gate=f"scenario_layer.{number}", scenario=scenario, task=None, weight_BK=weight_Bn)
                )
            usage += usage_of_tasks("task_layer", scenario, tasks.weight_BQn[start:stop])
        return usage

    def _scenario_layers(self, inputs: NetworkInputs, embedding_Be: Tensor) -> list[Selected]:
        own_BQ = torch.empty(len(embedding_Be), 1, dtype=torch.int64, device=embedding_Be.device)
        for scenario, start, stop in scenario_slices(inputs.row_offsets):
            own_BQ[start:stop] = scenario
        selected: list[Selected] = []
        for layer in self.scenario_layers:
            x = RowInputs(selected[-1].out_QBd[0]) if selected else inputs.x
            selected.append(layer(x, embedding_Be[:, None], own_BQ, inputs.noise))
        return selected

    def _task_layer(self, c_BC: Tensor, noise: torch.Generator | None) -> Selected:
        num_rows, num_tasks = len(c_BC), self.shape.num_tasks
        out_Bd, embedding_Be = torch.split(c_BC, [self._config.expert_width, self._config.embedding], dim=1)
        scenario_BTe = embedding_Be[:, None].expand(-1, num_tasks, -1)
        task_BTe = self.task_embeddings.rows.expand(num_rows, -1, -1)
        own_BT = torch.arange(num_tasks, device=c_BC.device).expand(num_rows, -1)
        selected: Selected = self.task_layer(
            RowInputs(out_Bd), torch.cat([scenario_BTe, task_BTe], dim=2), own_BT, noise
        )
        return selected
