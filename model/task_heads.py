"""Auxiliary heads of one task: what some label policies must know about its delays before they can weigh a row.

One small tower on the network's representation C, with four outputs:

| output | estimates | learned from settled rows | as |
|---|---|---|---|
| `late` | P(y=1, later than the early look) | all | cross-entropy |
| `negative` | P(y=0, given not positive at the early look) | all but early positives | cross-entropy |
| `seen` | P(at the early look already, given y=1) | positives | cross-entropy |
| `rate` | lambda per hour of exponential delays within W | positives | -ln lambda + lambda d + ln(1 - e^(-lambda W)) |

C comes in as a plain tensor, so no gradient can leave for the trunk; the optimiser is their own. Each output is an
offset, the running base rate, plus what the tower adds to it: right on average from the first rows on.

Letters: N rows of the task, H hidden units, M scenarios.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.delayed_labels import Float32Array
from model.label_policy import ESTIMATES, Estimate
from model.metrics import Int64Array
from model.seeding import Drawn, draw_uniform, named_generator
from stream.schema import PolicyName

HIDDEN = 32
CHUNK_ROWS = 64
"""Settled rows per step of the heads: they must learn from few."""
AVERAGED_STEPS = 200
"""Steps whose weights the estimates are a mean of."""
_LATE, _NEGATIVE, _SEEN, _RATE = range(4)
_HOUR_MS = 3_600_000.0
_MAX_LOG_RATE = 10.0
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


class AuxiliaryTower(Drawn):
    """[C, one of M scenarios] -> what is added to the four offsets, [B, 4]; zero at first."""

    def __init__(self, width: int, num_scenarios: int) -> None:
        super().__init__()
        self.num_scenarios = num_scenarios
        self.hidden_weight = nn.Parameter(torch.empty(HIDDEN, width + num_scenarios))
        self.hidden_bias = nn.Parameter(torch.empty(HIDDEN))
        self.out_weight = nn.Parameter(torch.zeros(4, HIDDEN))
        self.out_bias = nn.Parameter(torch.zeros(4))

    def forward(self, c_BC: Tensor, scenario_B: Tensor) -> Tensor:
        """Returns the additions, [B, 4]."""
        scenario_BM = F.one_hot(scenario_B, self.num_scenarios).to(c_BC.dtype)
        hidden_BH = F.relu(F.linear(torch.cat([c_BC, scenario_BM], dim=1), self.hidden_weight, self.hidden_bias))
        return F.linear(hidden_BH, self.out_weight, self.out_bias)

    def add_scenario(self, donor: int) -> None:
        """Gives one more scenario the weights of `donor`; `hidden_weight` is a new parameter then."""
        self.hidden_weight = nn.Parameter(_with_scenario(self.hidden_weight.detach(), self.num_scenarios, donor))
        self.num_scenarios += 1

    def draw(self, generator_of: Callable[[str], torch.Generator]) -> None:
        """Draws the hidden layer; the output layer stays zero."""
        fan_in = self.hidden_weight.shape[1]
        draw_uniform(self.hidden_weight, fan_in, generator_of("hidden_weight"))
        draw_uniform(self.hidden_bias, fan_in, generator_of("hidden_bias"))


def _with_scenario(weight_HN: Tensor, num_scenarios: int, donor: int) -> Tensor:
    """Returns hidden weights with the column of `donor`, one of the last `num_scenarios`, once more at the end."""
    return torch.cat([weight_HN, weight_HN[:, donor - num_scenarios, None]], dim=1)


@dataclass(frozen=True, slots=True)
class SettledRows:
    """Settled rows of one task, [N]."""

    c_NC: Tensor
    scenario_N: Tensor
    label_N: Float32Array
    weight_N: Float32Array
    delay_ms_N: Int64Array
    observe_ms_N: Int64Array
    window_ms_N: Int64Array
    place_N: Int64Array
    """Place of the row in its micro-batch: the order in which it is learned."""


class TaskHeads:
    """The heads of one task and how far they are."""

    def __init__(self, task: str, width: int, num_scenarios: int, lr: float, seed: int) -> None:
        self.tower = AuxiliaryTower(width, num_scenarios)
        with torch.no_grad():
            # By name, so that a task's heads are drawn the same whenever they come into being.
            self.tower.draw(lambda name: named_generator(seed, f"auxiliary/{task}/{name}"))
        self.average = copy.deepcopy(self.tower).requires_grad_(False)
        """Mean of the tower's last weights: it estimates, or the noise of the last steps would be in every weight."""
        self.num_steps = 0
        self.adam = torch.optim.Adam(self.tower.parameters(), lr=lr, fused=True)
        self.sums_24 = np.zeros((2, 4))
        """Sum of targets (hours of delay for `rate`) and of weights, per output."""
        self.num_positives = 0

    def offsets(self) -> Tensor:
        """Returns the logits of the running base rates, and the log of the running rate, [4]."""
        hits_4, total_4 = self.sums_24
        share_4 = (hits_4 + 0.5) / (total_4 + 1.0)
        offset_4 = np.log(share_4 / np.maximum(1.0 - share_4, 1e-6))
        offset_4[_RATE] = np.log((total_4[_RATE] + 1e-3) / (hits_4[_RATE] + 1e-3))
        return torch.from_numpy(np.clip(offset_4, -_MAX_LOG_RATE, _MAX_LOG_RATE).astype(np.float32))

    def outputs(self, c_NC: Tensor, scenario_N: Tensor) -> Tensor:
        """Returns three logits and the log rate, [N, 4]."""
        return self.average(c_NC, scenario_N) + self.offsets()  # type: ignore[no-any-return] # nn.Module.__call__

    def estimates(
        self, policy: PolicyName, c_NC: Tensor, scenario_N: Tensor, observe_ms_N: Int64Array, window_ms_N: Int64Array
    ) -> dict[Estimate, Float32Array]:
        """Returns what the policy needs for some rows, [N] each."""
        with torch.no_grad():
            out_N4 = self.outputs(c_NC, scenario_N)
            share_N3 = out_N4[:, :_RATE].sigmoid().numpy()
        if policy == "dfm":
            rate_N = np.exp(np.clip(out_N4[:, _RATE].double().numpy(), -_MAX_LOG_RATE, _MAX_LOG_RATE))
            observe_N, window_N = observe_ms_N / _HOUR_MS, window_ms_N / _HOUR_MS
            seen_N = np.expm1(-rate_N * observe_N) / np.expm1(-rate_N * window_N)
            return {"seen": seen_N.astype(np.float32)}
        column: dict[Estimate, int] = {"late": _LATE, "negative": _NEGATIVE, "seen": _SEEN}
        return {name: share_N3[:, column[name]] for name in ESTIMATES[policy]}

    def learn(self, rows: SettledRows) -> bool:
        """Takes steps on settled rows. Returns False, with nothing changed from there on, if one is not finite."""
        is_positive_N = rows.label_N > 0
        is_early_N = is_positive_N & (rows.delay_ms_N <= rows.observe_ms_N)
        target_N3 = np.stack([is_positive_N & ~is_early_N, ~is_positive_N, is_early_N], axis=1).astype(np.float32)
        asked_N4 = np.stack([np.ones_like(is_early_N), ~is_early_N, is_positive_N, is_positive_N], axis=1)
        weight_N4 = torch.from_numpy(asked_N4 * rows.weight_N[:, None])
        delay_N = (np.maximum(rows.delay_ms_N, 0) / _HOUR_MS).astype(np.float32)
        window_N = torch.from_numpy((rows.window_ms_N / _HOUR_MS).astype(np.float32))
        target_N4 = torch.from_numpy(np.concatenate([target_N3, delay_N[:, None]], axis=1))
        self.sums_24 += torch.stack([(weight_N4 * target_N4).sum(dim=0), weight_N4.sum(dim=0)]).numpy()
        self.num_positives += int(is_positive_N.sum())
        offsets = self.offsets()
        for start in range(0, len(rows.label_N), CHUNK_ROWS):
            part = slice(start, start + CHUNK_ROWS)
            out_N4 = self.tower(rows.c_NC[part], rows.scenario_N[part]) + offsets
            loss = _loss(out_N4, target_N4[part], weight_N4[part], window_N[part])
            if not torch.isfinite(loss):
                return False
            self.adam.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call] # torch leaves Tensor.backward untyped
            self.adam.step()
            self.num_steps += 1
            share = max(1.0 / AVERAGED_STEPS, 1.0 / self.num_steps)
            with torch.no_grad():
                torch._foreach_lerp_(list(self.average.parameters()), list(self.tower.parameters()), share)
        return True

    def add_scenario(self, donor: int) -> None:
        """Makes room for one more scenario, which starts as `donor`, moments of the optimiser included."""
        num_scenarios, moments = self.tower.num_scenarios, self.adam.state.pop(self.tower.hidden_weight, None)
        self.tower.add_scenario(donor)
        self.average.add_scenario(donor)
        self.average.requires_grad_(False)
        self.adam.param_groups[0]["params"] = list(self.tower.parameters())
        if moments is not None:
            first = F.pad(moments["exp_avg"], (0, 1))
            second = _with_scenario(moments["exp_avg_sq"], num_scenarios, donor)
            self.adam.state[self.tower.hidden_weight] = moments | {"exp_avg": first, "exp_avg_sq": second}

    def state(self) -> dict[str, Tensor]:
        """Returns all but the two counts `num_steps` and `num_positives`, as copies."""
        tensors = {"sums": torch.from_numpy(self.sums_24.copy())}
        tensors |= {f"average/{key}": tensor.clone() for key, tensor in self.average.state_dict().items()}
        for key, parameter in self.tower.named_parameters():
            tensors[f"tower/{key}"] = parameter.detach().clone()
            for moment, tensor in self.adam.state.get(parameter, {}).items():
                tensors[f"adam/{moment}/{key}"] = tensor.clone()
        return tensors

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Becomes the heads whose `state` is given; the caller sets the counts."""
        self.sums_24 = tensors["sums"].numpy().copy()
        for name, tower in (("tower", self.tower), ("average", self.average)):
            tower.load_state_dict({key: tensors[f"{name}/{key}"] for key in tower.state_dict()})
        for key, parameter in self.tower.named_parameters():
            if f"adam/step/{key}" in tensors:
                self.adam.state[parameter] = {m: tensors[f"adam/{m}/{key}"].clone() for m in _MOMENTS}


def _loss(out_N4: Tensor, target_N4: Tensor, weight_N4: Tensor, window_N: Tensor) -> Tensor:
    """Returns the mean over the rows of what the four outputs cost."""
    bce_N3 = F.binary_cross_entropy_with_logits(out_N4[:, :_RATE], target_N4[:, :_RATE], reduction="none")
    log_rate_N = out_N4[:, _RATE].clamp(-_MAX_LOG_RATE, _MAX_LOG_RATE)
    rate_N = log_rate_N.exp()
    delay_cost_N = rate_N * target_N4[:, _RATE] - log_rate_N + torch.log(-torch.expm1(-rate_N * window_N))
    return ((weight_N4[:, :_RATE] * bce_N3).sum() + (weight_N4[:, _RATE] * delay_cost_N).sum()) / len(out_N4)
