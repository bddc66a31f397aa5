"""A local store of ordered bytes on disk, for state that is too large for memory: RocksDB behind a few methods.

What is written lives as long as the process unless a `checkpoint` keeps it: there is no write-ahead log, for the input
topics are one already. A checkpoint costs hard links, not copies.
"""

import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from rocksdict import (
    BlockBasedIndexType,
    BlockBasedOptions,
    Cache,
    Checkpoint,
    DBCompressionType,
    Options,
    Rdict,
    WriteBatch,
    WriteBufferManager,
    WriteOptions,
)

from stream.exceptions import LocalStoreError

_LOG = logging.getLogger(__name__)

_CORRUPT = "CORRUPT"
"""A file of this name marks a store in which damage was found: it shares its files with its checkpoints."""

_LAST = b"\xff"
"""Behind all keys. The iterator ends silently at a damaged block: one that does not come to this key met damage."""


class StoreMemory:
    """The memory that all open stores of a process share: blocks read, filters, and what is not yet written."""

    def __init__(self, mib: int) -> None:
        self.cache = Cache(mib << 20)
        self.write_buffers = WriteBufferManager.new_write_buffer_manager_with_cache(mib << 18, False, self.cache)


class LocalStore:
    """Keys and values in key order, in a folder of their own.

    Raises:
        LocalStoreError: in every method, when the disk is full or damaged.
    """

    def __init__(self, path: Path, memory: StoreMemory) -> None:
        self.path = path
        self._memory = memory
        try:
            self._db = Rdict(str(path), _options(memory))
        except Exception as error:
            raise self._failure(error) from error
        write = WriteOptions()
        write.disable_wal = True  # type: ignore[assignment, method-assign]
        self._db.set_write_options(write)
        self._write_options = write
        self.write([(_LAST, b"")])

    def get(self, key: bytes) -> bytes | None:
        """Returns the value of a key; where there is none, a filter mostly spares the disk."""
        try:
            value: bytes | None = self._db.get(key)
        except Exception as error:
            raise self._failure(error) from error
        return value

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Returns the value of each key; None where there is none."""
        try:
            values: list[bytes | None] = self._db.get(list(keys))  # type: ignore[assignment]
        except Exception as error:
            raise self._failure(error) from error
        return values

    def write(self, changes: Iterable[tuple[bytes, bytes | None]]) -> None:
        """Applies changes in order, all or none; the value None deletes."""
        batch = WriteBatch(raw_mode=True)
        for key, value in changes:
            if value is None:
                batch.delete(key)
            else:
                batch.put(key, value)
        try:
            self._db.write(batch, self._write_options)
        except Exception as error:
            raise self._failure(error) from error

    def scan(self, first: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yields keys and values from `first` to before `end`, as they were when the scan began."""
        try:
            for key, value in self._db.items(from_key=first):
                if key >= end:  # type: ignore[operator]
                    return
                yield key, value  # type: ignore[misc]
        except Exception as error:
            raise self._failure(error) from error
        raise self._failure(Exception("Corruption: a scan came to a block that cannot be read"))

    def checkpoint(self, path: Path) -> None:
        """Keeps the store as it is now in a folder that appears whole or not at all, on the same file system."""
        try:
            Checkpoint(self._db).create_checkpoint(str(path))
        except Exception as error:
            raise self._failure(error) from error

    def close(self) -> None:
        """Gives the files back; what no checkpoint holds may be lost, and is where the disk is full."""
        try:
            self._db.close()
        except Exception as error:
            failure = self._failure(error)
            if not isinstance(failure, LocalStoreError):
                raise
            _LOG.warning("A store was closed without what it had not written yet. %s", failure)

    def _failure(self, error: Exception) -> Exception:
        """Returns what to raise: RocksDB's errors come as bare `Exception`, everything else is a fault of ours."""
        if type(error) is not Exception:
            return error
        text = " ".join(str(error).split())
        if "Corruption" in text and self.path.is_dir():
            (self.path / _CORRUPT).touch()
        return LocalStoreError(f"{self.path}: {text}; make room on the disk or replace it, then start again")


def is_marked_corrupt(path: Path) -> bool:
    """Returns whether damage was found in a store while it was open."""
    return (path / _CORRUPT).exists()


def clone(checkpoint: Path, path: Path) -> None:
    """Makes a folder to be opened as a store of its own from a checkpoint; tables are linked, for they never change."""
    path.mkdir(parents=True)
    for file in checkpoint.iterdir():
        if file.suffix == ".sst":
            os.link(file, path / file.name)
        else:
            shutil.copyfile(file, path / file.name)


def _options(memory: StoreMemory) -> Options:
    # Filters and indexes in partitions and in the cache, so that memory does not grow with what is stored.
    blocks = BlockBasedOptions()
    blocks.set_block_cache(memory.cache)
    blocks.set_format_version(5)
    blocks.set_bloom_filter(10, False)
    blocks.set_partition_filters(True)
    blocks.set_index_type(BlockBasedIndexType.two_level_index_search())
    blocks.set_cache_index_and_filter_blocks(True)
    blocks.set_pin_l0_filter_and_index_blocks_in_cache(True)
    blocks.set_pin_top_level_index_and_filter(True)
    options = Options(raw_mode=True)
    options.create_if_missing(True)
    options.set_block_based_table_factory(blocks)
    options.set_write_buffer_manager(memory.write_buffers)
    # Most questions are for keys that are not there: a filter answers for what is not yet written, too.
    options.set_memtable_whole_key_filtering(True)
    options.set_memtable_prefix_bloom_ratio(0.02)
    options.set_write_buffer_size(32 << 20)
    options.set_compression_type(DBCompressionType.lz4())
    options.set_max_open_files(512)
    options.set_max_background_jobs(2)
    options.set_keep_log_file_num(1)
    options.set_stats_dump_period_sec(0)
    return options
