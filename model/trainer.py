"""The trainer: examples in, steps, snapshots and checkpoints out.

One round of the loop: poll -> decode and encode -> for each micro-batch: score, progressive metrics, loss, step
(`model.learner`) -> publish if due -> checkpoint if due. How far it is: `model.intake`.

On several ranks each runs this loop, on the same micro-batches (`model.batch_feed`) with the rows that it has read
itself. One of them, the lead, keeps the metrics, judges, publishes, and says once per round what all have to do.
"""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from model.batch_feed import BatchFeed, Hello
from model.batching import Part
from model.canary import Canary
from model.checkpoint import Position, save_checkpoint
from model.cold_deal import opened
from model.compatibility import weights_depend_on
from model.config import ModelConfig
from model.decode_ahead import DecodeAhead
from model.device import device_of
from model.examples import ExampleDecoder, TrainRows
from model.exceptions import TrainingDivergedError
from model.features import EncodedBatch
from model.gate import PublishGate
from model.gate_data import BatchCounts
from model.gate_means import GateMeans
from model.gate_watch import GateWatch
from model.gathered_rows import GatheredModel
from model.intake import Intake
from model.labels import LabelBatch
from model.lead import from_lead
from model.learner import Learner
from model.pace import Pace
from model.progressive import ProgressiveMetrics
from model.publish import Identity, Progress, Publisher, PublishStats
from model.publishing import Publishing
from model.rank_checks import check_shared
from model.ranks import Ranks
from model.rollback import checkpoint_after
from model.row_publish import RowPublisher
from model.served_teacher import ServedScores
from model.snapshot import Manifest
from model.source import ExampleMessage, ExampleSource
from model.step_columns import StepColumns
from model.step_gather import gathered
from model.step_report import StepReport
from model.store import Rollback
from model.teacher_releases import TeacherReleases
from model.trainer_config import TrainerConfig, TrainerParts
from model.trainer_state import TrainerState
from model.trainer_stats import TrainerGauges, TrainerStats
from stream.schema import SchemaConfig

logger = logging.getLogger(__name__)


class Decision(msgspec.Struct, frozen=True, tag=True):
    """What the lead says once per round."""

    publishes: bool
    saves: bool
    is_holding: bool
    looks_at_gates: bool
    """Whether to look at the experts' gates in the next micro-batch."""


class LastRollback(msgspec.Struct, frozen=True, tag=True):
    """What was rolled back last, as the lead has found it; None: nothing."""

    rollback: Rollback | None


class Trainer:
    """Trains one model from one source, or as one of several ranks that train it together. One thread only.

    Life: construct, `resume` (done by `run`), then `run`; or, in a world of one, `train_message` ... `flush`. Reads no
    clock but `now_ms` (processing time in ms).

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
        self._ranks = self._parts.ranks
        self._config_hash = config_hash
        self._run_id = run_id
        self.learner = Learner(schema, model_config, config.seed, device_of(config.device), self._ranks)
        self.metrics = ProgressiveMetrics(
            schema.scenarios, tuple(schema.tasks), config.metrics, schema.max_window_ms, model_config.calibration
        )
        # Freshness is about actions that are learned as they come; those of the other tasks wait by intention.
        self._eager_T = np.array([task.policy == "eager" for task in schema.tasks.values()])
        self.gate = PublishGate(
            config.gate, schema, model_config, weights=self._parts.weights, judged_share=config.judged_share
        )
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
        decoder = ExampleDecoder(schema, self.learner.encoder)
        self._nothing = decoder.nothing()
        self._intake = Intake(
            decoder,
            # In order of arrival each rank brings a share of a micro-batch; in log order ranks must not be seen in it.
            most_rows=config.batch_rows if config.deterministic else -(-config.batch_rows // self._ranks.size),
            dead_letter=self._parts.dead_letter,
            now_ms=now_ms,
            stats=self.stats,
        )
        self._feed = BatchFeed(
            self._intake,
            self._ranks,
            partitions,
            batch_rows=config.batch_rows,
            max_wait_ms=config.max_wait_ms,
            order="log" if config.deterministic else "arrival",
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
        self._use_cold([])
        self._skipped_in_row = 0
        self._publishing = Publishing(
            self.learner.trained, self._ranks, interval_ms=config.publish_interval_ms, now_ms=now_ms
        )
        self._publishing.publisher = self._new_publisher(last_version=0)
        self._publishing.is_on = self._parts.store is not None
        self._looks_at_gates = False
        self._until_checkpoint = Pace(now_ms)
        self._saved_positions: dict[int, Position] = {}

    @property
    def ranks(self) -> Ranks:
        """The ranks that train together."""
        return self._ranks

    @property
    def num_partitions(self) -> int:
        """How many partitions this rank reads."""
        return len(self._parts.source.partitions()) if self._parts.source else 0

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
        if not self._config.decode_ahead:
            self._run(source, should_stop)
            return
        ahead = DecodeAhead(source, self._intake.decode, max_messages=self._config.decode_ahead)
        self._intake.decode = ahead.decode
        with closing(ahead):
            self._run(ahead, should_stop)

    def _run(self, source: ExampleSource, should_stop: Callable[[], bool]) -> None:
        hashes = {"config hash": self._config_hash, "schema hash": self._schema.schema_hash()}
        hello = Hello(sorted(source.partitions()), hashes, self._parts.store is not None)
        self._publishing.is_on = self._feed.meet(hello)
        if self._parts.checkpoint_dir is not None:
            check_shared(self._ranks, self._parts.checkpoint_dir)
        self.resume()
        mine = set(source.partitions())
        source.seek({p: position.offset for p, position in self._intake.positions.items() if p in mine})
        self._until_checkpoint.wait(self._config.checkpoint_interval_ms)
        while not self._ranks.any(should_stop()):
            batch = self._feed.next_batch()
            if batch is not None:
                self._train(batch)
            elif self._feed.is_at_end:
                break
            else:
                self._feed.fetch(
                    source,
                    max_messages=self._config.poll_messages,
                    timeout_ms=self._poll_timeout_ms(),
                )
            self._heed(from_lead(self._ranks, lambda done=batch: self._decide(done), Decision))  # type: ignore[misc]
        self.checkpoint()

    def train_message(self, value: bytes, partition: int, offset: int) -> None:
        """Takes one message and trains the micro-batches that it completes."""
        for part in self._intake.take(ExampleMessage(partition, offset, value)):
            self._feed.batcher.push(part)
        while (batch := self._feed.batcher.full_batch()) is not None:
            self._train(batch)
            self._look(batch)

    def flush(self) -> None:
        """Trains what is left as one last, shorter micro-batch."""
        batch = self._feed.batcher.partial_batch()
        if batch is not None:
            self._train(batch)
            self._look(batch)

    def _poll_timeout_ms(self) -> int:
        """Returns how long a poll may wait: until the oldest row has waited long enough, or a snapshot is due.

        Not at all while another rank may have more to read, for all wait for the slowest.
        """
        if self._ranks.size > 1 and self._feed.was_fruitful:
            return 1
        longest_ms = self._config.max_wait_ms
        oldest_ms = self._feed.batcher.oldest_ms()
        if oldest_ms is not None and not self._config.deterministic:
            longest_ms = min(longest_ms, oldest_ms + self._config.max_wait_ms - self._now_ms())
        if self._publishing.has_news:
            longest_ms = min(longest_ms, self._publishing.left_ms())
        return max(1, longest_ms)

    def _train(self, parts: list[Part]) -> None:
        """Learns one micro-batch, then moves the positions."""
        if any(part.num_rows for part in parts):
            self._step(self._rows_of(parts), parts)
        self._intake.learned(parts)
        self.gauges.watermark_ms = self._intake.watermark_ms
        self.metrics.advance(self.gauges.watermark_ms, max(part.settle_ms for part in parts))
        teacher = self.learner.trained.teacher
        if teacher is not None and teacher.falls_due(self.gauges.watermark_ms):
            self._renew_teacher()

    def _rows_of(self, parts: Sequence[Part]) -> TrainRows:
        """Returns the rows of a micro-batch that are here; none at all is possible where there are several ranks."""
        here = [part.rows for part in parts if part.rows is not None]
        rows = TrainRows.concat(here) if here else self._nothing
        if rows.delayed is None and any(part.about.has_delayed for part in parts):
            return replace(rows, delayed=rows.as_final())
        return rows

    def _look(self, parts: Sequence[Part]) -> None:
        """Lets who watches look at what a micro-batch has changed; on the lead.

        Raises:
            RolledBackError: something is out of order, and the pointer is back where it was not.
            StaleEpochError: another trainer has taken over, or a rollback was made by hand.
        """
        self._watch.look(
            self._intake.positions,
            self._publishing.publisher,
            now_ms=self._now_ms(),
            watermark_ms=self.gauges.watermark_ms,
            grace_ms=max(part.settle_ms for part in parts) - self._schema.max_window_ms,
            rows_learned=self.stats.examples,
        )
        self._teachers.released(self.publish_stats.released)

    def _decide(self, parts: Sequence[Part] | None) -> Decision:
        """Returns what is to be done after a round, of which `parts` were trained; on the lead."""
        if parts is not None:
            self._look(parts)
        return Decision(
            publishes=self._publishing.is_due(),
            saves=self._until_checkpoint.is_due(),
            is_holding=self.gate.is_holding,
            looks_at_gates=self.gate_means.is_due(self._now_ms()),
        )

    def _heed(self, decision: Decision) -> None:
        self.gate.is_holding = decision.is_holding
        self._looks_at_gates = decision.looks_at_gates
        if decision.publishes:
            self.publish()
        if decision.saves:
            self._until_checkpoint.wait(self._config.checkpoint_interval_ms)
            self.checkpoint()

    def _step(self, rows: TrainRows, parts: Sequence[Part]) -> None:
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
        num_rows = sum(part.num_rows for part in parts)
        if self.gate.is_holding:
            self._show(rows, batch, self.learner.score(batch), parts)
            self.stats.held += num_rows
            return
        report = self.learner.learn(batch, labels)
        self.stats.examples += num_rows
        if report.skipped is not None:
            self._skipped(report.skipped, parts)
            return
        self._skipped_in_row = 0
        seen = self._show(rows, batch, report.logits_BT, parts) if self._is_judged() else None
        if seen is not None:
            self._count_metrics(seen, parts)
        alone = self._ranks.size == 1
        if self.gate_means.is_due(self._now_ms()) if alone else self._looks_at_gates:
            self._looks_at_gates = False
            self.gate_means.observe(batch, self._now_ms())
        self.stats.count(report)
        if report.made:
            self.gauges.loss, self.gauges.grad_norm = report.loss, report.grad_norm
        if rows.delayed is not None:
            self._count_delayed(report, parts)
        self._count_unknown(parts)

    def _is_judged(self) -> bool:
        """Returns whether the micro-batch just learned is one that is looked at, the same on every rank."""
        num_steps, share = self.learner.num_steps, self._config.judged_share
        return int(num_steps * share) > int((num_steps - 1) * share)

    def _show(
        self, rows: TrainRows, batch: EncodedBatch, logit_BT: npt.NDArray[np.float32], parts: Sequence[Part]
    ) -> StepColumns | None:
        """Shows the gate a micro-batch with its scores from before it was learned. Returns it on the lead, else None.

        The rows are in the order that one rank would have had them in.
        """
        seen = StepColumns.of(rows, batch.scenario_B, logit_BT)
        counts: BatchCounts | None = None
        if self._publishing.is_on:
            counts = self.gate.count(batch, self.learner.trained.table.counters)
        whole = gathered(self._ranks, seen, counts, parts, self._feed.rank_of)
        if whole is None:
            return None
        seen, counts = whole
        if counts is not None:
            now_ms, watermark_ms = self._now_ms(), self._intake.watermark_ms
            self._watch.observe(seen, counts, batch, now_ms=now_ms, watermark_ms=watermark_ms)
        return seen

    def _count_metrics(self, seen: StepColumns, parts: Sequence[Part]) -> None:
        """Takes a micro-batch into the metrics and into what the next version will be the first to know."""
        self.metrics.update(
            scenario_B=seen.scenario_B,
            impression_ms_B=seen.impression_ms_B,
            label_BT=seen.label_BT,
            settled_BT=seen.settled_BT,
            pre_step_logit_BT=seen.logit_BT,
            served_BT=seen.served_BT,
            first_BT=seen.first_BT,
            delayed=seen.delayed,
        )
        if self._publishing.publisher is not None:
            feedback_ms_BE = seen.feedback_ms_BT[:, self._eager_T]
            row_N, task_N = np.nonzero(feedback_ms_BE >= 0)
            written_ms_B = np.repeat([part.written_ms for part in parts], [part.num_rows for part in parts])
            self._publishing.publisher.feedback.add(feedback_ms_BE[row_N, task_N], written_ms_B[row_N], self._now_ms())

    def _count_unknown(self, parts: Sequence[Part]) -> None:
        """Counts what was learned of scenarios that are no part of the model, and adds those that have enough."""
        rows_of, first_of = Counter[str](), Counter[str]()
        for part in parts:
            for name, (num_rows, num_first) in part.about.unknown.items():
                rows_of[name] += num_rows
                first_of[name] += num_first
        if not rows_of:
            return
        model = self.learner.trained
        self.stats.unknown_rows += sum(num for name, num in rows_of.items() if name not in model.registry.names)
        for name in model.growth.count({name: num for name, num in first_of.items() if num}):
            model.add_scenario(name)
            self.metrics.add_scenario(name)
            self.gate.add_scenario(name)
            self.stats.scenarios_added += 1
            logger.info(
                "Scenario added scenario=%s index=%d parent=%s step=%d",
                name, model.registry.index(name), model.registry.parents[name], model.num_steps,
            )  # fmt: skip

    def _count_delayed(self, report: StepReport, parts: Sequence[Part]) -> None:
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

    def _skipped(self, reason: str, parts: Sequence[Part]) -> None:
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
        return self.publish() if self._publishing.is_due() else None

    def publish(self) -> Manifest | None:
        """Publishes now. Returns what went live; None if nothing did (counted and logged), or on another rank.

        Raises:
            StaleEpochError: another trainer has taken over publishing.
        """
        manifest = self._publishing.publish(self._progress)
        if manifest is not None:
            self._teachers.published(manifest, self.gauges.watermark_ms)
            self._teachers.released(self.publish_stats.released)
        return manifest

    def _progress(self) -> Progress:
        return Progress(
            step=self.learner.num_steps,
            watermark_ms=self.gauges.watermark_ms,
            offsets={partition: position.offset for partition, position in self._intake.positions.items()},
            metrics=self.metrics.report("window"),
            rows=self.stats.examples,
            calibration=self.metrics.calibration(),
        )

    def _renew_teacher(self) -> None:
        """Publishes at once, so that when the teacher is copied depends on event time alone.

        If that fails, the next version that goes live is copied. Where nothing is published every copy teaches.
        """
        if self._publishing.is_on:
            self.publish()
            return
        model = self.learner.trained
        model.take_teacher(0, self.gauges.watermark_ms)
        model.promote_teacher(0, {})

    def deny_teacher(self, version: int) -> None:
        """Lets a version that was rolled back teach no more, from the next step on."""
        if self.learner.trained.teacher is not None:
            self.learner.trained.teacher.deny(version)

    def _use_cold(self, folders: Sequence[Path]) -> None:
        """Lets rows leave memory, where the configuration says so, into a store as it is in a checkpoint, or empty."""
        if self._model_config.embedding.hot_rows is not None and self._parts.cold_stores is not None:
            self.learner.trained.table.use_cold(opened(self._parts.cold_stores, folders, self._ranks))

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
            rows=self._row_publisher(),
        )

    def _row_publisher(self) -> RowPublisher | None:
        model, ranks, store = self.learner.trained, self._ranks, self._parts.row_store
        if model.table.cold is None:
            return None
        if store is None:
            raise ValueError("row_store: none given; rankers would miss the rows beyond model.embedding.hot_rows")
        return RowPublisher(
            store,
            model if ranks.size == 1 else GatheredModel(model, ranks),
            width=self._model_config.embedding.width,
            stats=self.publish_stats.cold,
        )

    def checkpoint(self) -> Path | None:
        """Writes a checkpoint. Returns its path; None if there is nothing new, no folder, or no room (counted)."""
        folder = self._parts.checkpoint_dir
        if folder is None or self._intake.positions == self._saved_positions:
            return None
        started_ms = self._now_ms()
        try:
            checkpoint = self._state.checkpoint(
                version=self._publishing.publisher.last_version if self._publishing.publisher else 0,
                epoch=self.publish_stats.epoch,
                rollback_epoch=self._watch.rollback_epoch,
            )
            path = save_checkpoint(
                folder, checkpoint, keep=self._config.keep_checkpoints, writer=self._parts.writer, ranks=self._ranks
            )
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
        folder = self._parts.checkpoint_dir
        rollback = from_lead(self._ranks, lambda: LastRollback(self._watch.last_rollback()), LastRollback).rollback
        checkpoint = checkpoint_after(folder, rollback, self._ranks) if folder is not None else None
        if checkpoint is not None:
            self._use_cold(checkpoint.cold_folders)
            self._state.take_up(checkpoint)
            manifest = checkpoint.manifest
            self._saved_positions = self.positions
            self._publishing.publisher = self._new_publisher(last_version=manifest.version)
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
