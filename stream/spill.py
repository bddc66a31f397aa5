"""The folder in which a joiner keeps the states of its partitions, and snapshots of them to go on from.

    <directory>/lock                                  one process at a time
    <directory>/<topic>/<partition>/live              the working store; worth nothing after a restart
    <directory>/<topic>/<partition>/snapshot-00000007 the state as of a commit; the last two are kept

A snapshot only makes a restart shorter. It is used if it is of the same life of the log, of the same label settings,
and of a commit not after the last one; if none is, the committed offsets lead to the same state by replay.
"""

import fcntl
import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from stream.exceptions import LocalStoreError
from stream.join import Resume
from stream.local_store import LocalStore, StoreMemory, clone, is_marked_corrupt
from stream.log import TopicPartition
from stream.snapshot_record import SnapshotRecord, read_record
from stream.spilled_state import SpilledJoinState

_LOG = logging.getLogger(__name__)

_KEPT = 2
"""Snapshots kept: the last one, and the one before should that be damaged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpillConfig:
    """Where slates beyond a memory budget go, for label windows of hours and days. Off unless `directory` is set."""

    directory: str | None = None
    """Folder for open slates and for snapshots of them, one process at a time: with `--instance` the folder of that
    name in it. None: all slates stay in memory. It may be lost at any time: a restart then replays the log instead."""
    hot_items: int = 200_000
    """Items (of slates) and pending feedback kept in memory, over all partitions of the process; at least 1."""
    store_mib: int = 128
    """Memory of the local store for its caches and what it has not written yet, in MiB; at least 16."""
    snapshot_interval_ms: int = 60_000
    """Time between two snapshots of a partition's state, in ms of processing time; at least 1. A restart replays
    what was read since the last one."""

    def __post_init__(self) -> None:
        if self.directory == "":
            raise ValueError("directory: must not be empty; leave it out to keep all slates in memory")
        for name, low in {"hot_items": 1, "store_mib": 16, "snapshot_interval_ms": 1}.items():
            if getattr(self, name) < low:
                raise ValueError(f"{name}: {getattr(self, name)} is not allowed; at least {low}")


class TakenUp(NamedTuple):
    """A state to go on from."""

    state: SpilledJoinState
    """Empty, or that of the snapshot."""
    record: SnapshotRecord | None
    """The snapshot's record; None if none fits."""


class Spill:
    """The states of all partitions of one process, each over a local store of its own, within one memory budget.

    Raises:
        LocalStoreError: the folder cannot be written, is in use, or its disk is full or damaged.
    """

    def __init__(self, config: SpillConfig) -> None:
        if config.directory is None:
            raise ValueError("directory: needed to spill")
        self.config = config
        self.num_snapshots = 0
        """Snapshots written."""
        self.num_rejected = 0
        """Snapshots that could not be read."""
        self._root = Path(config.directory)
        self._states: dict[TopicPartition, SpilledJoinState] = {}
        try:
            self._root.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self._root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise LocalStoreError(f"spill.directory: {self._root} cannot be used: {error.strerror}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock)
            raise LocalStoreError(
                f"spill.directory: {self._root} is in use by another process; give each joiner a folder of its "
                "own (`--instance` does)"
            ) from error
        self._memory = StoreMemory(config.store_mib)

    @property
    def states(self) -> dict[TopicPartition, SpilledJoinState]:
        """The open states by partition of the impressions. For metrics; do not touch."""
        return self._states

    def take_up(self, partition: TopicPartition, resume: Resume, labels: str, lineage: str) -> TakenUp:
        """Returns the state of the newest snapshot that fits what is committed, or an empty one."""
        self.drop(partition)
        folder = self._folder(partition)
        try:
            taken = self._open(folder, resume, labels, lineage)
        except OSError as error:
            raise LocalStoreError(f"{folder}: {error.strerror}") from error
        self._states[partition] = taken.state
        self._divide()
        return taken

    def save(self, partition: TopicPartition, record: SnapshotRecord) -> None:
        """Writes a snapshot of a partition's state; to be called right after the commit that `record` tells of."""
        folder = self._folder(partition)
        number = max((_number(path) for path in folder.glob("snapshot-*")), default=0) + 1
        try:
            self._states[partition].save(folder / f"snapshot-{number:08d}", record)
            for path in _newest_first(folder)[_KEPT:]:
                _remove(path)
        except OSError as error:
            raise LocalStoreError(f"{folder}: {error.strerror}") from error
        self.num_snapshots += 1

    def drop(self, partition: TopicPartition) -> None:
        """Closes the state of a partition that is no longer ours; its snapshots stay."""
        state = self._states.pop(partition, None)
        if state is not None:
            state.store.close()
            self._divide()

    def close(self) -> None:
        """Closes all states and gives the folder to others."""
        for partition in list(self._states):
            self.drop(partition)
        os.close(self._lock)

    def _folder(self, partition: TopicPartition) -> Path:
        return self._root / partition.topic / str(partition.partition)

    def _divide(self) -> None:
        for state in self._states.values():
            state.limit(self.config.hot_items // len(self._states))

    def _open(self, folder: Path, resume: Resume, labels: str, lineage: str) -> TakenUp:
        folder.mkdir(parents=True, exist_ok=True)
        live = folder / "live"
        for path in (*folder.glob("*.tmp"), *folder.glob("*.gone")):
            shutil.rmtree(path)
        if is_marked_corrupt(live):
            _LOG.warning("The local store was damaged: its snapshots are given up, the log is replayed. path=%s", live)
            for path in _newest_first(folder):
                self.num_rejected += 1
                _remove(path)
        if live.exists():
            shutil.rmtree(live)
        for path in _newest_first(folder):
            try:
                record = read_record(path)
            except ValueError as error:
                self._reject(path, str(error))
                continue
            if not _fits(record, resume, labels, lineage):
                continue
            clone(path, live)
            try:
                store = LocalStore(live, self._memory)
            except LocalStoreError as error:
                self._reject(path, str(error))
                shutil.rmtree(live)
            else:
                return TakenUp(SpilledJoinState(store, self.config.hot_items, record), record)
        return TakenUp(SpilledJoinState(LocalStore(live, self._memory), self.config.hot_items), None)

    def _reject(self, path: Path, reason: str) -> None:
        self.num_rejected += 1
        _LOG.warning("A snapshot cannot be used: an older one or the log will do. path=%s reason=%s", path, reason)


def _fits(record: SnapshotRecord, resume: Resume, labels: str, lineage: str) -> bool:
    return (
        (record.labels, record.lineage) == (labels, lineage)
        and record.next_impression <= resume.next_impression
        and record.next_feedback <= resume.next_feedback
        and record.watermark_ms <= resume.watermark_ms
    )


def _number(path: Path) -> int:
    number = path.name.removeprefix("snapshot-")
    return int(number) if number.isdecimal() else 0


def _newest_first(folder: Path) -> list[Path]:
    return sorted((path for path in folder.glob("snapshot-*") if _number(path)), key=_number, reverse=True)


def _remove(path: Path) -> None:
    """Removes a snapshot so that no crash leaves half of it under its name."""
    gone = path.with_suffix(".gone")
    path.rename(gone)
    shutil.rmtree(gone)
