"""The blend worker: outcomes in, versions of learned weights out, each only through its gate.

    1 follow the pointer   2 poll and decode   3 guard what explores and what is on trial   4 learn, if a round is due

What it knows is a function of the topic from the round's first offset on, so its checkpoint is that offset alone: a
worker that was killed reads the round again and goes on. Learning runs beside the loop, which must go on guarding.
"""

import logging
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from pathlib import Path

from freshrank import blend_checkpoint
from freshrank.blend_checkpoint import BlendCheckpoint
from freshrank.blend_stats import BlendGauges, BlendStats
from freshrank.blend_step import Learned, Production, learn
from model.source import ExampleMessage, ExampleSource
from utility_blender.blend import BlenderConfig
from utility_blender.evaluate import admissible
from utility_blender.exceptions import BlenderUnavailableError, BlenderVersionError, PromotionError
from utility_blender.guard import Guard, Pair
from utility_blender.outcomes import Outcomes
from utility_blender.rounds import Round
from utility_blender.store import BlenderStore, Pointer

logger = logging.getLogger(__name__)

POINTER_INTERVAL_MS = 1_000
"""How often the pointer, the denied versions and the exploration switch are looked at."""
_POLL_MESSAGES, _POLL_MS = 64, 100


@dataclass(frozen=True, slots=True, kw_only=True)
class BlendParts:
    """What a blend worker works with besides its configuration."""

    source: ExampleSource
    """Messages of the topic `outcomes`."""
    store: BlenderStore
    decode: Callable[[bytes], Outcomes]
    """Raises ValueError for what is no message of outcomes."""
    dead_letter: Callable[[ExampleMessage, str], None]
    executor: Executor
    """Runs one round of learning at a time, beside the loop."""
    checkpoint: Path
    now_ms: Callable[[], int]
    rolled_back_snapshots: Callable[[], set[int]]
    """Returns the model versions that were rolled back: what they served proves nothing."""


class BlendWorker:
    """Learns the weights of one blender. One thread only."""

    def __init__(self, config: BlenderConfig, production: Production, parts: BlendParts) -> None:
        self._config = config
        self._production = production
        self._parts = parts
        self._pointer = Pointer(0, 1.0, 0, 0)
        self._denied_snapshots: set[int] = set()
        self._round = Round(config.rounds, version=0)
        self._guard = Guard(config.guard, config.reward)
        self._next_offsets: dict[int, int] = {}
        self._learning: Future[Learned] | None = None
        self._learning_for = Pointer(0, 1.0, 0, 0)
        self._look_due_ms = 0
        self.stats = BlendStats()
        self.gauges = BlendGauges()

    def run(self, should_stop: Callable[[], bool]) -> None:
        """Learns until told to stop. A store that does not answer is waited for: nothing is lost but time.

        Raises:
            ValueError: the checkpoint cannot be read.
        """
        checkpoint = blend_checkpoint.load(self._parts.checkpoint)
        self._next_offsets = dict(checkpoint.offsets) if checkpoint else {}
        self._parts.source.seek(self._next_offsets)
        while not should_stop():
            self.run_once()
        if self._learning is not None:
            self._learning.cancel()

    def run_once(self) -> None:
        """Makes one round of the loop."""
        try:
            if self._parts.now_ms() >= self._look_due_ms:
                self._look()  # 1
            self._take(self._parts.source.poll(_POLL_MESSAGES, _POLL_MS))  # 2
            self._act()  # 3
            self._learn()  # 4
        except BlenderUnavailableError as error:
            self.stats.store_unavailable += 1
            self._look_due_ms = self._parts.now_ms() + POINTER_INTERVAL_MS
            logger.warning("The store of the blender does not answer, trying again error=%s", error)

    def _look(self) -> None:
        """Follows the pointer: whoever has moved it, the round is that of the version in service."""
        pointer = self._parts.store.pointer() or Pointer(0, 1.0, 0, 0)
        self._denied_snapshots = self._parts.rolled_back_snapshots()
        self._look_due_ms = self._parts.now_ms() + POINTER_INTERVAL_MS
        if pointer == self._pointer:
            return
        self._pointer = pointer
        self._guard.serve(stable=_in_service(pointer), trial=_on_trial(pointer))
        self.gauges.version, self.gauges.share = pointer.version, pointer.share
        if self._round.version != _in_service(pointer):
            self._begin_round(_in_service(pointer))

    def _begin_round(self, version: int) -> None:
        """Starts from nothing: what was explored around other weights cannot be judged from here."""
        self._round = Round(self._config.rounds, version)
        checkpoint = BlendCheckpoint(version=version, offsets=dict(self._next_offsets))
        blend_checkpoint.save(self._parts.checkpoint, checkpoint)
        logger.info("A round begins version=%d requests_needed=%d", version, self._round.num_missing)

    def _take(self, messages: list[ExampleMessage]) -> None:
        for message in messages:
            self._next_offsets[message.partition] = message.offset + 1
            try:
                outcomes = self._parts.decode(message.value)
            except ValueError as error:
                self.stats.malformed += 1
                self._parts.dead_letter(message, str(error))
                continue
            kept = outcomes.take([snapshot not in self._denied_snapshots for snapshot in outcomes.snapshot_N.tolist()])
            self.stats.outcomes += outcomes.num_requests
            self.stats.outcomes_rolled_back += outcomes.num_requests - kept.num_requests
            self.stats.outcomes_explored += self._round.add(kept)
            self._guard.add(kept)
        self.gauges.round_requests, self.gauges.round_missing = self._round.num_requests, self._round.num_missing

    def _act(self) -> None:
        """Does what the guard asks for."""
        pointer, rounds = self._pointer, self._config.rounds
        if reason := self._guard.exploration_trip():
            self._parts.store.set_exploration(False, reason)
            self._guard.settled("exploration")
            self.stats.exploration_trips += 1
            logger.error("Exploration is switched off reason=%s", reason)
        if reason := self._guard.learned_trip():
            self._roll_back(0, "learned", reason)
        elif reason := self._guard.trial_trip():
            self._roll_back(pointer.previous, "trial", reason)
        elif _on_trial(pointer):
            num_stages = max(1, sum(stage <= pointer.share for stage in rounds.stages))
            if self._guard.num_trial >= num_stages * rounds.stage_requests:
                share = next(stage for stage in rounds.stages if stage > pointer.share)
                self._promote(pointer.version, share, pointer.epoch)

    def _roll_back(self, target: int, pair: Pair, reason: str) -> None:
        version = self._pointer.version
        try:
            self._parts.store.rollback(target, reason)
            self.stats.rollbacks += 1
            logger.error("Learned weights are rolled back from=%d to=%d reason=%s", version, target, reason)
        except PromotionError as error:  # somebody else has rolled back further meanwhile: theirs counts
            logger.warning("Learned weights are not rolled back version=%d error=%s", version, error)
        self._guard.settled(pair)
        self._look_due_ms = 0

    def _promote(self, version: int, share: float, epoch: int) -> None:
        try:
            self._parts.store.promote(version, share=share, epoch=epoch)
            logger.info("Learned weights serve version=%d share=%s", version, share)
        except PromotionError as error:  # somebody else has moved the pointer meanwhile: theirs counts
            self.stats.promotions_refused += 1
            logger.warning("Learned weights are not promoted version=%d error=%s", version, error)
        self._look_due_ms = 0

    def _learn(self) -> None:
        """Begins to learn when a round is due, and takes the result when it is there."""
        if self._learning is not None:
            if self._learning.done():
                self._take_up(self._learning)  # where the store does not answer, the next time
                self._learning = None
        elif self._round.is_due and not _on_trial(self._pointer):
            store, pointer = self._parts.store, self._pointer
            try:
                base = store.get(pointer.version) if pointer.version else None
            except BlenderVersionError as error:
                self._failed(error)
                self._round.refused()
                return
            # Snapshots may have been rolled back since their requests were taken in.
            earlier, later = (
                part.take(admissible(part, denied=self._denied_snapshots)) for part in self._round.split()
            )
            self._learning_for = pointer
            self._learning = self._parts.executor.submit(
                learn,
                earlier,
                later,
                base,
                self._production,
                self._config,
                number=store.next_version(),
                now_ms=self._parts.now_ms(),
            )
            self._round.refused()  # until a promotion says otherwise, it goes on
            self.stats.rounds += 1

    def _take_up(self, learning: "Future[Learned]") -> None:
        if (error := learning.exception()) is not None:
            self._failed(error)
            return
        learned = learning.result()
        store, version = self._parts.store, learned.version
        self.gauges.take(learned.evaluation)
        if not learned.decision.passed:
            store.reject(version, learned.decision.reasons)
            self.stats.versions_rejected += 1
            logger.warning(
                "The gate said no version=%d reasons=%s", version.version, "; ".join(learned.decision.reasons)
            )
            return
        try:
            store.put(version)
        except PromotionError:  # a try before this one put it, and only the answer was lost
            if store.get(version.version).encode() != version.encode():
                raise
        self._promote(version.version, self._config.rounds.stages[0], self._learning_for.epoch)
        self.stats.versions_promoted += 1

    def _failed(self, error: BaseException) -> None:
        """Takes note of a round without a result. What nobody foresaw is told with its trace; guarding goes on."""
        self.stats.rounds_failed += 1
        foreseen = isinstance(error, ValueError | BlenderVersionError)
        logger.error("Nothing was learned error=%s", error, exc_info=None if foreseen else error)


def _in_service(pointer: Pointer) -> int:
    """Returns the version that explored requests are drawn around: the one before while a new one is on trial."""
    return pointer.version if pointer.share == 1 else pointer.previous


def _on_trial(pointer: Pointer) -> int:
    """Returns the version that serves a share of the requests; 0 if none does."""
    return pointer.version if pointer.share < 1 else 0
