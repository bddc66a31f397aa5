"""The working copy of rows that left memory: one process at a time, and always what the checkpoint says."""

from pathlib import Path

import pytest

from freshrank.cold_store import ColdStore
from freshrank.exits import CommandError, ExitCode, explain
from freshrank.places import CheckpointConfig
from model.embedding_config import EmbeddingConfig


def test_a_store_begins_as_its_checkpoint_whatever_was_written_since(tmp_path: Path) -> None:
    stores = ColdStore(tmp_path, 0, 1, 16)
    store = stores.open(None)
    store.write([(b"a", b"1")])
    store.checkpoint(tmp_path / "kept")
    store.write([(b"a", b"2"), (b"b", b"2")])
    stores.close()
    for _ in range(2):
        stores = ColdStore(tmp_path, 0, 1, 16)
        assert stores.open(None).get_many([b"a", b"b"]) == [None, None]
        store = stores.open(tmp_path / "kept")
        assert store.get_many([b"a", b"b"]) == [b"1", None]
        other = stores.read(tmp_path / "kept")
        other.write([(b"a", b"3")])
        other.close()
        store.write([(b"a", b"4")])
        stores.close()


def test_a_second_trainer_is_told_that_the_folder_is_in_use(tmp_path: Path) -> None:
    first, second, other_rank = (ColdStore(tmp_path, rank, 2, 16) for rank in (0, 0, 1))
    first.open(None)
    other_rank.open(None)
    with pytest.raises(CommandError, match=r"checkpoint\.folder: .* is in use by another trainer; stop it") as why:
        second.open(None)
    code, sentence = explain(why.value)
    assert code == ExitCode.DISK and "\n" not in sentence
    first.close()
    second.open(None)
    for one in (second, other_rank):
        one.close()


def test_a_checkpoint_that_is_gone_is_told_in_a_sentence(tmp_path: Path) -> None:
    stores = ColdStore(tmp_path, 0, 1, 16)
    with pytest.raises(CommandError, match=r"checkpoint\.folder: .* cannot be used: No such file or directory"):
        stores.open(tmp_path / "gone")
    stores.close()


def test_bad_settings_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="hot_rows: 0 is not allowed; at least 1, or null"):
        EmbeddingConfig(hot_rows=0)
    with pytest.raises(ValueError, match="cold_store_mib: 8 is not allowed; at least 16"):
        CheckpointConfig(cold_store_mib=8)
