"""The comparison itself: every model over the same batches, scored before it learns. Pure but for the clock given.

The last `holdout` of the examples are scored and not learned. One pass per model and seed; a model whose seed changes
nothing makes one pass, and its figures stand for every seed. Letters: N examples, T tasks.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from freshrank.compare_data import CompareBatch, CompareData
from freshrank.compare_metrics import Report, figures, paired, summary
from freshrank.compare_models import NetworkModel, Sized, equal_inputs, sized
from freshrank.peers import Float32Array, OnlineModel, peer_of
from model.config import ModelConfig
from stream.schema import SchemaConfig

BUDGET_OF = "hinet"
"""The architecture whose dense parameters, at the configuration's widths, are everybody's budget."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareConfig:
    """What is compared, and how often."""

    models: tuple[str, ...]
    """Architectures, perhaps with settings (`hinet:san=none`), and peers (`vw`, `river_lr:rate=0.2`)."""
    seeds: int = 3
    """Passes of each model, with seeds 0, 1, ...; at least 1."""
    holdout: float = 0.1
    """Share of the examples, the last ones, that are only scored; at least 0, less than 1."""

    def __post_init__(self) -> None:
        if not self.models or len(set(self.models)) != len(self.models):
            raise ValueError(f"models: {', '.join(self.models)!r} is not allowed; at least one, each once")
        if self.seeds < 1:
            raise ValueError(f"seeds: {self.seeds} is not allowed; at least 1")
        if not 0 <= self.holdout < 1:
            raise ValueError(f"holdout: {self.holdout} is not allowed; at least 0, less than 1")


class PassReport(NamedTuple):
    """One model, one seed, once over the data."""

    model: str
    seed: int
    progressive: Report
    heldout: Report
    num_weights: int | None
    num_skipped: int
    examples_per_cpu_s: float


class Comparison:
    """Runs models one after the other; `result` is whole after each."""

    def __init__(
        self, data: CompareData, model: ModelConfig, config: CompareConfig, cpu_s: Callable[[], float]
    ) -> None:
        """Sizes all networks, so that what cannot be compared is refused before anything runs.

        Raises:
            ValueError: a model that is unknown or cannot be brought to the budget, a peer that is not installed.
        """
        peers = {name: peer_of(name) for name in config.models}
        self._peers = {name: peer for name, peer in peers.items() if peer is not None}
        self._data, self._config, self._cpu_s = data, config, cpu_s
        self._base = equal_inputs(model)
        self._sized = {name: self._size(name) for name in config.models if name not in self._peers}
        num_learned = math.ceil(data.num_rows * (1 - config.holdout))
        starts = np.cumsum([0] + [batch.num_rows for batch in data.batches])[:-1]
        num_batches = int(np.searchsorted(starts, num_learned))
        self._learned, self._heldout = data.batches[:num_batches], data.batches[num_batches:]
        self._passes: dict[str, list[PassReport]] = {}

    def run(self, name: str, on_pass: Callable[[PassReport], None]) -> None:
        """Runs one model with all seeds."""
        is_random = name not in self._peers or self._peers[name].is_random
        passes = []
        for seed in range(self._config.seeds if is_random else 1):
            passes.append(self._pass(name, seed))
            on_pass(passes[-1])
        self._passes[name] = passes if is_random else passes * self._config.seeds

    def result(self) -> dict[str, Any]:
        """Returns the figures of the models that have run, as JSON values."""
        return {
            "seeds": self._config.seeds,
            "examples": sum(batch.num_rows for batch in self._learned),
            "heldout_examples": sum(batch.num_rows for batch in self._heldout),
            "budget": self._budget(),
            **self._figures("progressive"),
            "heldout": self._figures("heldout"),
            "params": {name: passes[0].num_weights for name, passes in self._passes.items()},
            "scale": {name: self._sized[name].scale for name in self._passes if name in self._sized},
            "skipped_steps": {name: sum(one.num_skipped for one in passes) for name, passes in self._passes.items()},
            "examples_per_cpu_s": {
                name: round(float(np.mean([one.examples_per_cpu_s for one in passes])), 1)
                for name, passes in self._passes.items()
            },
        }

    def _figures(self, part: str) -> dict[str, Any]:
        by_seed = {name: [getattr(one, part) for one in passes] for name, passes in self._passes.items()}
        return {
            "models": {name: summary(figures) for name, figures in by_seed.items()},
            "pairs": {
                name: {other: paired(figures, others) for other, others in by_seed.items() if other != name}
                for name, figures in by_seed.items()
            },
        }

    def _budget(self) -> int:
        return self._size(BUDGET_OF).num_parameters

    def _size(self, name: str) -> Sized:
        if name == BUDGET_OF:
            return sized(name, self._base, self._data.schema)
        return sized(name, self._base, self._data.schema, self._budget())

    def _pass(self, name: str, seed: int) -> PassReport:
        model = self._make(name, seed)
        spent_s, logits = 0.0, []
        for batch in self._learned:
            prepared = model.prepare(batch)
            before_s = self._cpu_s()
            logits.append(model.score_then_learn(prepared))
            spent_s += self._cpu_s() - before_s
        heldout = [model.score(model.prepare(batch)) for batch in self._heldout]
        return PassReport(
            model=name,
            seed=seed,
            progressive=self._judge(name, self._learned, logits),
            heldout=self._judge(name, self._heldout, heldout),
            num_weights=model.num_weights,
            num_skipped=model.num_skipped,
            examples_per_cpu_s=sum(map(len, logits)) / spent_s,
        )

    def _make(self, name: str, seed: int) -> OnlineModel:
        schema = self._data.schema
        peer = self._peers.get(name)
        if peer is None:
            return NetworkModel(schema, self._sized[name].config, seed)
        priors = [self._base.priors.get(task, 0.5) for task in schema.tasks]
        return peer.make(self._data.fields, [math.log(prior / (1 - prior)) for prior in priors], seed, peer.rate)

    def _judge(self, name: str, batches: Sequence[CompareBatch], logits: Sequence[Float32Array]) -> Report:
        if not all(np.isfinite(logit_BT).all() for logit_BT in logits):
            raise ValueError(f"{name}: some of its scores are not finite; try smaller learning rates")
        return judged_report(self._data.schema, batches, logits)


def judged_report(schema: SchemaConfig, batches: Sequence[CompareBatch], logits: Sequence[Float32Array]) -> Report:
    """Returns the figures of some logits, [B, T] per batch, over the labels of the batches that are judged."""
    empty_T, empty = np.empty((0, len(schema.tasks)), np.float32), np.empty(0, np.int64)
    return figures(
        np.concatenate([empty_T, *(batch.labels.label_BT for batch in batches)]),
        np.concatenate([empty_T.astype(np.bool_), *(batch.judged_BT for batch in batches)]),
        np.concatenate([empty_T, *logits]),
        np.concatenate([empty, *(batch.encoded.scenario_B for batch in batches)]),
        np.concatenate([empty, *(batch.user_B for batch in batches)]),
        tasks=list(schema.tasks),
        scenarios=schema.scenarios,
    )
