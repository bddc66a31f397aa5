"""The store of embedding rows that left a trainer's memory: a working copy on the local disk, beside the checkpoints.

    <checkpoints>/cold-store/00000-of-00001/lock    one process at a time
    <checkpoints>/cold-store/00000-of-00001/live    worth nothing after a restart: that begins with a checkpoint's

A checkpoint links the tables of the working copy, so both have to be on one file system.
"""

import fcntl
import os
import shutil
from pathlib import Path

from freshrank.exits import CommandError, ExitCode
from stream.local_store import LocalStore, StoreMemory, clone


class ColdStore:
    """The store of one rank. Nothing is touched before the first `open`."""

    def __init__(self, checkpoints: Path, rank: int, size: int, memory_mib: int) -> None:
        self._folder = checkpoints / "cold-store" / f"{rank:05d}-of-{size:05d}"
        self._memory_mib = memory_mib
        self._memory: StoreMemory | None = None
        self._lock: int | None = None
        self._store: LocalStore | None = None

    def open(self, checkpoint: Path | None) -> LocalStore:
        """Returns a store that begins as a checkpoint's folder has it, or empty; the one before is closed.

        Raises:
            CommandError: the folder cannot be written, or another process has it.
            LocalStoreError: the store is damaged.
        """
        live = self._folder / "live"
        try:
            self._take()
            if self._store is not None:
                self._store.close()
            if live.exists():
                shutil.rmtree(live)
            if checkpoint is not None:
                clone(checkpoint, live)
        except OSError as error:
            raise CommandError(ExitCode.DISK, f"checkpoint.folder: {live} cannot be used: {error.strerror}") from error
        self._memory = self._memory or StoreMemory(self._memory_mib)
        self._store = LocalStore(live, self._memory)
        return self._store

    def read(self, checkpoint: Path) -> LocalStore:
        """Returns another store beside the one that is open, as a checkpoint's folder has it; to be closed soon.

        Raises:
            CommandError: the folder cannot be written.
            LocalStoreError: the store is damaged.
        """
        assert self._memory is not None, "the first store is the one to work with"
        copy = self._folder / "read"
        try:
            if copy.exists():
                shutil.rmtree(copy)
            clone(checkpoint, copy)
        except OSError as error:
            raise CommandError(ExitCode.DISK, f"checkpoint.folder: {copy} cannot be used: {error.strerror}") from error
        return LocalStore(copy, self._memory)

    def close(self) -> None:
        """Closes the store and gives the folder to others."""
        if self._store is not None:
            self._store.close()
        shutil.rmtree(self._folder / "read", ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
        self._store = self._lock = None

    def _take(self) -> None:
        if self._lock is not None:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(lock)
            sentence = f"checkpoint.folder: {self._folder} is in use by another trainer; stop it, or use another folder"
            raise CommandError(ExitCode.DISK, sentence) from error
        self._lock = lock
