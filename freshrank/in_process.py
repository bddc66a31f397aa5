"""The whole circle in one process, driven by event time: the very same join core, trainer and snapshots as live.

    event -> (slate: scored with the live snapshot) -> join core -> every commit_interval_ms:
        examples -> trainer -> every publish_interval_ms: snapshot -> live

Both intervals are measured on the log's own clock, and nothing reads another one, so that two replays of a log are the
same to the last bit (with the same number of torch threads).
"""

from collections.abc import Callable
from dataclasses import replace

from freshrank.slate_scorer import SlateScorer
from model.canary import CanaryConfig
from model.config import ModelConfig
from model.gate_config import OFF
from model.store import MemorySnapshotStore
from model.trainer import Trainer
from model.trainer_config import TrainerConfig, TrainerParts
from stream.emission import Emission, Outcome
from stream.examples import ExampleEncoder
from stream.join import JoinConfig, JoinCore, remember_ms
from stream.schema import Feedback, Impression, SchemaConfig
from stream.watermark import PairWatermark, TopicClock


class InProcessLoop:
    """One partition pair, one trainer, one ranker. Feed it events with `observe`, then `finish`."""

    def __init__(
        self,
        schema: SchemaConfig,
        join: JoinConfig,
        model: ModelConfig,
        trainer: TrainerConfig,
        *,
        start_ms: int,
        config_hash: str = "",
        on_message: Callable[[bytes], None] = lambda _: None,
        on_outcome: Callable[[Outcome], None] = lambda _: None,
    ) -> None:
        """Takes the sections of a run and the log's clock at its first event.

        `on_message` gets every message of `examples` before it is learned, `on_outcome` every outcome, if
        `join.outcome_window_ms` is set (`stream.outcomes` makes messages of them).
        """
        self._clock_ms = self._committed_ms = start_ms
        self._join = join
        self.core = JoinCore(schema, join)
        self._encoder = ExampleEncoder(schema, join)
        self._impressions, self._feedback = (
            TopicClock(start_ms, max_ahead_ms=join.max_ahead_ms, idle_ms=join.idle_ms) for _ in range(2)
        )
        self._watermark = PairWatermark(self._impressions, self._feedback, out_of_orderness_ms=join.out_of_orderness_ms)
        # Everything from the slate to the last moment it is remembered.
        self._settle_ms = remember_ms(schema, join)
        self._emissions: list[Emission] = []
        self._on_message = on_message
        self._on_outcome = on_outcome
        self._num_observed = {Impression: 0, Feedback: 0}
        self._num_messages = 0
        store = MemorySnapshotStore()
        self.trainer = Trainer(
            schema,
            # Messages are handed in one by one: their order is the log's already, there are no partitions to merge. And
            # what an experiment serves must not hang on a gate: it has nobody to protect.
            replace(trainer, deterministic=False, gate=OFF, canary=CanaryConfig()),
            model,
            now_ms=lambda: self._clock_ms,
            parts=TrainerParts(store=store),
            config_hash=config_hash,
            run_id="replay",
        )
        self._ranker = SlateScorer(schema, model, store)

    def observe(self, event: Impression | Feedback, clock_ms: int) -> None:
        """Takes the next event; `clock_ms` must not go back."""
        self._clock_ms = clock_ms
        offset = self._num_observed[type(event)]
        self._num_observed[type(event)] += 1
        if isinstance(event, Impression):
            self.core.counters.clock_ahead += self._impressions.observe(event.ts, clock_ms)
            self._ranker.show(event)
            self._emissions += self.core.observe_impression(event, offset)
        else:
            self.core.counters.clock_ahead += self._feedback.observe(event.ts, clock_ms)
            self._emissions += self.core.observe_feedback(event, offset)
        self._advance()

    def finish(self) -> None:
        """Lets all windows close, learns what is left and publishes it."""
        self._commit()
        quiet_ms = self._join.idle_ms + self._join.out_of_orderness_ms + self._join.max_ahead_ms
        self._clock_ms += quiet_ms + self._settle_ms + 1
        self._advance()
        self._commit()
        self.trainer.flush()
        self.trainer.publish()

    def _advance(self) -> None:
        for clock in (self._impressions, self._feedback):
            # Both files are merged on one clock: everything up to now has been read.
            clock.look(is_at_end=True, now_ms=self._clock_ms)
        self._emissions += self.core.advance(self._watermark.advance(self._clock_ms))
        if self._clock_ms - self._committed_ms >= self._join.commit_interval_ms:
            self._commit()

    def _commit(self) -> None:
        self._committed_ms = self._clock_ms
        self._ranker.score_waiting()
        emissions, self._emissions = self._emissions, []
        outcomes, self.core.outcomes = self.core.outcomes, []
        for outcome in outcomes:
            self._on_outcome(outcome)
        for message in self._encoder.encode(emissions) if emissions else ():
            self._on_message(message)
            self.trainer.train_message(message, partition=0, offset=self._num_messages)
            self._num_messages += 1
        manifest = self.trainer.publish_if_due()
        if manifest is not None:
            self._ranker.go_live(manifest)
