"""A store on a disk without room: what it cannot keep is told, and it can be closed all the same."""

import logging
from pathlib import Path

import pytest

from stream.exceptions import LocalStoreError
from stream.local_store import LocalStore, StoreMemory

FULL = "IO error: No space left on device: While appending to file: live/000066.sst: No space left on device"


class FullDatabase:
    """RocksDB tells of a full disk at a write and again when it is closed; its errors have no type of their own."""

    def close(self) -> None:
        raise Exception(FULL)

    def get(self, keys: list[bytes]) -> list[bytes]:
        raise Exception("Corruption: block checksum mismatch")


class BrokenDatabase:
    def close(self) -> None:
        raise AttributeError("a fault of ours")


def test_a_store_on_a_full_disk_is_closed_and_says_what_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = LocalStore(tmp_path / "live", StoreMemory(16))
    real = store._db  # noqa: SLF001
    monkeypatch.setattr(store, "_db", FullDatabase())
    with caplog.at_level(logging.WARNING):
        store.close()
    real.close()
    assert "No space left on device" in caplog.text


def test_another_failure_to_close_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = LocalStore(tmp_path / "live", StoreMemory(16))
    real = store._db  # noqa: SLF001
    monkeypatch.setattr(store, "_db", BrokenDatabase())
    with pytest.raises(AttributeError, match="a fault of ours"):
        store.close()
    real.close()


def test_many_values_are_read_at_once_in_the_order_of_their_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = LocalStore(tmp_path / "live", StoreMemory(16))
    store.write([(b"a", b"1"), (b"b", b"2"), (b"c", b""), (b"b", None)])
    assert store.get_many([b"c", b"b", b"x", b"a", b"a"]) == [b"", None, None, b"1", b"1"]
    assert store.get_many([]) == []
    real = store._db  # noqa: SLF001
    monkeypatch.setattr(store, "_db", FullDatabase())
    with pytest.raises(
        LocalStoreError, match="Corruption: block checksum mismatch.*; make room on the disk or replace"
    ):
        store.get_many([b"a"])
    real.close()
