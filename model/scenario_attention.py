"""HiNet's scenario-aware attention (SAN): what a scenario takes from the others, by its embedding alone.

    z_i = W_a Emb(i) + b_a,   n_im = rho_im exp(z_im),   a_im = r_i n_im / sum_m n_im (0 where the sum is 0)

rho_im in [0, 1] says how far scenario m is admitted to the rows of scenario i (rho_ii = 0), and r_i = max_m rho_im.
With rho = 1 off the diagonal this is the published softmax over the M-1 others; M = 1 gives 0, M = 2 gives 1.

As code it is r_i softmax(z_i + log rho_i), with a finite log of 0 that the softmax makes an exact 0 of. The table is
computed at a fixed size, rho = 0 outside the M scenarios there are: kernels sum in another order for another size, and
a new scenario must not move the old ones by a bit. Letters: M scenarios, N = capacity, e width.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.scenario_admission import foreign_admission
from model.seeding import Drawn, draw_layers, draw_uniform
from model.sei import GateActivation, activated

SanSoftmax = Literal["others", "all_then_zero"]
SanGate = Literal["linear", "relu_bottleneck"]

_LOG_OF_0 = -1e30


class ScenarioAttention(Drawn):
    """The table a_MM and the scenarios' admission to it."""

    log_rho_NN: Tensor
    reach_N1: Tensor
    share_N: Tensor
    donor_N: Tensor

    def __init__(
        self,
        num_scenarios: int,
        width: int,
        *,
        capacity: int = 64,
        softmax: SanSoftmax = "others",
        gate: SanGate = "linear",
        gate_activation: GateActivation = "none",
    ) -> None:
        """Beyond `capacity` scenarios the table takes a multiple of it."""
        super().__init__()
        self.num_scenarios = num_scenarios
        self._step = capacity
        self._softmax, self._gate_activation = softmax, gate_activation
        size = -(-num_scenarios // capacity) * capacity
        self.bottleneck = Bottleneck(width) if gate == "relu_bottleneck" else None
        self.embedding = nn.Parameter(torch.empty(size, width))
        self.weight = nn.Parameter(torch.empty(size, width if self.bottleneck is None else 1))
        self.bias = nn.Parameter(torch.empty(size))
        is_live_N = torch.arange(size) < num_scenarios
        self.register_buffer("share_N", is_live_N.float())
        self.register_buffer("donor_N", torch.full((size,), -1))
        self.register_buffer("log_rho_NN", torch.zeros(size, size))
        self.register_buffer("reach_N1", torch.zeros(size, 1))
        self._set_rho()

    def forward(self) -> Tensor:
        """Returns a_MM: row i holds scenario i's weights of the scenarios m; its diagonal is zero."""
        input_Ne = self.embedding if self.bottleneck is None else self.bottleneck(self.embedding)
        z_NN = activated(F.linear(input_Ne, self.weight, self.bias), self._gate_activation)
        a_NN = self.reach_N1 * (z_NN + self.log_rho_NN).softmax(dim=1)
        if self._softmax == "all_then_zero":
            a_NN = a_NN.fill_diagonal_(0.0)
        return a_NN[: self.num_scenarios, : self.num_scenarios]

    def add_scenario(self, donor: int) -> None:
        """Adds a scenario that sees what `donor` sees, and that nobody sees yet."""
        index = self.num_scenarios
        if index == len(self.bias):
            self._reallocate()
        with torch.no_grad():
            for parameter in (self.embedding, self.weight, self.bias):
                parameter[index] = parameter[donor]
        self.share_N[index], self.donor_N[index] = 0.0, donor
        self.num_scenarios += 1
        self._set_rho()

    def open_scenario(self, index: int, share: float) -> None:
        """Admits a scenario to the rows of the others, and its donor to its own, by `share`, from 0 to 1.

        Raises:
            ValueError: the share is not one, or there is no such scenario.
        """
        if not 0.0 <= share <= 1.0:
            raise ValueError(f"share: {share} is not allowed; from 0 to 1")
        if not 0 <= index < self.num_scenarios:
            raise ValueError(f"index: {index} is not allowed; 0 to {self.num_scenarios - 1}")
        self.share_N[index] = share
        self._set_rho()

    def _set_rho(self) -> None:
        """Sets rho from shares and donors; the softmax over all scenarios sees the own one too."""
        live = slice(self.num_scenarios)
        rho_NN = torch.zeros_like(self.log_rho_NN)
        rho_NN[live, live] = foreign_admission(self.share_N[live], self.donor_N[live])
        if self._softmax == "all_then_zero":
            rho_NN.diagonal().copy_(self.share_N)
        self.reach_N1.copy_(rho_NN.amax(dim=1, keepdim=True))
        self.log_rho_NN.copy_(rho_NN.log().clamp_min(_LOG_OF_0))

    def _reallocate(self) -> None:
        """Makes room for more scenarios; the parameters are new ones then."""
        for name in ("embedding", "weight", "bias"):
            old = getattr(self, name).detach()
            setattr(self, name, nn.Parameter(torch.cat([old, old.new_zeros(self._step, *old.shape[1:])])))
        self.share_N = F.pad(self.share_N, (0, self._step))
        self.donor_N = F.pad(self.donor_N, (0, self._step), value=-1)
        self.log_rho_NN = F.pad(self.log_rho_NN, (0, self._step, 0, self._step))
        self.reach_N1 = F.pad(self.reach_N1, (0, 0, 0, self._step))

    def draw(self, generator_of: Callable[[str], torch.Generator]) -> None:
        """Draws embedding and weights of the scenarios there are; the gate's bias is zero, and so is the free room."""
        for name, fan_in in (("embedding", 1), ("weight", self.weight.shape[1])):
            parameter = getattr(self, name)
            parameter[self.num_scenarios :] = 0.0
            draw_uniform(parameter[: self.num_scenarios], fan_in, generator_of(name))
        self.bias.zero_()


class Bottleneck(Drawn):
    """The released code's way to the attention's logits: e -> 2 e -> e -> 1, a ReLU after each layer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        widths = (width, 2 * width, width, 1)
        self.weights = nn.ParameterList(
            torch.empty(out, fan_in) for fan_in, out in zip(widths, widths[1:], strict=False)
        )
        self.biases = nn.ParameterList(torch.empty(out) for out in widths[1:])

    def forward(self, embedding_Ne: Tensor) -> Tensor:
        """Returns the one unit, [N, 1]."""
        hidden = embedding_Ne
        for weight, bias in zip(self.weights, self.biases, strict=True):
            hidden = F.relu(F.linear(hidden, weight, bias))
        return hidden

    def draw(self, generator_of: Callable[[str], torch.Generator]) -> None:
        """Draws the layers."""
        draw_layers(self.weights, self.biases, generator_of)
