"""The state of a partition pair with most of it on disk: what `stream.state.JoinState` does, in bounded memory.

Slates and pending feedback each are a `SpilledMap` in one local store. Which messages are still needed stays in memory,
at about a bit per message. A snapshot is the store with everything in it and a record that says of when it is.
"""

# ruff: noqa: D102  the methods of JoinState are documented there
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from stream.local_store import LocalStore
from stream.snapshot_record import SnapshotRecord, write_record
from stream.spilled_map import SpilledMap
from stream.state import Held, JoinState, Slate
from stream.state_codec import Waiting, decode_slate, decode_waiting, encode_slate, encode_waiting

_PENDING_SHARE = 4
"""Pending feedback may take this part of the budget."""
_PREPARED = 1_000
"""Values written at a time: about ten milliseconds."""


class SpilledJoinState(JoinState):
    """The state of one partition pair over a local store, which it keeps for itself.

    `find` gives a slate to be changed in place at once: by the next call it may be on disk. `record` is that of the
    snapshot that the store was made from.
    """

    def __init__(self, store: LocalStore, hot_items: int, record: SnapshotRecord | None = None) -> None:
        super().__init__()
        self.store = store
        self._hot_slates = SpilledMap(store, b"s", encode_slate, decode_slate, _num_items, hot_items)
        self._hot_pending = SpilledMap(store, b"p", encode_waiting, decode_waiting, len, hot_items)
        self.limit(hot_items)
        self._new_from = 0
        if record is not None:
            self._hot_slates.load(record.num_slates)
            self._hot_pending.load(record.num_requests_pending)
            self.num_pending = record.num_pending
            self._new_from = record.next_feedback
            self.impressions_needed.load_blocks(record.impressions_needed)
            self.feedback_needed.load_blocks(record.feedback_needed)

    def limit(self, hot_items: int) -> None:
        """Sets how many items and pending feedback stay in memory."""
        pending = hot_items // _PENDING_SHARE
        self._hot_slates.limit, self._hot_pending.limit = hot_items - pending, pending

    @property
    def num_slates(self) -> int:
        return len(self._hot_slates)

    @property
    def num_frozen(self) -> int:
        """Slates that only the disk holds."""
        return self._hot_slates.num_frozen

    @property
    def num_thawed(self) -> int:
        """How often feedback brought a slate back from disk."""
        return self._hot_slates.num_thawed

    @property
    def hot_items(self) -> int:
        """Items and pending feedback in memory."""
        return self._hot_slates.hot_weight + self._hot_pending.hot_weight

    def slates(self) -> Iterator[Slate]:
        yield from self._hot_slates.values()

    def pending(self) -> Iterator[Held]:
        for group in self._hot_pending.values():
            yield from (self._restored(held) for held, _ in group)

    def find(self, request_id: str) -> Slate | None:
        return self._hot_slates.get(request_id)

    def add(self, slate: Slate, due_ms: int) -> None:
        self._hot_slates.put(slate.impression.request_id, slate, due_ms)
        self.impressions_needed.add(slate.offset)

    def put_back(self, slate: Slate, due_ms: int) -> None:
        self._hot_slates.put(slate.impression.request_id, slate, due_ms)

    def forget(self, slate: Slate) -> None:
        self.impressions_needed.remove(slate.offset)

    def take_due(self, watermark_ms: int) -> Iterator[Slate]:
        return self._hot_slates.take_due(watermark_ms)

    def hold(self, held: Held, expiry_ms: int) -> None:
        group = self._hot_pending.pop(held.feedback.request_id) or []
        group.append(Waiting(held, expiry_ms))
        self._wait(group)
        self.feedback_needed.add(held.offset)
        self.num_pending += 1

    def claim(self, request_id: str) -> Sequence[Held]:
        group = self._hot_pending.pop(request_id)
        if group is None:
            return ()
        self.num_pending -= len(group)
        return [self._restored(held) for held, _ in group]

    def take_expired(self, watermark_ms: int) -> Iterator[Held]:
        for group in self._hot_pending.take_due(watermark_ms):
            first_ms = min(waiting.expiry_ms for waiting in group)
            rest = [waiting for waiting in group if waiting.expiry_ms != first_ms]
            if rest:
                self._wait(rest)
            for held, expiry_ms in group:
                if expiry_ms == first_ms:
                    self.num_pending -= 1
                    self.feedback_needed.remove(held.offset)
                    yield self._restored(held)

    def prepare(self) -> None:
        """Writes a part of what the next snapshot must write, so that it comes to a shorter pause.

        Raises:
            LocalStoreError: the disk is full or damaged.
        """
        self._hot_slates.save(_PREPARED)
        self._hot_pending.save(_PREPARED)

    def save(self, path: Path, record: SnapshotRecord) -> None:
        """Writes a snapshot to a new folder, its record last; `record` says of when it is.

        Raises:
            LocalStoreError, OSError: the disk is full or damaged.
        """
        self._hot_slates.save()
        self._hot_pending.save()
        full = msgspec.structs.replace(
            record,
            num_slates=len(self._hot_slates),
            num_requests_pending=len(self._hot_pending),
            num_pending=self.num_pending,
            impressions_needed=self.impressions_needed.blocks(),
            feedback_needed=self.feedback_needed.blocks(),
        )
        self.store.checkpoint(path)
        write_record(path, full)

    def _wait(self, group: list[Waiting]) -> None:
        first_ms = min(waiting.expiry_ms for waiting in group)
        self._hot_pending.put(group[0].held.feedback.request_id, group, first_ms)

    def _restored(self, held: Held) -> Held:
        """Returns feedback as seen by this process: what a snapshot brought was counted by the one before."""
        held.is_new = held.is_new and held.offset >= self._new_from
        return held


def _num_items(slate: Slate) -> int:
    return len(slate.impression.items.id)
