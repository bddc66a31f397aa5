"""One model over one source: every micro-batch is scored, then learned. What a search and a frontier run many times.

Letters: N examples, T tasks.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from freshrank.compare_data import CompareData, kind_of, load
from freshrank.config import RunConfig
from model.config import ModelConfig
from model.features import EncodingConfig, FeatureEncoder
from model.learner import Learner
from model.metrics import cross_entropy, normalized_entropy


class TaskFigures(NamedTuple):
    """Progressive figures of a task over all its settled labels."""

    ne: float
    """Log loss over the entropy of the base rate."""
    log_loss: float
    """Mean, in nats."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """What one pass gave."""

    tasks: dict[str, TaskFigures]
    weights: dict[str, float]
    """The tasks' weights in the loss at the end."""
    num_parameters: int
    """Of the network; embedding rows not counted."""
    num_skipped: int
    """Steps that were not made because something was not finite."""

    @property
    def mean_ne(self) -> float:
        """The mean over tasks."""
        return sum(figures.ne for figures in self.tasks.values()) / len(self.tasks)


def read_source(run: RunConfig, path: Path, encoding: EncodingConfig, limit: int | None) -> CompareData:
    """Returns what is at `path` (a recorded log, RankLens, MovieLens-1M), encoded once for any number of passes.

    Raises:
        ValueError: nothing there that can be read, or no example in it.
    """
    return load(
        kind_of(path),
        path,
        schema=run.schema,
        join=run.join,
        encoder=FeatureEncoder(run.schema, encoding),
        batch_rows=run.trainer.batch_rows,
        limit=limit,
    )


def judged(data: CompareData, logits: Sequence[npt.NDArray[np.float32]]) -> dict[str, TaskFigures]:
    """Returns the figures of some logits, [B, T] per micro-batch, over the labels of the source that are settled.

    Raises:
        ValueError: a task has labels of one kind only, so that its NE is undefined.
    """
    logit_NT = np.concatenate(logits).astype(np.float64)
    label_NT = np.concatenate([batch.labels.label_BT for batch in data.batches]).astype(np.float64)
    judged_NT = np.concatenate([batch.judged_BT for batch in data.batches])
    tasks = {}
    for place, task in enumerate(data.schema.tasks):
        judged_N = judged_NT[:, place]
        label_N = label_NT[judged_N, place]
        sum_loss = float(cross_entropy(logit_NT[judged_N, place], label_N).sum())
        ne = normalized_entropy(sum_loss, float(label_N.sum()), len(label_N))
        if ne is None:
            raise ValueError(f"tasks.{task}: all {len(label_N)} labels are of one kind; there is nothing to judge")
        tasks[task] = TaskFigures(ne, sum_loss / len(label_N))
    return tasks


def one_pass(
    data: CompareData, config: ModelConfig, seed: int, on_batch: Callable[[int], None] = lambda rows: None
) -> Pass:
    """Returns the progressive figures of a model that starts from nothing; `on_batch` gets the rows learned so far.

    Raises:
        ValueError: the configuration does not fit the source, a score was not finite, or a task has labels of one kind
            only, so that its NE is undefined.
    """
    learner = Learner(data.schema, config, seed)
    logits, num_skipped, num_rows = [], 0, 0
    for batch in data.batches:
        report = learner.learn(batch.encoded, batch.labels)
        logits.append(report.logits_BT)
        num_skipped += report.skipped is not None
        num_rows += batch.num_rows
        on_batch(num_rows)
    if not all(np.isfinite(logit_BT).all() for logit_BT in logits):
        raise ValueError("some scores are not finite; try smaller learning rates")
    return Pass(
        tasks=judged(data, logits),
        weights=dict(zip(data.schema.tasks, learner.trained.weighting.weights().tolist(), strict=True)),
        num_parameters=sum(one.numel() for one in learner.trained.parameters.values()),
        num_skipped=num_skipped,
    )
