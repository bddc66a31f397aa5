"""The stream part of the study of stability on a recorded log: real users, the model of the run's configuration.

Seeds change the first weights; the data are the same, so intervals are over what chance does to training.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from freshrank.config import RunConfig
from freshrank.one_pass import read_source
from freshrank.stability_stream import Stream, every, log_stream
from freshrank.study_stability import BASE, FREE_NE, Variant, held, stream_study
from utility_blender.blend import Blender


@dataclass(frozen=True, slots=True, kw_only=True)
class LogStudyConfig:
    """What is compared on a log."""

    rows: int = 30_000
    """The first so many rows of the log; at least 1."""
    seeds: int = 3
    """At least 1."""
    periods: int = 5
    """At least 4."""
    first_period: int = 2
    """Judged from here on; at least 1, less than `periods` - 1."""
    publishes: int = 10
    """Per period; at least 2."""
    probe_share: float = 0.15
    """Share of the rows, the last ones, that are ranked and never learned; between 0 and 1."""
    weights: tuple[float, ...] = (1.0, 2.0, 4.0)
    """Weights of the term, beside 0."""
    min_examples: int = 3
    """Examples of an item before the teacher has a say: a short log has few of each; at least 0."""

    def __post_init__(self) -> None:
        for name, least in (("rows", 1), ("seeds", 1), ("periods", 4), ("first_period", 1), ("publishes", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: {getattr(self, name)} is not allowed; at least {least}")
        if not self.first_period < self.periods - 1:
            raise ValueError(f"first_period: {self.first_period} is not allowed; less than {self.periods - 1}")
        if not 0 < self.probe_share < 1:
            raise ValueError(f"probe_share: {self.probe_share} is not allowed; between 0 and 1")


def study_stability_on_log(
    run: RunConfig,
    source: str,
    path: Path,
    config: LogStudyConfig,
    *,
    on_progress: Callable[[str, int], None] = lambda part, seed: None,
    monotonic_s: Callable[[], float] = time.monotonic,
) -> dict[str, Any]:
    """Returns the figures of one pass over a log, in the form of `study_stability`.

    Raises:
        ValueError: nothing there that can be read, or too little of it.
    """
    started_s = monotonic_s()
    data = read_source(run, path, run.model.encoding, config.rows)
    stream = log_stream(
        data,
        periods=config.periods,
        publishes=config.publishes,
        probe_share=config.probe_share,
        weights_T=_weights(run),
    )

    def streams() -> Iterator[tuple[int, Stream]]:
        for seed in range(config.seeds):
            on_progress(source, seed)
            yield seed, stream

    found = stream_study(streams(), _variants(run, config, stream.publish), config.first_period)
    rows = sum(batch.num_rows for batch in stream.batches)
    settings = asdict(config) | {"synthetic": False, "source": source, "rows": rows, "free_ne": FREE_NE}
    return {"settings": settings, **found, "timing": {"wall_s": round(monotonic_s() - started_s, 1)}}


def _variants(run: RunConfig, config: LogStudyConfig, publish_batches: int) -> dict[str, Variant]:
    base = run.model
    period_ms = every(config.publishes, publish_batches)
    found = {BASE: Variant(None, 0.0, base)}
    for weight in config.weights:
        term = held(base, weight=weight, refresh_ms=period_ms, min_examples=config.min_examples)
        found[f"ce {weight:g}"] = Variant("ce", weight, term)
    optim = replace(base.optim, dense_lr=base.optim.dense_lr / 2, row_lr=base.optim.row_lr / 2)
    found["learning rates x 0.5"] = Variant(None, 0.0, replace(base, optim=optim))
    return found


def _weights(run: RunConfig) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Returns the weights of the first scenario; without any in the configuration every task counts alike."""
    tasks = list(run.schema.tasks)
    if not run.blender.weights:
        return np.ones(len(tasks))
    blender = Blender(tasks, run.schema.scenarios, run.blender)
    return blender.utility(np.eye(len(tasks)), blender.production(run.schema.scenarios[0]))
