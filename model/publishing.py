"""When a version is due, and how all ranks take part in it (`model.gathered_rows`)."""

from collections.abc import Callable

import msgspec

from model.exceptions import RankLostError
from model.gathered_rows import GatheredModel, Outcome, follow
from model.lead import Ended, sentence_of
from model.pace import Pace
from model.publish import Progress, Published, Publisher
from model.ranks import Ranks
from model.snapshot import Manifest
from model.trained_model import TrainedModel

_LONGEST_PUBLISH_MS = 60_000


class Publishing:
    """One trainer's versions. Without a publisher, and on no rank with one, nothing is ever published."""

    def __init__(self, model: TrainedModel, ranks: Ranks, *, interval_ms: int, now_ms: Callable[[], int]) -> None:
        """`interval_ms`: between versions while something is learned."""
        self._model, self._ranks, self._interval_ms, self._now_ms = model, ranks, interval_ms, now_ms
        self._until_next = Pace(now_ms)
        self._published_step = 0
        self.publisher: Publisher | None = None
        """On the lead, and only where there is a store."""
        self.is_on = False
        """Whether the lead publishes; the same on all ranks."""

    @property
    def has_news(self) -> bool:
        """Whether something was learned since the last version; on the lead."""
        return self.publisher is not None and self._model.num_steps > self._published_step

    def left_ms(self) -> int:
        """Returns how long it is until the next version may be published."""
        return self._until_next.left_ms()

    def is_due(self) -> bool:
        """Returns whether something was learned and the interval is over; on the lead."""
        return self.has_news and self._until_next.is_due()

    def publish(self, progress: Callable[[], Progress]) -> Manifest | None:
        """Publishes now. Returns what went live; None if nothing did (counted and logged), or on another rank.

        `progress` says what the weights have learned; it is asked on the lead.

        Raises:
            StaleEpochError: another trainer has taken over publishing.
            RankLostError: on the others, if the lead ends.
        """
        if not self.is_on:
            return None
        if not self._ranks.is_lead:
            follow(self._ranks, self._model)
            return None
        if self._ranks.size == 1:
            return self._publish(self._model, progress())
        try:
            manifest = self._publish(GatheredModel(self._model, self._ranks), progress())
        except RankLostError:
            raise
        except Exception as error:
            self._ranks.broadcast(msgspec.msgpack.encode(Ended(sentence_of(error))))
            raise
        self._ranks.broadcast(msgspec.msgpack.encode(Outcome(is_live=manifest is not None)))
        return manifest

    def _publish(self, model: Published, progress: Progress) -> Manifest | None:
        assert self.publisher is not None
        started_ms = self._now_ms()
        self._until_next.wait(self._interval_ms)
        manifest = self.publisher.publish(model, progress)
        if manifest is not None:
            self._published_step = manifest.step
        else:
            # A store that hangs costs a time-out per attempt: at most a quarter of the time goes into those.
            took_ms = min(max(0, self._now_ms() - started_ms), _LONGEST_PUBLISH_MS)  # or the clock was set meanwhile
            self._until_next.wait(max(self._interval_ms - took_ms, 3 * took_ms))
        return manifest
