"""What freshness is worth: one model in training on a drifting stream, served by copies of different age.

Per second of event time: 1 copies whose interval is over are taken anew   2 each copy scores the slates of that second
3 the events of that second go through the real join core into the real trainer

Training is the same whatever serves it, since the logged slates were ranked at random: so one pass judges every
interval on the very same requests. Letters: N items shown.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt

from freshrank.slate_scorer import slate_columns
from freshrank.study_metrics import auc, normalized_entropy, over_seeds
from model.config import ModelConfig
from model.features import EncodedBatch
from model.serving import ServingModel
from model.trainer import Trainer
from model.trainer_config import TrainerConfig
from sim.config import SimConfig
from sim.record import START_MS, RecordedTruth, record_events
from stream.examples import ExampleEncoder
from stream.join import JoinConfig, JoinCore
from stream.schema import Feedback, Impression, SchemaConfig

Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class FreshnessStudyConfig:
    """How much is measured, and which publish intervals are compared."""

    seeds: int = 3
    """Worlds, one per seed; at least 1."""
    hours: float = 2.0
    """Event time that is measured, in hours, after as long as the longest interval; above 0."""
    intervals_s: tuple[int, ...] = (1, 10, 60, 300, 900, 3_600)
    """Publish intervals in seconds of event time, rising; each at least 1."""
    task: str = "click"
    """The task that is judged; an action of the simulator."""

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise ValueError(f"seeds: {self.seeds} is not allowed; at least 1")
        if not self.hours > 0:
            raise ValueError(f"hours: {self.hours} is not allowed; above 0")
        if not self.intervals_s or min(self.intervals_s) < 1 or list(self.intervals_s) != sorted(set(self.intervals_s)):
            raise ValueError(f"intervals_s: {list(self.intervals_s)} is not allowed; each once, rising, at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class StudiedRun:
    """The sections of a run that the study uses."""

    schema: SchemaConfig
    join: JoinConfig
    model: ModelConfig
    trainer: TrainerConfig
    sim: SimConfig


def study_freshness(
    run: StudiedRun, config: FreshnessStudyConfig, on_progress: Callable[[int, float], None] = lambda seed, share: None
) -> dict[str, Any]:
    """Returns AUC and NE of each publish interval against the true probabilities, over seeds; plain data, for JSON.

    `curve` has a point per interval. Differences are to the shortest interval, seed by seed.
    """
    figures = [_one_world(run, config, seed, on_progress) for seed in range(config.seeds)]
    curve = []
    for place, interval_s in enumerate(config.intervals_s):
        of_seed = [one[place] for one in figures]
        first = [one[0] for one in figures]
        pairs = list(zip(of_seed, first, strict=True))
        curve.append(
            {
                "interval_s": interval_s,
                "auc": over_seeds([one["auc"] for one in of_seed]),
                "ne": over_seeds([one["ne"] for one in of_seed]),
                "auc_lost": over_seeds([best["auc"] - one["auc"] for one, best in pairs]),
                "ne_lost": over_seeds([one["ne"] - best["ne"] for one, best in pairs]),
            }
        )
    return {
        "task": config.task,
        "seeds": config.seeds,
        "hours": config.hours,
        "drift_period_s": run.sim.drift_period_s,
        "item_life_s": run.sim.item_life_s,
        "rows": int(np.mean([one[0]["rows"] for one in figures])),
        "curve": curve,
    }


def _one_world(
    run: StudiedRun, config: FreshnessStudyConfig, seed: int, on_progress: Callable[[int, float], None]
) -> list[dict[str, float]]:
    """Returns the figures of each interval in one world."""
    warm_up_s = max(config.intervals_s)
    num_seconds = warm_up_s + round(3_600 * config.hours)
    sim = replace(run.sim, seed=seed)
    trained = _Trained(run, seed)
    copies: dict[int, ServingModel] = {}
    truth: list[Float64Array] = []
    scores: dict[int, list[npt.NDArray[np.float32]]] = {interval_s: [] for interval_s in config.intervals_s}
    task = list(run.schema.tasks).index(config.task)
    progress = 0
    for second, events in _seconds(sim, num_seconds):
        for interval_s in config.intervals_s:  # 1
            if second % interval_s == 0 and interval_s > 1:
                copies[interval_s] = trained.copy()
        shown = [event for event in events if isinstance(event, Impression)]
        if shown and second >= warm_up_s:  # 2
            batch = trained.encoded(shown)
            true = [event for event in events if isinstance(event, RecordedTruth)]
            truth.append(np.concatenate([event.probability[config.task] for event in true]))
            for interval_s in config.intervals_s:
                scored_NT = trained.score(batch) if interval_s == 1 else copies[interval_s].score(batch)
                scores[interval_s].append(scored_NT[:, task])
        trained.learn([event for event in events if not isinstance(event, RecordedTruth)], second)  # 3
        if second // (num_seconds // 10) > progress:
            progress += 1
            on_progress(seed, progress / 10)
    truth_N = np.concatenate(truth)
    figures = []
    for interval_s in config.intervals_s:
        score_N = np.concatenate(scores[interval_s]).astype(np.float64)
        ne = normalized_entropy(truth_N, score_N)
        figures.append({"auc": auc(truth_N, score_N), "ne": ne, "rows": len(truth_N)})
    return figures


def _seconds(sim: SimConfig, num_seconds: int) -> Iterator[tuple[int, list[Impression | Feedback | RecordedTruth]]]:
    """Yields the events of each second of event time in which there are any, in arrival order."""
    num_requests = round(1.5 * sim.requests_per_s * num_seconds) + 100
    last_ms = START_MS

    def second_of(event: Impression | Feedback | RecordedTruth) -> int:
        nonlocal last_ms
        last_ms = max(last_ms, event.ts)
        return (last_ms - START_MS) // 1_000

    for second, events in groupby(record_events(sim, num_requests), second_of):
        if second >= num_seconds:
            return
        yield second, list(events)


class _Trained:
    """The join core and the trainer, fed by seconds."""

    def __init__(self, run: StudiedRun, seed: int) -> None:
        self._run = run
        self._core = JoinCore(run.schema, run.join)
        self._encoder = ExampleEncoder(run.schema, run.join)
        self._second = 0
        config = TrainerConfig(batch_rows=run.trainer.batch_rows, seed=seed)
        self._trainer = Trainer(run.schema, config, run.model, now_ms=lambda: START_MS + 1_000 * self._second)
        self._num_impressions = self._num_feedback = self._num_messages = 0

    def learn(self, events: list[Impression | Feedback], second: int) -> None:
        """Joins the events and trains on the labels that go out; nothing waits for the next second."""
        self._second = second
        emissions = []
        for event in events:
            if isinstance(event, Impression):
                emissions += self._core.observe_impression(event, self._num_impressions)
                self._num_impressions += 1
            else:
                emissions += self._core.observe_feedback(event, self._num_feedback)
                self._num_feedback += 1
        now_ms = START_MS + 1_000 * (second + 1)
        emissions += self._core.advance(now_ms - self._run.join.out_of_orderness_ms)
        for message in self._encoder.encode(emissions):
            self._trainer.train_message(message, partition=0, offset=self._num_messages)
            self._num_messages += 1
        self._trainer.flush()

    def encoded(self, shown: list[Impression]) -> EncodedBatch:
        """Returns the slates as keys, one row per item."""
        return self._trainer.learner.encode(slate_columns(shown, self._run.schema))

    def score(self, batch: EncodedBatch) -> npt.NDArray[np.float32]:
        """Returns the probabilities by the newest weights, [N, T]."""
        logit_NT = self._trainer.learner.score(batch)
        return (1.0 / (1.0 + np.exp(-logit_NT.astype(np.float64)))).astype(np.float32)

    def copy(self) -> ServingModel:
        """Returns what a ranker would hold of the newest weights."""
        trained = self._trainer.learner.trained
        return ServingModel.from_full(self._run.schema, self._run.model, trained.serving_full(), trained.registry)
