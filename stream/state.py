"""What the join core knows: remembered slates, pending feedback, what is due when, and which messages it rests on.

No rules here: `stream.join` has them. This one keeps everything in memory; `stream.spilled_state` keeps the part that
is rarely touched on disk, behind the same methods.
"""

from collections.abc import Iterator, Sequence

from stream.due import DueQueue
from stream.needed import NeededOffsets
from stream.schema import Feedback, Impression
from stream.tally import Tally


class Slate:
    """A slate until it is forgotten: open while it has stages ahead, then a tombstone that recognises its copies."""

    __slots__ = ("held", "impression", "offset", "positives", "seen", "stage", "tally")

    def __init__(self, impression: Impression, offset: int, tally: Tally | None = None) -> None:
        self.impression = impression
        self.offset = offset
        self.stage = 0
        """Stages of its timeline behind it."""
        self.positives: dict[str, dict[int, int]] | None = None
        """Task -> row -> delay_ms of its first qualifying feedback."""
        self.seen: set[str] | None = None
        """`event_id`s of the feedback observed so far."""
        self.held: list[int] | None = None
        """Offsets of the feedback that its labels and its outcome rest on; needed until its last close."""
        self.tally = tally
        """What came of it so far, if it is explored and its outcome is to go out; empty once that is out."""


class Held:
    """Feedback whose slate is not there yet."""

    __slots__ = ("feedback", "is_new", "is_pending", "offset")

    def __init__(self, feedback: Feedback, offset: int, is_new: bool) -> None:
        self.feedback = feedback
        self.offset = offset
        self.is_new = is_new
        self.is_pending = True


class JoinState:
    """The state of one partition pair, in memory."""

    def __init__(self) -> None:
        self._slates: dict[str, Slate] = {}
        self._due: DueQueue[Slate] = DueQueue()
        self._pending: dict[str, list[Held]] = {}
        self._expiries: DueQueue[Held] = DueQueue()
        self.num_pending = 0
        """Feedback waiting for its impression."""
        self.impressions_needed = NeededOffsets()
        """Impressions that remembered slates were made of."""
        self.feedback_needed = NeededOffsets()
        """Feedback that is pending, or that a label or the outcome of an open slate rests on."""

    @property
    def num_slates(self) -> int:
        """Slates that are remembered: open ones and tombstones."""
        return len(self._slates)

    def slates(self) -> Iterator[Slate]:
        """Yields all remembered slates; for tests and snapshots."""
        yield from self._slates.values()

    def pending(self) -> Iterator[Held]:
        """Yields all pending feedback, that of one request in offset order; for tests and snapshots."""
        for waiting in self._pending.values():
            yield from waiting

    def find(self, request_id: str) -> Slate | None:
        """Returns the remembered slate of a request."""
        return self._slates.get(request_id)

    def add(self, slate: Slate, due_ms: int) -> None:
        """Remembers a new slate, first due once the watermark has passed `due_ms`."""
        self._slates[slate.impression.request_id] = slate
        self.impressions_needed.add(slate.offset)
        self._due.add(due_ms, slate)

    def put_back(self, slate: Slate, due_ms: int) -> None:
        """Makes a slate that `take_due` gave due again."""
        self._due.add(due_ms, slate)

    def forget(self, slate: Slate) -> None:
        """Drops a slate that `take_due` gave."""
        del self._slates[slate.impression.request_id]
        self.impressions_needed.remove(slate.offset)

    def take_due(self, watermark_ms: int) -> Iterator[Slate]:
        """Yields the slates that are due, each to be put back or forgotten; those put back come again if still due."""
        return self._due.take(watermark_ms)

    def hold(self, held: Held, expiry_ms: int) -> None:
        """Keeps feedback without a slate until it is claimed, or the watermark has passed `expiry_ms`."""
        self._pending.setdefault(held.feedback.request_id, []).append(held)
        self.num_pending += 1
        self.feedback_needed.add(held.offset)
        self._expiries.add(expiry_ms, held)

    def claim(self, request_id: str) -> Sequence[Held]:
        """Returns, and no longer keeps, the pending feedback of a request, in offset order; it stays needed."""
        if not self._pending:
            return ()
        waiting = self._pending.pop(request_id, ())
        for held in waiting:
            held.is_pending = False
        self.num_pending -= len(waiting)
        return waiting

    def take_expired(self, watermark_ms: int) -> Iterator[Held]:
        """Yields, and no longer keeps, the pending feedback that has expired."""
        for held in self._expiries.take(watermark_ms):
            if held.is_pending:
                held.is_pending = False
                self.num_pending -= 1
                waiting = self._pending[held.feedback.request_id]
                waiting.remove(held)
                if not waiting:
                    del self._pending[held.feedback.request_id]
                self.feedback_needed.remove(held.offset)
                yield held
