"""Checkpoints: whole or not there, whatever happens while they are written."""

import errno
import logging
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from model.checkpoint import (
    Checkpoint,
    CheckpointManifest,
    FileWriter,
    Position,
    checkpoint_paths,
    save_checkpoint,
)
from model.checkpoint_load import check_checkpoint, load_checkpoint, load_latest
from model.exceptions import CheckpointCorruptError


class CrashError(Exception):
    """Stands for a process that ends here."""


class BreakingWriter(FileWriter):
    """Breaks at the n-th touch of the disk; a file that is being written then is torn in the middle."""

    def __init__(self, break_at: int, error: Exception) -> None:
        self._break_at = break_at
        self._error = error
        self.touches = 0

    def _touch(self) -> bool:
        self.touches += 1
        return self.touches == self._break_at

    def write(self, path: Path, data: bytes) -> None:
        if self._touch():
            path.write_bytes(data[: len(data) // 2])
            raise self._error
        super().write(path, data)

    def sync_folder(self, path: Path) -> None:
        if self._touch():
            raise self._error
        super().sync_folder(path)

    def rename(self, source: Path, target: Path) -> None:
        if self._touch():
            raise self._error
        super().rename(source, target)


NUM_TOUCHES = 7
"""Three files, the manifest, the folder, the rename, the parent."""


def checkpoint(step: int) -> Checkpoint:
    generator = torch.Generator().manual_seed(step)
    manifest = CheckpointManifest(
        step=step,
        positions={0: Position(step, 3), 1: Position(0)},
        watermarks_ms={0: 5},
        version=4,
        epoch=2,
        schema_hash="s",
        config_hash="c",
        depends_on={"scenarios": ["home"]},
        learner_meta={"format": 1},
        counters={"examples": 10 * step},
    )
    tensors = {
        "rows.weight": torch.randn(5, 3, generator=generator),
        "keys": torch.tensor([-(2**63), 2**63 - 1]),
        "strided": torch.arange(6).reshape(2, 3).T,
        "empty": torch.empty(0, 2),
        "scalar": torch.tensor(7.0),
    }
    return Checkpoint(manifest, tensors, {"sums": np.array([0.1, float("nan")]), "none": np.empty(0, np.int64)})


def assert_equal(loaded: Checkpoint | None, saved: Checkpoint) -> None:
    assert loaded is not None
    assert msgspec.structs.replace(loaded.manifest, num_ranks=0, files={}) == saved.manifest
    assert loaded.tensors.keys() == saved.tensors.keys()
    for name, tensor in saved.tensors.items():
        assert torch.equal(loaded.tensors[name], tensor), name
    assert loaded.metrics.keys() == saved.metrics.keys()
    for name, array in saved.metrics.items():
        np.testing.assert_array_equal(loaded.metrics[name], array)


def test_what_is_saved_comes_back_bit_for_bit(tmp_path: Path) -> None:
    assert load_latest(tmp_path / "nowhere") is None
    path = save_checkpoint(tmp_path / "new", checkpoint(1), keep=2)
    assert_equal(load_checkpoint(path), checkpoint(1))
    assert_equal(load_latest(tmp_path / "new"), checkpoint(1))
    assert check_checkpoint(path) == load_checkpoint(path).manifest


def test_the_last_ones_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        save_checkpoint(tmp_path, checkpoint(step), keep=2)
    assert [load_checkpoint(path).manifest.step for path in checkpoint_paths(tmp_path)] == [4, 3]
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("break_at", range(1, NUM_TOUCHES + 1))
def test_a_crash_at_any_step_leaves_the_one_before_or_the_new_one(tmp_path: Path, break_at: int) -> None:
    save_checkpoint(tmp_path, checkpoint(1), keep=2)
    with pytest.raises(CrashError):
        save_checkpoint(tmp_path, checkpoint(2), keep=2, writer=BreakingWriter(break_at, CrashError()))
    is_renamed = break_at == NUM_TOUCHES
    assert_equal(load_latest(tmp_path), checkpoint(2 if is_renamed else 1))
    save_checkpoint(tmp_path, checkpoint(3), keep=3)
    assert_equal(load_latest(tmp_path), checkpoint(3))
    assert len(list(tmp_path.iterdir())) == 2 + is_renamed, "what the crash left aside is gone"


def test_the_steps_above_are_all_there_are(tmp_path: Path) -> None:
    writer = BreakingWriter(NUM_TOUCHES + 1, CrashError())
    save_checkpoint(tmp_path, checkpoint(1), keep=2, writer=writer)
    assert writer.touches == NUM_TOUCHES


@pytest.mark.parametrize("break_at", range(1, NUM_TOUCHES))
def test_a_full_disk_leaves_nothing_half(tmp_path: Path, break_at: int) -> None:
    save_checkpoint(tmp_path, checkpoint(1), keep=2)
    full = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(tmp_path, checkpoint(2), keep=2, writer=BreakingWriter(break_at, full))
    assert len(list(tmp_path.iterdir())) == 1
    assert_equal(load_latest(tmp_path), checkpoint(1))


@pytest.mark.parametrize(
    "file_name", ["rows-00000-of-00001.safetensors", "tensors.safetensors", "metrics.safetensors", "manifest.json"]
)
@pytest.mark.parametrize("damage", ["missing", "torn", "flipped", "empty"])
def test_a_broken_checkpoint_is_named_and_the_one_before_is_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, file_name: str, damage: str
) -> None:
    save_checkpoint(tmp_path, checkpoint(1), keep=2)
    newest = save_checkpoint(tmp_path, checkpoint(2), keep=2)
    data = (newest / file_name).read_bytes()
    middle = len(data) // 2
    if damage == "missing":
        (newest / file_name).unlink()
    else:
        damaged = {"torn": data[:middle], "empty": b"", "flipped": data[:middle] + b"\xff" + data[middle + 1 :]}
        (newest / file_name).write_bytes(damaged[damage])
    for read in (load_checkpoint, check_checkpoint):
        with pytest.raises(CheckpointCorruptError, match=newest.name):
            read(newest)
    with caplog.at_level(logging.WARNING):
        assert_equal(load_latest(tmp_path), checkpoint(1))
    assert str(newest) in caplog.text


def test_a_save_after_a_broken_one_does_not_touch_it(tmp_path: Path) -> None:
    broken = save_checkpoint(tmp_path, checkpoint(1), keep=3)
    (broken / "manifest.json").unlink()
    save_checkpoint(tmp_path, replace(checkpoint(1)), keep=3)
    assert_equal(load_latest(tmp_path), checkpoint(1))
    assert len(checkpoint_paths(tmp_path)) == 2
