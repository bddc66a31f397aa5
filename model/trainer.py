"""The trainer: examples in, steps, snapshots and checkpoints out.

One round of the loop: poll -> decode and encode -> for each micro-batch: score, progressive metrics, loss, step
(`model.learner`) -> publish if due -> checkpoint if due. How far it is: `model.intake`.
"""

import logging
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from model.batching import MicroBatcher, Part
from model.canary import Canary
from model.checkpoint import Position, save_checkpoint
from model.compatibility import weights_depend_on
from model.config import ModelConfig
from model.device import device_of
from model.examples import ExampleDecoder, TrainRows
from model.exceptions import TrainingDivergedError
from model.features import EncodedBatch
from model.gate import PublishGate
from model.gate_means import GateMeans
from model.gate_watch import GateWatch
from model.intake import Intake
from model.labels import LabelBatch
from model.learner import Learner
from model.pace import Pace
from model.progressive import ProgressiveMetrics
from model.publish import Identity, Progress, Publisher, PublishStats
from model.rollback import checkpoint_after
from model.served_teacher import ServedScores
from model.snapshot import Manifest
from model.source import ExampleMessage
from model.step_report import StepReport
from model.teacher_releases import TeacherReleases
from model.trainer_config import TrainerConfig, TrainerParts
from model.trainer_state import TrainerState
from model.trainer_stats import TrainerGauges, TrainerStats
from stream.schema import SchemaConfig

logger = logging.getLogger(__name__)

_LONGEST_PUBLISH_MS = 60_000


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
        self.learner = Learner(schema, model_config, config.seed, device_of(config.device))
        self.metrics = ProgressiveMetrics(
            schema.scenarios, tuple(schema.tasks), config.metrics, schema.max_window_ms, model_config.calibration
        )
        # Freshness is about actions that are learned as they come; those of the other tasks wait by intention.
        self._eager_T = np.array([task.policy == "eager" for task in schema.tasks.values()])
        self.gate = PublishGate(config.gate, schema, model_config, weights=self._parts.weights)
        self._watch = GateWatch(
            config.gate,
            self.gate,
            Canary(config.canary, tuple(schema.tasks)),
            store=self._parts.store,
            folder=self._parts.checkpoint_dir,
            deterministic=config.deterministic,
        )
        self._teachers = TeacherReleases(self.learner.trained)
        self.gate_means = GateMeans(self.learner.gate_usage)
        self.stats = TrainerStats()
        self.gauges = TrainerGauges()
        self.publish_stats = PublishStats()
        partitions = self._parts.source.partitions() if self._parts.source else ()
        self._batcher = MicroBatcher(
            partitions, batch_rows=config.batch_rows, order="log" if config.deterministic else "arrival"
        )
        self._intake = Intake(
            ExampleDecoder(schema, self.learner.encoder),
            self._batcher,
            dead_letter=self._parts.dead_letter,
            now_ms=now_ms,
            stats=self.stats,
        )
        self._state = TrainerState(
            model=self.learner.trained,
            metrics=self.metrics,
            gate=self.gate,
            intake=self._intake,
            stats=self.stats,
            schema_hash=schema.schema_hash(),
            config_hash=config_hash,
            depends_on=weights_depend_on(schema, model_config),
        )
        self._skipped_in_row = 0
        self._publisher = self._new_publisher(last_version=0)
        self._published_step = 0
        self._until_publish, self._until_checkpoint = Pace(now_ms), Pace(now_ms)
        self._saved_positions: dict[int, Position] = {}

    @property
    def positions(self) -> dict[int, Position]:
        """Per partition, the next thing to train on."""
        return dict(self._intake.positions)

    def run(self, should_stop: Callable[[], bool]) -> None:
        """Trains until told to stop, or until a source that ends is at its end; then writes a checkpoint.

        Raises:
            CheckpointMismatchError: the newest checkpoint is of a config that these weights cannot follow.
            StaleEpochError: another trainer has taken over publishing, or a rollback was made by hand.
            RolledBackError: the gate has rolled back; a new trainer goes on from before.
            TrainingDivergedError: several micro-batches in a row were not finite.
        """
        source = self._parts.source
        if source is None:
            raise ValueError("source: none given; use train_message, or give one")
        self.resume()
        source.seek({partition: position.offset for partition, position in self._intake.positions.items()})
        self._until_checkpoint.wait(self._config.checkpoint_interval_ms)
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
                for message in source.poll(self._config.poll_messages, self._poll_timeout_ms()):
                    self._intake.take(message)
            self.publish_if_due()
            self._checkpoint_if_due()
        self.checkpoint()

    def train_message(self, value: bytes, partition: int, offset: int) -> None:
        """Takes one message and trains the micro-batches that it completes."""
        self._intake.take(ExampleMessage(partition, offset, value))
        while (batch := self._batcher.full_batch()) is not None:
            self._train(batch)

    def flush(self) -> None:
        """Trains what is left as one last, shorter micro-batch."""
        batch = self._batcher.partial_batch()
        if batch is not None:
            self._train(batch)

    def _has_waited(self) -> bool:
        oldest_ms = self._batcher.oldest_ms()
        return oldest_ms is not None and not 0 <= self._now_ms() - oldest_ms < self._config.max_wait_ms

    def _poll_timeout_ms(self) -> int:
        """Returns how long a poll may wait: until the oldest row has waited long enough, or a snapshot is due."""
        longest_ms = self._config.max_wait_ms
        oldest_ms = self._batcher.oldest_ms()
        if oldest_ms is not None and not self._config.deterministic:
            longest_ms = min(longest_ms, oldest_ms + self._config.max_wait_ms - self._now_ms())
        if self._publisher is not None and self.learner.num_steps > self._published_step:
            longest_ms = min(longest_ms, self._until_publish.left_ms())
        return max(1, longest_ms)

    def _train(self, parts: list[Part]) -> None:
        """Learns one micro-batch, then moves the positions."""
        rows = [part.rows for part in parts if part.rows is not None]
        if rows:
            self._step(TrainRows.concat(rows), parts)
        self._intake.learned(parts)
        self.gauges.watermark_ms = self._intake.watermark_ms
        self.metrics.advance(self.gauges.watermark_ms, max(part.settle_ms for part in parts))
        teacher = self.learner.trained.teacher
        if teacher is not None and teacher.falls_due(self.gauges.watermark_ms):
            self._renew_teacher()
        self._watch.look(
            self._intake.positions,
            self._publisher,
            now_ms=self._now_ms(),
            watermark_ms=self.gauges.watermark_ms,
            grace_ms=max(part.settle_ms for part in parts) - self._schema.max_window_ms,
            rows_learned=self.stats.examples,
        )
        self._teachers.released(self.publish_stats.released)

    def _step(self, rows: TrainRows, parts: list[Part]) -> None:
        labels = LabelBatch(
            label_BT=rows.label_BT,
            mask_BT=rows.mask_BT,
            weight_BT=rows.weight_BT,
            first_BT=rows.first_BT,
            watermark_ms=self._intake.watermark_ms,
            sampling_B=rows.sampling_B,
            served=ServedScores(
                probability_BT=rows.served_BT, version_B=rows.version_B, impression_ms_B=rows.impression_ms_B
            ),
            delayed=rows.delayed,
        )
        batch = self.learner.resolved(rows.batch)
        if self.gate.is_holding:
            self._observe(rows, batch, self.learner.score(batch))
            self.stats.held += rows.num_rows
            return
        report = self.learner.learn(batch, labels)
        self.stats.examples += rows.num_rows
        if report.skipped is not None:
            self._skipped(report.skipped, parts)
            return
        self._skipped_in_row = 0
        self._observe(rows, batch, report.logits_BT)
        self.metrics.update(
            scenario_B=batch.scenario_B,
            impression_ms_B=rows.impression_ms_B,
            label_BT=rows.label_BT,
            settled_BT=rows.settled_BT,
            pre_step_logit_BT=report.logits_BT,
            served_BT=rows.served_BT,
            first_BT=rows.first_BT,
            delayed=rows.delayed,
        )
        self.gate_means.observe(batch, self._now_ms())
        self.stats.count(report)
        if report.made:
            self.gauges.loss, self.gauges.grad_norm = report.loss, report.grad_norm
        if rows.delayed is not None:
            self._count_delayed(report, parts)
        if self._publisher is not None:
            feedback_ms_BE = rows.feedback_ms_BT[:, self._eager_T]
            row_N, task_N = np.nonzero(feedback_ms_BE >= 0)
            written_ms_B = np.repeat([part.written_ms for part in parts], [part.num_rows for part in parts])
            self._publisher.feedback.add(feedback_ms_BE[row_N, task_N], written_ms_B[row_N], self._now_ms())
        self._count_unknown(rows)

    def _observe(self, rows: TrainRows, batch: EncodedBatch, logit_BT: npt.NDArray[np.float32]) -> None:
        if self._publisher is None:
            return
        counters, watermark_ms = self.learner.trained.table.counters, self._intake.watermark_ms
        self._watch.observe(rows, batch, logit_BT, counters, now_ms=self._now_ms(), watermark_ms=watermark_ms)

    def _count_unknown(self, rows: TrainRows) -> None:
        """Counts what was learned of scenarios that are no part of the model, and adds those that have enough."""
        if not rows.batch.unknown_scenarios:
            return
        model = self.learner.trained
        for name, num_rows in rows.batch.rows_of_unknown(np.ones(rows.num_rows, np.bool_)).items():
            self.stats.unknown_rows += num_rows if name not in model.registry.names else 0
        is_first_B: npt.NDArray[np.bool_] = np.any(rows.first_BT, axis=1)
        for name in model.growth.count(rows.batch.rows_of_unknown(is_first_B)):
            model.add_scenario(name)
            self.metrics.add_scenario(name)
            self.gate.add_scenario(name)
            self.stats.scenarios_added += 1
            logger.info(
                "Scenario added scenario=%s index=%d parent=%s step=%d",
                name, model.registry.index(name), model.registry.parents[name], model.num_steps,
            )  # fmt: skip

    def _count_delayed(self, report: StepReport, parts: list[Part]) -> None:
        """Takes note of what only policies that correct labels later have."""
        stats = self.stats
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
        if self._publisher is None or not is_new or not self._until_publish.is_due():
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
        self._until_publish.wait(self._config.publish_interval_ms)
        progress = Progress(
            step=self.learner.num_steps,
            watermark_ms=self.gauges.watermark_ms,
            offsets={partition: position.offset for partition, position in self._intake.positions.items()},
            metrics=self.metrics.report("window"),
            rows=self.stats.examples,
            calibration=self.metrics.calibration(),
        )
        manifest = self._publisher.publish(self.learner.trained, progress)
        if manifest is not None:
            self._published_step = manifest.step
            self._teachers.published(manifest, self.gauges.watermark_ms)
            self._teachers.released(self.publish_stats.released)
        else:
            # A store that hangs costs a time-out per attempt: at most a quarter of the time goes into those.
            took_ms = min(max(0, self._now_ms() - started_ms), _LONGEST_PUBLISH_MS)  # or the clock was set meanwhile
            self._until_publish.wait(max(self._config.publish_interval_ms - took_ms, 3 * took_ms))
        return manifest

    def _renew_teacher(self) -> None:
        """Publishes at once, so that when the teacher is copied depends on event time alone.

        If that fails, the next version that goes live is copied. Where nothing is published every copy teaches.
        """
        if self._publisher is not None:
            self.publish()
            return
        model = self.learner.trained
        model.take_teacher(0, self.gauges.watermark_ms)
        model.promote_teacher(0, {})

    def deny_teacher(self, version: int) -> None:
        """Lets a version that was rolled back teach no more, from the next step on."""
        if self.learner.trained.teacher is not None:
            self.learner.trained.teacher.deny(version)

    def _new_publisher(self, last_version: int) -> Publisher | None:
        if self._parts.store is None:
            return None
        identity = Identity(
            model=self._config.model_name,
            schema_hash=self._schema.schema_hash(),
            config_hash=self._config_hash,
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
            gate=self.gate,
            canary=self._watch.canary,
        )

    def _checkpoint_if_due(self) -> None:
        if self._until_checkpoint.is_due():
            self._until_checkpoint.wait(self._config.checkpoint_interval_ms)
            self.checkpoint()

    def checkpoint(self) -> Path | None:
        """Writes a checkpoint. Returns its path; None if there is nothing new, no folder, or no room (counted)."""
        folder = self._parts.checkpoint_dir
        if folder is None or self._intake.positions == self._saved_positions:
            return None
        started_ms = self._now_ms()
        try:
            checkpoint = self._state.checkpoint(
                version=self._publisher.last_version if self._publisher else 0,
                epoch=self.publish_stats.epoch,
                rollback_epoch=self._watch.rollback_epoch,
            )
            path = save_checkpoint(folder, checkpoint, keep=self._config.keep_checkpoints, writer=self._parts.writer)
        except OSError as error:
            self.stats.checkpoint_failures += 1
            logger.error("Checkpoint not written, training goes on folder=%s error=%s", folder, error)
            return None
        self.stats.checkpoints += 1
        self.gauges.checkpoint_ms = self._now_ms() - started_ms
        self._saved_positions = dict(self._intake.positions)
        logger.info("Checkpoint written path=%s step=%d", path, self.learner.num_steps)
        return path

    def resume(self) -> bool:
        """Takes up the newest whole checkpoint. Returns whether there was one.

        Raises:
            CheckpointMismatchError: it is of a config that these weights cannot follow; says what changed.
        """
        folder, rollback = self._parts.checkpoint_dir, self._watch.last_rollback()
        checkpoint = checkpoint_after(folder, rollback) if folder is not None else None
        if checkpoint is not None:
            self._state.take_up(checkpoint)
            manifest = checkpoint.manifest
            self._saved_positions = self.positions
            self._publisher = self._new_publisher(last_version=manifest.version)
            logger.info("Resumed from a checkpoint step=%d positions=%s", manifest.step, manifest.positions)
        if self._parts.store is not None:
            self._teachers.take_up(self._parts.store)
        if rollback is not None and folder is not None:
            self._intake.quarantine = rollback.quarantine
            known_epoch = checkpoint.manifest.rollback_epoch if checkpoint is not None else 0
            self._watch.take_up(rollback, self._intake.positions, known_epoch)
            for version in rollback.denied:
                self.deny_teacher(version)
        return checkpoint is not None
