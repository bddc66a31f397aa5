"""Auxiliary heads of all tasks (`model.task_heads`), and when a task's label policy takes over.

A task's policy takes over when its heads have seen enough positives. Until then its settled rows are trained and the
others weigh nothing, as under `wait`. The hand-over is by impression: slates shown after everything seen so far follow
the policy, earlier ones are trained when they settle. So each item is trained under exactly one of the two.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from model.delayed_labels import DelayedLabels, Float32Array
from model.label_policy import Estimate
from model.metrics import BoolArray, Int64Array
from model.task_heads import SettledRows, TaskHeads
from stream.schema import PolicyName

_NEVER = int(np.iinfo(np.int64).max)


class AuxiliaryHeads:
    """The heads of all tasks that have met a policy that needs them; they come into being by themselves."""

    def __init__(
        self, tasks: Sequence[str], *, width: int, num_scenarios: int, min_positives: int, lr: float, seed: int
    ) -> None:
        self._tasks = tuple(tasks)
        self._width, self._num_scenarios, self._lr, self._seed = width, num_scenarios, lr, seed
        self._min_positives = min_positives
        self._heads: dict[int, TaskHeads] = {}
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
        observe_ms_N, window_ms_N = delayed.observe_ms_BT[:, task], delayed.window_ms_BT[:, task]
        return self._of(task).estimates(policy, c_NC, scenario_N, observe_ms_N, window_ms_N)

    def learn(self, task: int, rows: SettledRows) -> bool:
        """Learns from settled rows of one task. Returns False if they were not finite: the steps are left out."""
        return self._of(task).learn(rows)

    def newest_ms_T(self, delayed: DelayedLabels) -> Int64Array:
        """Returns per task the newest impression whose policy needs heads, [T]; -1 where there is none."""
        newest_ms_BT = np.where(delayed.needs_heads_BT(), delayed.impression_ms_B[:, None], -1)
        newest_ms_T: Int64Array = newest_ms_BT.max(axis=0, initial=-1)
        return newest_ms_T

    def advance(self, newest_ms_T: Int64Array) -> list[str]:
        """Takes note of a batch that was learned. Returns the tasks whose policy takes over with it."""
        for task in np.flatnonzero(newest_ms_T >= 0).tolist():
            self._of(task)
        self._newest_ms_T = np.maximum(self._newest_ms_T, newest_ms_T)
        ready = [
            task
            for task, heads in sorted(self._heads.items())
            if heads.num_positives >= self._min_positives and self._policy_after_ms_T[task] == _NEVER
        ]
        self._policy_after_ms_T[ready] = self._newest_ms_T[ready]
        return [self._tasks[task] for task in ready]

    def add_scenario(self, donor: int) -> None:
        """Makes room for one more scenario, which starts as `donor`."""
        self._num_scenarios += 1
        for heads in self._heads.values():
            heads.add_scenario(donor)

    def state(self) -> dict[str, Tensor]:
        """Returns everything for a bit-exact resume, by task name."""
        tensors: dict[str, Tensor] = {}
        for task, heads in self._heads.items():
            name = self._tasks[task]
            tensors |= {f"{name}/{key}": tensor for key, tensor in heads.state().items()}
            newest_ms, policy_after_ms = int(self._newest_ms_T[task]), int(self._policy_after_ms_T[task])
            progress = [heads.num_steps, heads.num_positives, newest_ms, policy_after_ms]
            tensors[f"{name}/progress"] = torch.tensor(progress)
        return tensors

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Becomes the heads whose `state` is given."""
        self._heads.clear()
        self._newest_ms_T[:], self._policy_after_ms_T[:] = -1, _NEVER
        for task, name in enumerate(self._tasks):
            if f"{name}/sums" not in tensors:
                continue
            own = {key.removeprefix(f"{name}/"): tensors[key] for key in tensors if key.startswith(f"{name}/")}
            heads = self._of(task)
            heads.load_state(own)
            progress: list[int] = own["progress"].tolist()
            heads.num_steps, heads.num_positives, self._newest_ms_T[task], self._policy_after_ms_T[task] = progress

    def _of(self, task: int) -> TaskHeads:
        if task not in self._heads:
            name = self._tasks[task]
            self._heads[task] = TaskHeads(name, self._width, self._num_scenarios, self._lr, self._seed)
        return self._heads[task]
