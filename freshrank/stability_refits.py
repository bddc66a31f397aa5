"""Periodic refits: a model per period, learned in several passes over that period alone, from scratch or warm.

The teacher of a refit is the model of the period before, whose scores are logged with its rows (`teacher: served`).
"""

from dataclasses import replace
from typing import Literal

import numpy as np

from freshrank.stability_stream import BATCH_MS, Float32Array, Stream, Trace, probed, sigmoid
from model.config import ModelConfig
from model.learner import Learner
from model.served_teacher import ServedScores

Init = Literal["scratch", "warm"]


def run_refits(stream: Stream, config: ModelConfig, seed: int, *, init: Init, epochs: int) -> Trace:
    """Returns what each period's model says of the next period's rows, and of the probe when it is learned.

    The rows of the first period are scored by nobody: 0.5. There are no publishes in between.
    """
    learner = Learner(stream.schema, config, seed)
    scores: list[Float32Array] = []
    ends = []
    for period in range(stream.num_periods):
        numbers = np.arange(period * stream.period, (period + 1) * stream.period)
        served = [sigmoid(learner.score(stream.batches[number].encoded)) for number in numbers]
        scores += served if period else [np.full_like(score, 0.5) for score in served]
        if init == "scratch" and period:
            learner = Learner(stream.schema, config, seed + period)
        if learner.trained.teacher is not None and period:
            learner.trained.promote_teacher(period, {})
        first_ms = period * epochs * stream.period * BATCH_MS
        rng = np.random.default_rng([seed, period])
        for epoch in range(epochs):
            for place in rng.permutation(stream.period).tolist():
                batch = stream.batches[numbers[place]]
                step = ((period * epochs) + epoch) * stream.period + place
                known = (
                    None
                    if period == 0
                    else ServedScores(
                        probability_BT=served[place],
                        version_B=np.full(batch.num_rows, period),
                        impression_ms_B=np.full(batch.num_rows, first_ms),
                    )
                )
                labels = replace(batch.labels, watermark_ms=(step + 1) * BATCH_MS, served=known)
                learner.learn(batch.encoded, labels)
        ends.append(probed(stream, learner))
    end_PNKT = np.stack(ends)
    return Trace(np.concatenate(scores), end_PNKT, end_PNKT)
