"""The trainer: examples in, steps, snapshots and checkpoints out.

One round of the loop: poll -> decode and encode -> for each micro-batch: score, progressive metrics, loss, step
(`model.learner`) -> publish if due -> checkpoint if due. The unit of progress is (partition, offset, row). It is in the
checkpoint and nowhere else, so every example is trained exactly once.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np

from model.batching import MicroBatcher, Part
from model.checkpoint import Checkpoint, CheckpointManifest, FileWriter, Position, load_latest, save_checkpoint
from model.compatibility import differences, weights_depend_on
from model.config import ModelConfig
from model.examples import ExampleDecoder, TrainRows
from model.exceptions import CheckpointMismatchError, ExampleError, TrainingDivergedError
from model.labels import LabelBatch
from model.learner import Learner
from model.progressive import MetricsConfig, ProgressiveMetrics
from model.publish import Identity, Progress, Publisher, PublishStats
from model.snapshot import Manifest
from model.source import ExampleMessage, ExampleSource
from model.step_report import StepReport
from model.store import SnapshotStore
from stream.schema import SchemaConfig

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerConfig:
    """How examples become steps, snapshots and checkpoints."""

    model_name: str = "main"
    """Name of the model line in the snapshot store."""
    seed: int = 0
    """Seed of the initial weights."""
    batch_rows: int = 512
    """Rows (items) of a micro-batch, at least: whole messages are added until there are as many; at least 1."""
    max_wait_ms: int = 20
    """How long a row may wait for its micro-batch to fill; not used by `deterministic`; at least 1."""
    poll_messages: int = 64
    """Messages of one poll, at most; at least 1."""
    deterministic: bool = False
    """Micro-batches depend on the log alone, so that every run over it ends with the same bits: no `max_wait_ms`, and
    partitions are merged by watermark, which waits for (and buffers beside) a partition that brings nothing. The bits
    also depend on the number of torch threads."""
    publish_interval_ms: int = 1_000
    """Time between snapshots while something is learned; at least 1."""
    full_every: int = 20
    """Every so many snapshots one is full; at least 1 (no deltas)."""
    checkpoint_interval_ms: int = 10_000
    """Time between checkpoints while something is learned; at least 1."""
    keep_checkpoints: int = 3
    """Checkpoints kept; at least 1."""
    max_skipped_in_row: int = 5
    """Stop with an error when so many micro-batches in a row were not finite; at least 1."""
    metrics: MetricsConfig = field(default_factory=MetricsConfig)
    """Windows of progressive validation."""

    def __post_init__(self) -> None:
        if not self.model_name:
            raise ValueError("model_name: must not be empty")
        for name in (
            "batch_rows",
            "max_wait_ms",
            "poll_messages",
            "publish_interval_ms",
            "full_every",
            "checkpoint_interval_ms",
            "keep_checkpoints",
            "max_skipped_in_row",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} is not allowed; at least 1")


@dataclass(slots=True)
class TrainerStats:
    """Counts of one trainer. Those in `_KEPT_COUNTS` go on over restarts, the others start with the process."""

    messages: int = 0
    """Messages of examples that were learned or set aside."""
    examples: int = 0
    """Examples (one item of a slate with its labels) in micro-batches."""
    steps: int = 0
    """Steps made."""
    skipped: int = 0
    """Micro-batches that the finite guard refused."""
    dead_letters: int = 0
    """Messages of examples that could not be decoded; read again after a restart, they count again."""
    repeated: int = 0
    """Messages of examples that came again although they were learned, and were ignored."""
    checkpoints: int = 0
    """Checkpoints written."""
    checkpoint_failures: int = 0
    """Checkpoints that could not be written: disk full, folder gone."""
    dense_clipped: int = 0
    """Steps whose dense gradient was clipped."""
    weights_capped: int = 0
    """Example weights that were cut to their maximum."""
    positives_held_back: int = 0
    """Positive labels that were not learned, because their scenario and task had no negative yet."""
    labels_weighed: int = 0
    """Labels whose weight their label policy computed (`fnw`, `es_dfm` and others; `wait` and `eager` compute none)."""
    labels_guarded: int = 0
    """Those of them with an estimate or a weight outside its valid range, cut to it; above 1 % look for the cause."""
    labels_unscored: int = 0
    """Settled labels that are in no figure, because neither a served nor a kept score of them was there."""
    scores_dropped: int = 0
    """Kept scores that were refused for want of room, or given up because their settled label never came."""
    heads_skipped: int = 0
    """Batches whose settled labels the auxiliary heads of a task left out, because something was not finite."""
    policies_begun: int = 0
    """Tasks whose auxiliary heads have learned from enough positives, so that their policy took over from `wait`."""


@dataclass(slots=True)
class TrainerGauges:
    """What a trainer is at now."""

    loss: float = 0.0
    """Of the last step."""
    grad_norm: float = 0.0
    """Of the last step: dense, before clipping."""
    watermark_ms: int = 0
    """Labels up to here are learned, in every partition that has brought any."""
    guarded_share: float = 0.0
    """Share of the weighed labels that were guarded, over all time."""
    checkpoint_ms: int = 0
    """How long the last checkpoint kept the trainer from training."""


_KEPT_COUNTS = (
    "messages",
    "examples",
    "steps",
    "skipped",
    "dead_letters",
    "labels_weighed",
    "labels_guarded",
    "labels_unscored",
    "scores_dropped",
    "policies_begun",
)


def _ignore_dead_letter(message: ExampleMessage, error: str) -> None:
    """The default: a dead letter is counted and logged, and goes nowhere."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerParts:
    """What a trainer works with besides its configuration; everything may be left out."""

    source: ExampleSource | None = None
    """None: messages are handed in with `Trainer.train_message`."""
    store: SnapshotStore | None = None
    """None: nothing is published."""
    checkpoint_dir: Path | None = None
    """None: no checkpoints."""
    dead_letter: Callable[[ExampleMessage, str], None] = _ignore_dead_letter
    """Is given each message that cannot be decoded, and the reason: at least once each."""
    writer: FileWriter = field(default_factory=FileWriter)
    """What writes checkpoints."""


class Trainer:
    """Trains one model from one source. One thread only.

    Life: construct, `resume` (done by `run`), then `run`, or `train_message` ... `flush`. Reads no clock but `now_ms`
    (processing time in ms).

    Raises:
        ValueError: a configuration that does not fit together.
    """

    def __init__(
        self,
        schema: SchemaConfig,
        config: TrainerConfig,
        model_config: ModelConfig,
        *,
        now_ms: Callable[[], int],
        parts: TrainerParts | None = None,
        config_hash: str = "",
        run_id: str = "",
    ) -> None:
        self._schema = schema
        self._config = config
        self._model_config = model_config
        self._now_ms = now_ms
        self._parts = parts or TrainerParts()
        self._config_hash = config_hash
        self._run_id = run_id
        self.learner = Learner(schema, model_config, config.seed)
        self.metrics = ProgressiveMetrics(schema.scenarios, tuple(schema.tasks), config.metrics, schema.max_window_ms)
        # Freshness is about actions that are learned as they come; those of the other tasks wait by intention.
        self._eager_T = np.array([task.policy == "eager" for task in schema.tasks.values()])
        self.stats = TrainerStats()
        self.gauges = TrainerGauges()
        self.publish_stats = PublishStats()
        self._decoder = ExampleDecoder(schema, self.learner.encoder)
        partitions = self._parts.source.partitions() if self._parts.source else ()
        self._batcher = MicroBatcher(
            partitions, batch_rows=config.batch_rows, order="log" if config.deterministic else "arrival"
        )
        self._positions: dict[int, Position] = {}
        self._watermarks_ms: dict[int, int] = {}
        self._next_offset: dict[int, int] = {}
        self._skipped_in_row = 0
        self._publisher = self._new_publisher(last_version=0)
        self._published_step = 0
        self._publish_due_ms = self._checkpoint_due_ms = now_ms()
        self._saved_positions: dict[int, Position] = {}

    @property
    def positions(self) -> dict[int, Position]:
        """Per partition, the next thing to train on."""
        return dict(self._positions)

    def run(self, should_stop: Callable[[], bool]) -> None:
        """Trains until told to stop, or until a source that ends is at its end; then writes a checkpoint.

        Raises:
            CheckpointMismatchError: the newest checkpoint is of a config that these weights cannot follow.
            StaleEpochError: another trainer has taken over publishing.
            TrainingDivergedError: several micro-batches in a row were not finite.
        """
        source = self._parts.source
        if source is None:
            raise ValueError("source: none given; use train_message, or give one")
        self.resume()
        source.seek({partition: position.offset for partition, position in self._positions.items()})
        self._checkpoint_due_ms = self._now_ms() + self._config.checkpoint_interval_ms
        while not should_stop():
            finished = source.finished()
            is_at_end = set(finished) >= set(source.partitions())
            batch = self._batcher.full_batch(finished)
            if batch is None and not self._config.deterministic and (is_at_end or self._has_waited()):
                batch = self._batcher.partial_batch()
            if batch is not None:
                self._train(batch)
            elif is_at_end:
                break
            else:
                for message in source.poll(self._config.poll_messages, self._config.max_wait_ms):
                    self._take(message)
            self.publish_if_due()
            self._checkpoint_if_due()
        self.checkpoint()

    def train_message(self, value: bytes, partition: int, offset: int) -> None:
        """Takes one message and trains the micro-batches that it completes."""
        self._take(ExampleMessage(partition, offset, value))
        while (batch := self._batcher.full_batch()) is not None:
            self._train(batch)

    def flush(self) -> None:
        """Trains what is left as one last, shorter micro-batch."""
        batch = self._batcher.partial_batch()
        if batch is not None:
            self._train(batch)

    def _take(self, message: ExampleMessage) -> None:
        position = self._positions.get(message.partition, Position(0))
        if message.offset < self._next_offset.get(message.partition, position.offset):
            self.stats.repeated += 1
            return
        self._next_offset[message.partition] = message.offset + 1
        order_ms, watermark_ms, settle_ms, rows = -1, -1, 0, None
        try:
            decoded = self._decoder.decode(message.value)
        except ExampleError as error:
            self.stats.dead_letters += 1
            self._parts.dead_letter(message, str(error))
            logger.warning(
                "Examples set aside partition=%d offset=%d error=%s", message.partition, message.offset, error
            )
        else:
            order_ms, watermark_ms, settle_ms = decoded.order_ms, decoded.watermark_ms, decoded.settle_ms
            rows = decoded.rows if decoded.rows.num_rows else None
        part = Part(
            partition=message.partition,
            offset=message.offset,
            order_ms=order_ms,
            watermark_ms=watermark_ms,
            settle_ms=settle_ms,
            arrived_ms=self._now_ms(),
            rows=rows,
            after=Position(message.offset + 1),
        )
        self._batcher.push(part, first_row=position.row if message.offset == position.offset else 0)

    def _has_waited(self) -> bool:
        oldest_ms = self._batcher.oldest_ms()
        return oldest_ms is not None and self._now_ms() - oldest_ms >= self._config.max_wait_ms

    def _train(self, parts: list[Part]) -> None:
        """Learns one micro-batch, then moves the positions."""
        rows = [part.rows for part in parts if part.rows is not None]
        if rows:
            self._step(TrainRows.concat(rows), parts)
        for part in parts:
            self._positions[part.partition] = part.after
            self.stats.messages += part.after.row == 0
            if part.watermark_ms >= 0 and part.after.row == 0:
                self._watermarks_ms[part.partition] = part.watermark_ms
        self.gauges.watermark_ms = min(self._watermarks_ms.values(), default=0)
        self.metrics.advance(self.gauges.watermark_ms, max(part.settle_ms for part in parts))

    def _step(self, rows: TrainRows, parts: list[Part]) -> None:
        labels = LabelBatch(
            label_BT=rows.label_BT,
            mask_BT=rows.mask_BT,
            weight_BT=rows.weight_BT,
            first_BT=rows.first_BT,
            delayed=rows.delayed,
        )
        report = self.learner.learn(rows.batch, labels)
        self.stats.examples += rows.num_rows
        if report.skipped is not None:
            self._skipped(report.skipped, parts)
            return
        self._skipped_in_row = 0
        self.metrics.update(
            scenario_B=rows.batch.scenario_B,
            impression_ms_B=rows.impression_ms_B,
            label_BT=rows.label_BT,
            settled_BT=rows.settled_BT,
            pre_step_logit_BT=report.logits_BT,
            served_BT=rows.served_BT,
            first_BT=rows.first_BT,
            delayed=rows.delayed,
        )
        if report.made:
            self.stats.steps += 1
            self.gauges.loss, self.gauges.grad_norm = report.loss, report.grad_norm
        self.stats.dense_clipped += report.dense_clipped
        self.stats.weights_capped += report.weights_capped
        self.stats.positives_held_back += report.positives_held_back
        if rows.delayed is not None:
            self._count_delayed(report, parts)
        if self._publisher is not None:
            feedback_ms_BE = rows.feedback_ms_BT[:, self._eager_T]
            self._publisher.feedback.add(feedback_ms_BE[feedback_ms_BE >= 0])

    def _count_delayed(self, report: StepReport, parts: list[Part]) -> None:
        """Counts what only policies that correct labels later have."""
        stats = self.stats
        stats.labels_weighed += report.labels_weighed
        stats.labels_guarded += report.labels_guarded
        stats.heads_skipped += report.heads_skipped
        stats.policies_begun += len(report.policies_begun)
        stats.labels_unscored = self.metrics.num_unscored
        stats.scores_dropped = self.metrics.num_scores_dropped
        self.gauges.guarded_share = stats.labels_guarded / stats.labels_weighed if stats.labels_weighed else 0.0
        for task in report.policies_begun:
            where = ", ".join(f"{part.partition}@{part.offset}" for part in parts)
            logger.info(
                "Auxiliary heads have learned enough, the policy begins task=%s partition@offset=%s", task, where
            )

    def _skipped(self, reason: str, parts: list[Part]) -> None:
        self.stats.skipped += 1
        self._skipped_in_row += 1
        where = ", ".join(f"{part.partition}@{part.offset}" for part in parts)
        logger.error("Micro-batch skipped, not finite part=%s partition@offset=%s", reason, where)
        if self._skipped_in_row >= self._config.max_skipped_in_row:
            raise TrainingDivergedError(
                f"{self._skipped_in_row} micro-batches in a row were not finite ({reason}), the last at {where}"
            )

    def publish_if_due(self) -> Manifest | None:
        """Publishes if something was learned and the interval is over. Returns what went live, if anything."""
        is_new = self.learner.num_steps > self._published_step
        if self._publisher is None or not is_new or self._now_ms() < self._publish_due_ms:
            return None
        return self.publish()

    def publish(self) -> Manifest | None:
        """Publishes now. Returns what went live; None if nothing did (counted and logged), or without a store.

        Raises:
            StaleEpochError: another trainer has taken over publishing.
        """
        if self._publisher is None:
            return None
        started_ms = self._now_ms()
        self._publish_due_ms = started_ms + self._config.publish_interval_ms
        progress = Progress(
            step=self.learner.num_steps,
            watermark_ms=self.gauges.watermark_ms,
            offsets={partition: position.offset for partition, position in self._positions.items()},
            metrics=self.metrics.report("window"),
        )
        manifest = self._publisher.publish(self.learner.trained, progress)
        if manifest is not None:
            self._published_step = manifest.step
        else:
            # A store that hangs costs a time-out per attempt: at most a quarter of the time goes into those.
            ended_ms = self._now_ms()
            self._publish_due_ms = max(self._publish_due_ms, ended_ms + 3 * (ended_ms - started_ms))
        return manifest

    def _new_publisher(self, last_version: int) -> Publisher | None:
        if self._parts.store is None:
            return None
        identity = Identity(
            model=self._config.model_name,
            schema_hash=self._schema.schema_hash(),
            config_hash=self._config_hash,
            scenarios=list(self._schema.scenarios),
            tasks=list(self._schema.tasks),
            model_config=msgspec.to_builtins(self._model_config),
            run_id=self._run_id,
        )
        return Publisher(
            self._parts.store,
            identity,
            full_every=self._config.full_every,
            now_ms=self._now_ms,
            last_version=last_version,
            stats=self.publish_stats,
        )

    def _checkpoint_if_due(self) -> None:
        if self._now_ms() >= self._checkpoint_due_ms:
            self._checkpoint_due_ms = self._now_ms() + self._config.checkpoint_interval_ms
            self.checkpoint()

    def checkpoint(self) -> Path | None:
        """Writes a checkpoint. Returns its path; None if there is nothing new, no folder, or no room (counted)."""
        folder = self._parts.checkpoint_dir
        if folder is None or self._positions == self._saved_positions:
            return None
        started_ms = self._now_ms()
        try:
            path = save_checkpoint(folder, self._state(), keep=self._config.keep_checkpoints, writer=self._parts.writer)
        except OSError as error:
            self.stats.checkpoint_failures += 1
            logger.error("Checkpoint not written, training goes on folder=%s error=%s", folder, error)
            return None
        self.stats.checkpoints += 1
        self.gauges.checkpoint_ms = self._now_ms() - started_ms
        self._saved_positions = dict(self._positions)
        logger.info("Checkpoint written path=%s step=%d", path, self.learner.num_steps)
        return path

    def _state(self) -> Checkpoint:
        manifest = CheckpointManifest(
            step=self.learner.num_steps,
            positions=self._positions,
            watermarks_ms=self._watermarks_ms,
            version=self._publisher.last_version if self._publisher else 0,
            epoch=self.publish_stats.epoch,
            schema_hash=self._schema.schema_hash(),
            config_hash=self._config_hash,
            depends_on=weights_depend_on(self._schema, self._model_config),
            learner_meta=self.learner.trained.state_meta(),
            counters={name: getattr(self.stats, name) for name in _KEPT_COUNTS},
        )
        return Checkpoint(manifest, self.learner.trained.state(), self.metrics.state())

    def resume(self) -> bool:
        """Takes up the newest whole checkpoint. Returns whether there was one.

        Raises:
            CheckpointMismatchError: it is of a config that these weights cannot follow; says what changed.
        """
        folder = self._parts.checkpoint_dir
        checkpoint = load_latest(folder) if folder is not None else None
        if checkpoint is None:
            return False
        manifest = checkpoint.manifest
        changed = list(differences(manifest.depends_on, weights_depend_on(self._schema, self._model_config)))
        if changed:
            raise CheckpointMismatchError(
                f"the checkpoint of step {manifest.step} cannot be continued, the config changed: {'; '.join(changed)}"
            )
        try:
            self.learner.trained.load_state(checkpoint.tensors, manifest.learner_meta)
        except ValueError as error:
            raise CheckpointMismatchError(f"the checkpoint of step {manifest.step} does not fit: {error}") from error
        self.metrics.load_state(checkpoint.metrics)
        self._positions = dict(manifest.positions)
        self._watermarks_ms = dict(manifest.watermarks_ms)
        self._next_offset = {}
        for name, count in manifest.counters.items():
            setattr(self.stats, name, count)
        self._saved_positions = dict(self._positions)
        self._publisher = self._new_publisher(last_version=manifest.version)
        logger.info("Resumed from a checkpoint step=%d positions=%s", manifest.step, manifest.positions)
        return True
