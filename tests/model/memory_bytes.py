"""A store of bytes in memory, for tests of rows that left memory."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import msgspec

_FILE = "store.msgpack"


class MemoryStores:
    """See `model.cold_rows.ColdStores`."""

    def open(self, checkpoint: Path | None) -> "MemoryBytes":
        return MemoryBytes(checkpoint)

    def read(self, checkpoint: Path) -> "MemoryBytes":
        return MemoryBytes(checkpoint)


class MemoryBytes:
    """See `model.cold_rows.ByteStore`; a checkpoint is one file."""

    def __init__(self, checkpoint: Path | None = None) -> None:
        self.values: dict[bytes, bytes] = {}
        if checkpoint is not None:
            self.values = msgspec.msgpack.decode((checkpoint / _FILE).read_bytes(), type=dict[bytes, bytes])

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        return [self.values.get(key) for key in keys]

    def write(self, changes: Iterable[tuple[bytes, bytes | None]]) -> None:
        for key, value in changes:
            if value is None:
                del self.values[key]  # nothing is taken away that is not there
            else:
                self.values[key] = value

    def scan(self, first: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]:
        yield from [(key, self.values[key]) for key in sorted(self.values) if first <= key < end]

    def checkpoint(self, path: Path) -> None:
        path.mkdir()
        (path / _FILE).write_bytes(msgspec.msgpack.encode(self.values))

    def close(self) -> None:
        self.values.clear()
