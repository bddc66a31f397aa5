"""Auxiliary heads: what some label policies must know about delays before they can weigh a row.

Per task that needs them one small tower on the network's representation C, with four outputs:

| output | estimates | learned from settled rows | as |
|---|---|---|---|
| `late` | P(y=1, later than the early look) | all | cross-entropy |
| `negative` | P(y=0, given not positive at the early look) | all but early positives | cross-entropy |
| `seen` | P(at the early look already, given y=1) | positives | cross-entropy |
| `rate` | lambda per hour of exponential delays within W | positives | -ln lambda + lambda d + ln(1 - e^(-lambda W)) |

C comes in as a plain tensor, so no gradient can leave for the trunk; the optimiser is their own. Each output is an
offset, the running base rate, plus what the tower adds to it: right on average from the first rows on.

A task's policy takes over when its heads have seen enough positives. Until then its settled rows are trained and the
others weigh nothing, as under `wait`. The hand-over is by impression: slates shown after everything seen so far follow
the policy, earlier ones are trained when they settle. So each item is trained under exactly one of the two.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.delayed_labels import DelayedLabels, Float32Array
from model.label_policy import ESTIMATES, Estimate
from model.metrics import BoolArray, Int64Array
from model.seeding import Drawn, draw_uniform, named_generator
from stream.schema import PolicyName

HIDDEN = 32
CHUNK_ROWS = 64
"""Settled rows per step of the heads: they must learn from few."""
AVERAGED_STEPS = 200
"""Steps whose weights the estimates are a mean of."""
_LATE, _NEGATIVE, _SEEN, _RATE = range(4)
_NEVER = int(np.iinfo(np.int64).max)
_HOUR_MS = 3_600_000.0
_MAX_LOG_RATE = 10.0


class AuxiliaryTower(Drawn):
    """[C, one of M scenarios] -> what is added to the four offsets, [B, 4]; zero at first."""

    def __init__(self, width: int, num_scenarios: int) -> None:
        super().__init__()
        self._num_scenarios = num_scenarios
        self.hidden_weight = nn.Parameter(torch.empty(HIDDEN, width + num_scenarios))
        self.hidden_bias = nn.Parameter(torch.empty(HIDDEN))
        self.out_weight = nn.Parameter(torch.zeros(4, HIDDEN))
        self.out_bias = nn.Parameter(torch.zeros(4))

    def forward(self, c_BC: Tensor, scenario_B: Tensor) -> Tensor:
        """Returns the additions, [B, 4]."""
        scenario_BM = F.one_hot(scenario_B, self._num_scenarios).to(c_BC.dtype)
        hidden_BH = F.relu(F.linear(torch.cat([c_BC, scenario_BM], dim=1), self.hidden_weight, self.hidden_bias))
        return F.linear(hidden_BH, self.out_weight, self.out_bias)

    def draw(self, generator_of: Callable[[str], torch.Generator]) -> None:
        """Draws the hidden layer; the output layer stays zero."""
        fan_in = self.hidden_weight.shape[1]
        draw_uniform(self.hidden_weight, fan_in, generator_of("hidden_weight"))
        draw_uniform(self.hidden_bias, fan_in, generator_of("hidden_bias"))


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


class _TaskHeads:
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


def _loss(out_N4: Tensor, target_N4: Tensor, weight_N4: Tensor, window_N: Tensor) -> Tensor:
    """Returns the mean over the rows of what the four outputs cost."""
    bce_N3 = F.binary_cross_entropy_with_logits(out_N4[:, :_RATE], target_N4[:, :_RATE], reduction="none")
    log_rate_N = out_N4[:, _RATE].clamp(-_MAX_LOG_RATE, _MAX_LOG_RATE)
    rate_N = log_rate_N.exp()
    delay_cost_N = rate_N * target_N4[:, _RATE] - log_rate_N + torch.log(-torch.expm1(-rate_N * window_N))
    return ((weight_N4[:, :_RATE] * bce_N3).sum() + (weight_N4[:, _RATE] * delay_cost_N).sum()) / len(out_N4)


class AuxiliaryHeads:
    """The heads of all tasks that have met a policy that needs them; they come into being by themselves."""

    def __init__(
        self, tasks: Sequence[str], *, width: int, num_scenarios: int, min_positives: int, lr: float, seed: int
    ) -> None:
        self._tasks = tuple(tasks)
        self._width, self._num_scenarios, self._lr, self._seed = width, num_scenarios, lr, seed
        self._min_positives = min_positives
        self._heads: dict[int, _TaskHeads] = {}
        self._newest_ms_T = np.full(len(tasks), -1, np.int64)
        self._policy_after_ms_T = np.full(len(tasks), _NEVER, np.int64)

    def cold_BT(self, delayed: DelayedLabels) -> BoolArray:
        """Returns the cells that are trained as under `wait`, because their heads have not learned enough."""
        is_early_BT = delayed.impression_ms_B[:, None] <= self._policy_after_ms_T
        return delayed.needs_heads_BT() & is_early_BT

    def estimates(
        self, policy: PolicyName, task: int, c_NC: Tensor, scenario_N: Tensor, delayed: DelayedLabels
    ) -> dict[Estimate, Float32Array]:
        """Returns what the policy needs for some rows of one task."""
        with torch.no_grad():
            out_N4 = self._of(task).outputs(c_NC, scenario_N)
            share_N3 = out_N4[:, :_RATE].sigmoid().numpy()
        if policy == "dfm":
            rate_N = np.exp(np.clip(out_N4[:, _RATE].double().numpy(), -_MAX_LOG_RATE, _MAX_LOG_RATE))
            observe_N, window_N = delayed.observe_ms_BT[:, task] / _HOUR_MS, delayed.window_ms_BT[:, task] / _HOUR_MS
            seen_N = np.expm1(-rate_N * observe_N) / np.expm1(-rate_N * window_N)
            return {"seen": seen_N.astype(np.float32)}
        column: dict[Estimate, int] = {"late": _LATE, "negative": _NEGATIVE, "seen": _SEEN}
        return {name: share_N3[:, column[name]] for name in ESTIMATES[policy]}

    def learn(self, task: int, rows: SettledRows) -> bool:
        """Learns from settled rows of one task. Returns False if they were not finite: the steps are left out."""
        return self._of(task).learn(rows)

    def advance(self, delayed: DelayedLabels) -> list[str]:
        """Takes note of a batch that was learned. Returns the tasks whose policy takes over with it."""
        needs_BT = delayed.needs_heads_BT()
        for task in np.flatnonzero(needs_BT.any(axis=0)).tolist():
            self._of(task)
        newest_ms_BT = np.where(needs_BT, delayed.impression_ms_B[:, None], -1)
        self._newest_ms_T = np.maximum(self._newest_ms_T, newest_ms_BT.max(axis=0, initial=-1))
        ready = [
            task
            for task, heads in self._heads.items()
            if heads.num_positives >= self._min_positives and self._policy_after_ms_T[task] == _NEVER
        ]
        self._policy_after_ms_T[ready] = self._newest_ms_T[ready]
        return [self._tasks[task] for task in ready]

    def state(self) -> dict[str, Tensor]:
        """Returns everything for a bit-exact resume, by task name."""
        tensors = {}
        for task, heads in self._heads.items():
            name = self._tasks[task]
            tensors[f"{name}/sums"] = torch.from_numpy(heads.sums_24.copy())
            tensors[f"{name}/progress"] = torch.tensor(
                [
                    heads.num_steps,
                    heads.num_positives,
                    int(self._newest_ms_T[task]),
                    int(self._policy_after_ms_T[task]),
                ]
            )
            for key, tensor in heads.average.state_dict().items():
                tensors[f"{name}/average/{key}"] = tensor.clone()
            for key, parameter in heads.tower.named_parameters():
                tensors[f"{name}/tower/{key}"] = parameter.detach().clone()
                for moment, tensor in heads.adam.state.get(parameter, {}).items():
                    tensors[f"{name}/adam/{moment}/{key}"] = tensor.clone()
        return tensors

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Becomes the heads whose `state` is given."""
        self._heads.clear()
        self._newest_ms_T[:], self._policy_after_ms_T[:] = -1, _NEVER
        for task, name in enumerate(self._tasks):
            if f"{name}/sums" not in tensors:
                continue
            heads = self._of(task)
            heads.sums_24 = tensors[f"{name}/sums"].numpy().copy()
            progress: list[int] = tensors[f"{name}/progress"].tolist()
            heads.num_steps, heads.num_positives, self._newest_ms_T[task], self._policy_after_ms_T[task] = progress
            for part in ("tower", "average"):
                prefix = f"{name}/{part}/"
                getattr(heads, part).load_state_dict(
                    {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
                )
            for key, parameter in heads.tower.named_parameters():
                moments: dict[str, Any] = {m: tensors.get(f"{name}/adam/{m}/{key}") for m in _MOMENTS}
                if moments["step"] is not None:
                    heads.adam.state[parameter] = {moment: tensor.clone() for moment, tensor in moments.items()}

    def _of(self, task: int) -> _TaskHeads:
        if task not in self._heads:
            name = self._tasks[task]
            self._heads[task] = _TaskHeads(name, self._width, self._num_scenarios, self._lr, self._seed)
        return self._heads[task]


_MOMENTS = ("step", "exp_avg", "exp_avg_sq")
