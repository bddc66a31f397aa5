"""What the gates give to their experts at the moment, looked at now and then while a model learns."""

from collections.abc import Callable
from typing import NamedTuple

from model.features import EncodedBatch
from model.gate_usage import GateUsage

INTERVAL_MS = 5_000
"""Looking costs one more forward pass of a micro-batch."""
SAN = "san"
"""HiNet's attention: its experts are the scenarios."""


class GateKey(NamedTuple):
    """One expert of one head, by numbers of scenario and task; task None: the gate is of all tasks."""

    gate: str
    scenario: int
    task: int | None
    expert: str


class GateMeans:
    """Mean weights on the last batch looked at that had rows of the scenario, without the gates that have no choice.

    Nothing is looked at as long as nobody asks.
    """

    def __init__(self, usage: Callable[[EncodedBatch], list[GateUsage]], interval_ms: int = INTERVAL_MS) -> None:
        """`usage` looks at the gates on some rows; it is asked every `interval_ms` at most."""
        self._usage = usage
        self._interval_ms = interval_ms
        self._due_ms = 0
        self._is_asked = False
        self._means: dict[GateKey, float] = {}

    def ask(self) -> dict[GateKey, float]:
        """Returns the last means, and has them made anew. From any thread: the mapping is replaced as a whole."""
        self._is_asked = True
        return self._means

    def is_due(self, now_ms: int) -> bool:
        """Returns whether somebody asks and it is time."""
        return self._is_asked and now_ms >= self._due_ms

    def observe(self, batch: EncodedBatch, now_ms: int) -> None:
        """Looks at the gates on some rows."""
        self._is_asked = False
        self._due_ms = now_ms + self._interval_ms
        found = dict(self._means)
        for usage in self._usage(batch):
            num_experts = usage.weight_BK.shape[1]
            if num_experts < 2 or not len(usage.weight_BK):
                continue
            names = usage.experts or tuple(str(number) for number in range(num_experts))
            for name, mean in zip(names, usage.weight_BK.mean(dim=0).tolist(), strict=True):
                found[GateKey(usage.gate, usage.scenario, usage.task, name)] = mean
        self._means = found
