"""Streams for the study of stability, and what a model did along one: what it said of each row, and of fixed requests.

A stream is batches in order, learned once each; a period is some of its batches, and so is the time between two
publishes. Its clock is the number of batches, one second each. The probe is requests that stand still, scored at every
end of a period and at the publish before it.

Letters: B rows of a batch, N requests of the probe, K candidates (padded), T tasks, P periods, R rows of the stream.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from freshrank.compare_data import CompareBatch, CompareData
from model.config import ModelConfig
from model.embedding_config import EmbeddingConfig
from model.features import EncodedBatch, EncodingConfig, FeatureEncoder, RowColumns
from model.labels import LabelBatch
from model.learner import Learner
from model.optim import OptimConfig
from model.shared_bottom import SharedBottomConfig
from sim.drifting_world import DriftingRows, DriftingWorld, DriftingWorldConfig
from stream.schema import FeatureConfig, FeaturesConfig, SchemaConfig, TaskConfig

BATCH_MS = 1_000
"""Event time of a batch."""
Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """Requests that stand still."""

    rows: EncodedBatch
    """Their candidates, request after request, at most K each."""
    is_item_NK: BoolArray
    truth_PNKT: Float64Array
    """At the end of each period, the probability of each label, or the label itself where no more is known."""

    def by_request(self, value_BT: npt.NDArray[np.generic]) -> Float64Array:
        """Returns values of the rows as [N, K, T], 0 where there is no item."""
        value_NKT = np.zeros((*self.is_item_NK.shape, value_BT.shape[1]))
        value_NKT[self.is_item_NK] = value_BT
        return value_NKT


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """Data of one seed, in memory; nothing changes it."""

    schema: SchemaConfig
    batches: list[CompareBatch]
    truth: list[Float64Array]
    """Per batch, as `Probe.truth_PNKT`, [B, T]."""
    probe: Probe
    period: int
    """Batches of a period."""
    publish: int
    """Batches from one publish to the next; a period is a multiple of it."""
    weights_T: Float64Array
    """Production weights of the utility."""

    @property
    def num_periods(self) -> int:
        """P."""
        return len(self.batches) // self.period


class Trace(NamedTuple):
    """What one model did along a stream; all are probabilities."""

    score_RT: Float32Array
    """Of every row, by the model just before it learned the row."""
    end_PNKT: Float64Array
    """Of the probe, at the end of each period."""
    before_PNKT: Float64Array
    """Of the probe, one publish earlier."""


def world_stream(
    world: DriftingWorldConfig, *, seed: int, periods: int, publishes: int, requests: int, candidates: int
) -> Stream:
    """Returns the stream of a drifting world, with `publishes` in each period."""
    schema = SchemaConfig(
        scenarios=("all",),
        tasks={f"task-{n}": TaskConfig(action=f"task-{n}", window_ms=1) for n in range(len(world.base_rates))},
        features=FeaturesConfig(
            user={"segment": FeatureConfig(kind="categorical")}, item={"kind": FeatureConfig(kind="categorical")}
        ),
    )
    encoder = FeatureEncoder(schema, world_model(world).encoding)
    drawn = DriftingWorld(world, seed)
    lists = drawn.lists(requests, candidates)
    segment_B, item_B = np.repeat(lists.segment_N, candidates), lists.item_NK.reshape(-1)
    per_period = world.period_rows // world.batch_rows
    batches, truth, probe_truth = [], [], []
    for number, rows in enumerate(drawn.periods(periods), start=1):
        batches.append(_world_batch(encoder, drawn, rows))
        truth.append(rows.probability_BT)
        if number % per_period == 0:
            probe_truth.append(drawn.probability(segment_B, item_B).reshape(requests, candidates, -1))
    request_index = np.repeat(np.arange(requests), candidates)
    probe = Probe(
        rows=encoder.encode_columns(_columns(drawn, lists.segment_N, item_B, request_index)),
        is_item_NK=np.ones((requests, candidates), np.bool_),
        truth_PNKT=np.stack(probe_truth),
    )
    # One of the rarer action is worth as many of the first as it is rarer: then no task decides alone.
    weights_T = np.array(world.base_rates[0]) / np.array(world.base_rates)
    return Stream(
        schema=schema,
        batches=batches,
        truth=truth,
        probe=probe,
        period=per_period,
        publish=per_period // publishes,
        weights_T=weights_T,
    )


def world_model(world: DriftingWorldConfig, dense_lr: float = 3e-3) -> ModelConfig:
    """Returns a model that is large enough for the world, and small."""
    return ModelConfig(
        architecture="shared_bottom",
        preset="custom",
        shared_bottom=SharedBottomConfig(bottom=(48, 24), tower=()),
        encoding=EncodingConfig(history_length=0, admission_ids=1, user_id=False),
        embedding=EmbeddingConfig(width=8),
        optim=OptimConfig(dense_lr=dense_lr, row_lr=0.15),
        priors={f"task-{n}": rate for n, rate in enumerate(world.base_rates)},
    )


def log_stream(
    data: CompareData, *, periods: int, publishes: int, probe_share: float, weights_T: Float64Array
) -> Stream:
    """Returns the stream of a source; its last slates, `probe_share` of the batches, are the probe and not learned."""
    num_probe = max(1, round(len(data.batches) * probe_share))
    period = (len(data.batches) - num_probe) // (periods * publishes) * publishes
    if period == 0:
        raise ValueError(f"periods: {periods} is not allowed; {len(data.batches)} batches are too few for them")
    learned, held = data.batches[: periods * period], data.batches[-num_probe:]
    rows = EncodedBatch.concat([batch.encoded for batch in held])
    label_BT = np.concatenate([batch.labels.label_BT for batch in held])
    num_N = np.bincount(rows.request_index_B)
    is_item_NK = np.arange(num_N.max()) < num_N[:, None]
    truth_NKT = np.zeros((*is_item_NK.shape, label_BT.shape[1]))
    truth_NKT[is_item_NK] = label_BT
    return Stream(
        schema=data.schema,
        batches=[
            replace(batch, labels=replace(batch.labels, watermark_ms=number * BATCH_MS))
            for number, batch in enumerate(learned)
        ],
        truth=[batch.labels.label_BT.astype(np.float64) for batch in learned],
        probe=Probe(rows=rows, is_item_NK=is_item_NK, truth_PNKT=np.repeat(truth_NKT[None], periods, axis=0)),
        period=period,
        publish=period // publishes,
        weights_T=weights_T,
    )


def run_stream(stream: Stream, config: ModelConfig, seed: int, *, shuffle: bool = False) -> Trace:
    """Returns what a model does that starts from nothing and learns each batch once.

    With `shuffle` the batches between two publishes come in an order drawn from the seed: the same data otherwise.
    """
    learner = Learner(stream.schema, config, seed)
    scores: dict[int, Float32Array] = {}
    ends, befores = [], []
    for first in range(0, stream.num_periods * stream.period, stream.publish):
        order = np.arange(first, first + stream.publish)
        if shuffle:
            order = np.random.default_rng([seed, first]).permutation(order)
        for place, number in enumerate(order.tolist(), start=first):
            scores[number] = learn(learner, stream.batches[number], place)
        done = first + stream.publish
        publish(learner, done)
        if done % stream.period == 0:
            ends.append(probed(stream, learner))
        elif (done + stream.publish) % stream.period == 0:
            befores.append(probed(stream, learner))
    return Trace(np.concatenate([scores[number] for number in sorted(scores)]), np.stack(ends), np.stack(befores))


def learn(learner: Learner, batch: CompareBatch, place: int) -> Float32Array:
    """Learns a batch as the `place`-th of the stream and returns the probabilities before, [B, T].

    Raises:
        ValueError: something was not finite.
    """
    watermark_ms = (place + 1) * BATCH_MS
    report = learner.learn(batch.encoded, replace(batch.labels, watermark_ms=watermark_ms))
    if report.skipped is not None:
        raise ValueError(f"{report.skipped} is not finite; try smaller learning rates")
    if learner.trained.teacher is not None:
        learner.trained.teacher.falls_due(watermark_ms)
    return sigmoid(report.logits_BT)


def publish(learner: Learner, num_batches: int) -> None:
    """Lets a version go live after so many batches, as the trainer does: teachers are copies of such versions."""
    model = learner.trained
    if model.teacher is None:
        return
    if model.teacher.is_due:
        model.take_teacher(num_batches, num_batches * BATCH_MS)
    model.promote_teacher(num_batches, {})


def every(publishes: int, publish_batches: int) -> int:
    """Returns the `teacher_refresh_ms` with which a new teacher comes at every so many publishes.

    The first one falls due so long after the first batch, and is taken at a publish alone: hence one batch less.
    """
    return max(publishes * publish_batches * BATCH_MS - BATCH_MS, 1)


def probed(stream: Stream, learner: Learner) -> Float64Array:
    """Returns the probabilities of the probe, [N, K, T]."""
    return stream.probe.by_request(sigmoid(learner.score(stream.probe.rows)))


def sigmoid(logit: Float32Array) -> Float32Array:
    """Returns probabilities."""
    return np.asarray(1 / (1 + np.exp(-logit)), np.float32)


def _world_batch(encoder: FeatureEncoder, world: DriftingWorld, rows: DriftingRows) -> CompareBatch:
    is_known_BT = np.ones(rows.label_BT.shape, np.bool_)
    columns = _columns(world, rows.segment_B, rows.item_B, np.arange(len(rows.item_B)))
    labels = LabelBatch(
        label_BT=rows.label_BT,
        mask_BT=is_known_BT,
        weight_BT=np.ones(rows.label_BT.shape, np.float32),
        first_BT=is_known_BT,
    )
    return CompareBatch(
        encoded=encoder.encode_columns(columns), labels=labels, judged_BT=is_known_BT, user_B=rows.segment_B
    )


def _columns(
    world: DriftingWorld,
    segment_R: npt.NDArray[np.int64],
    item_B: npt.NDArray[np.int64],
    request_B: npt.NDArray[np.integer],
) -> RowColumns:
    return RowColumns(
        scenario=["all"] * len(segment_R),
        user_id=[f"u{segment}" for segment in segment_R.tolist()],
        item_id=[f"i{item}" for item in item_B.tolist()],
        request_index_B=np.asarray(request_B, np.int64),
        user={"segment": [f"s{segment}" for segment in segment_R.tolist()]},
        item={"kind": [f"k{kind}" for kind in world.kind_of_item[item_B].tolist()]},
    )
