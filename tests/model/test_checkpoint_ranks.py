"""Checkpoints of several ranks: one folder, whole or not there, and any number of ranks takes it up."""

import errno
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import torch

from model.checkpoint import Checkpoint, FileWriter, rows_name, save_checkpoint
from model.checkpoint_load import check_checkpoint, load_checkpoint, load_latest
from model.exceptions import CheckpointCorruptError, CheckpointFolderError, RankLostError
from model.rank_checks import check_shared
from model.ranks import Ranks
from model.reshard import split_rows
from tests.model.test_checkpoint import NUM_TOUCHES, BreakingWriter, CrashError, checkpoint
from tests.model.test_reshard import VIEW, lived, over
from tests.model.thread_ranks import on_ranks

DENSE = {"dense.weight": torch.arange(6.0)}
LIFE = lived(seed=3, num_steps=50).state()


def of_rank(step: int, rank: int, size: int) -> Checkpoint:
    """The part of one rank: its own rows, and what all have alike; only the lead's manifest and metrics count."""
    whole = checkpoint(step)
    if rank:
        whole = Checkpoint(msgspec.structs.replace(whole.manifest, step=0, version=0), {}, {})
    return replace(whole, tensors=over([LIFE], size)[rank] | DENSE)


def save(folder: Path, step: int, size: int, writers: dict[int, FileWriter] | None = None) -> list[Path | Exception]:
    """Saves on every rank."""
    return on_ranks(
        size,
        lambda ranks: save_checkpoint(
            folder, of_rank(step, ranks.rank, size), keep=2, writer=(writers or {}).get(ranks.rank), ranks=ranks
        ),
    )


def saved(folder: Path, step: int, size: int) -> Path:
    first, *others = save(folder, step, size)
    assert isinstance(first, Path) and others == [first] * (size - 1)
    return first


def loaded(path: Path, size: int) -> list[Checkpoint]:
    """The checkpoint as every rank of a world gets it."""
    found = on_ranks(size, lambda ranks: load_checkpoint(path, ranks))
    assert all(isinstance(one, Checkpoint) for one in found), found
    return [one for one in found if isinstance(one, Checkpoint)]


def steps_left(folder: Path, size: int = 2) -> list[int]:
    """The step of the newest whole checkpoint, as each rank sees it."""
    found = on_ranks(size, lambda ranks: load_latest(folder, ranks))
    return [one.manifest.step for one in found if isinstance(one, Checkpoint)]


@pytest.mark.parametrize("writers", [1, 2, 3])
@pytest.mark.parametrize("readers", [1, 2, 4])
def test_any_number_of_ranks_takes_up_what_any_number_wrote(tmp_path: Path, writers: int, readers: int) -> None:
    path = saved(tmp_path, 7, writers)
    assert sorted(p.name for p in path.iterdir()) == sorted(
        [
            "manifest.json",
            "metrics.safetensors",
            "tensors.safetensors",
            *(rows_name(r, writers) for r in range(writers)),
        ]
    )
    assert check_checkpoint(path).num_ranks == writers
    assert f"{VIEW}weight" in LIFE, "a teacher's view goes with the rows"
    expected = over(over([LIFE], writers), readers)
    for rank, found in enumerate(loaded(path, readers)):
        rows, alike = split_rows(found.tensors)
        assert rows.keys() == expected[rank].keys()
        assert all(torch.equal(rows[name], tensor) for name, tensor in expected[rank].items())
        assert alike.keys() == DENSE.keys() and torch.equal(alike["dense.weight"], DENSE["dense.weight"])
        assert (found.manifest.step, found.manifest.version) == (7, 4), "the lead's"
        assert found.metrics.keys() == checkpoint(7).metrics.keys()


@pytest.mark.parametrize(("rank", "touch"), [*((0, n) for n in range(1, NUM_TOUCHES + 1)), (1, 1)])
def test_a_rank_that_dies_at_any_step_leaves_the_one_before_or_the_new_one(
    tmp_path: Path, rank: int, touch: int
) -> None:
    saved(tmp_path, 1, 2)
    came = save(tmp_path, 2, 2, {rank: BreakingWriter(touch, CrashError())})
    assert isinstance(came[rank], CrashError) and isinstance(came[1 - rank], RankLostError)
    is_renamed = touch == NUM_TOUCHES
    assert steps_left(tmp_path) == [1 + is_renamed] * 2
    saved(tmp_path, 3, 2)
    assert steps_left(tmp_path) == [3, 3]
    assert len(list(tmp_path.iterdir())) == 2, "what the crash left aside is gone"


@pytest.mark.parametrize(("rank", "touch"), [*((0, n) for n in range(1, NUM_TOUCHES)), (1, 1)])
def test_no_room_on_one_rank_is_no_checkpoint_of_any(tmp_path: Path, rank: int, touch: int) -> None:
    saved(tmp_path, 1, 2)
    full = OSError(errno.ENOSPC, "No space left on device")
    for one in save(tmp_path, 2, 2, {rank: BreakingWriter(touch, full)}):
        assert isinstance(one, OSError) and "No space left" in str(one) and "\n" not in str(one)
        assert touch > 3 or f"rank {rank}: " in str(one)
    assert len(list(tmp_path.iterdir())) == 1
    assert steps_left(tmp_path) == [1, 1]
    saved(tmp_path, 3, 2)


def test_a_rank_that_writes_elsewhere_spoils_the_checkpoint_for_all(tmp_path: Path) -> None:
    class Elsewhere(FileWriter):
        def write(self, path: Path, data: bytes) -> None:
            (tmp_path / "local").mkdir()
            super().write(tmp_path / "local" / path.name, data)

    for one in save(tmp_path / "shared", 1, 2, {1: Elsewhere()}):
        assert isinstance(one, OSError)
        assert str(one).endswith("is not shared by all ranks: rank 0 does not see rows-00001-of-00002.safetensors")
    assert steps_left(tmp_path / "shared") == []


def torn(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (Path.unlink, "rows-00001-of-00003.safetensors is missing"),
        (torn, r"rows-00001-of-00003.safetensors is torn, [\d,]+ of [\d,]+ bytes"),
        (flipped, "rows-00001-of-00003.safetensors is not what was written"),
    ],
)
@pytest.mark.parametrize("readers", [1, 2, 3])
def test_a_broken_file_of_rows_is_one_line_and_the_one_before_is_used(
    tmp_path: Path, damage: Callable[[Path], None], line: str, readers: int
) -> None:
    saved(tmp_path, 1, 3)
    newest = saved(tmp_path, 2, 3)
    damage(newest / "rows-00001-of-00003.safetensors")
    for one in on_ranks(readers, lambda ranks: load_checkpoint(newest, ranks)):
        assert isinstance(one, CheckpointCorruptError) and "\n" not in str(one)
        prefix = "rank 1: " if readers == 3 else ""  # its own file; else all look at all of them
        with pytest.raises(CheckpointCorruptError, match=f"^{prefix}checkpoint {newest.name}: {line}$"):
            raise one
    assert steps_left(tmp_path, readers) == [1] * readers


def test_rows_of_another_checkpoint_are_not_taken(tmp_path: Path) -> None:
    older, newer = saved(tmp_path, 1, 2), saved(tmp_path / "other", 2, 3)
    shutil.copy(newer / rows_name(1, 3), older / rows_name(1, 2))
    with pytest.raises(CheckpointCorruptError, match="rows-00001-of-00002.safetensors is torn"):
        check_checkpoint(older)


def test_a_manifest_that_names_more_ranks_than_files_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, 1, 2)
    manifest = msgspec.structs.replace(check_checkpoint(path), num_ranks=3)
    (path / "manifest.json").write_bytes(msgspec.json.encode(manifest))
    for one in on_ranks(2, lambda ranks: load_checkpoint(path, ranks)):
        assert str(one) == f"checkpoint {path.name}: its manifest does not know rows-00000-of-00003.safetensors"


def test_a_folder_that_is_not_shared_is_one_line_on_every_rank(tmp_path: Path) -> None:
    mounts = [tmp_path / "a" / "checkpoints", tmp_path / "b" / "checkpoints"]
    assert on_ranks(2, lambda ranks: check_shared(ranks, mounts[0])) == [None, None]
    assert list(mounts[0].iterdir()) == []
    for one, folder in zip(on_ranks(2, lambda ranks: check_shared(ranks, mounts[ranks.rank])), mounts, strict=True):
        assert isinstance(one, CheckpointFolderError)
        why = "rank 1: does not see what rank 0 writes there; all ranks must share one folder"
        assert str(one) == f"checkpoint.folder: {folder}: {why}"
    (tmp_path / "file").write_bytes(b"")
    for one in on_ranks(2, lambda ranks: check_shared(ranks, tmp_path / "file" / "checkpoints")):
        assert isinstance(one, CheckpointFolderError) and ": rank 0: cannot write there: " in str(one)
    check_shared(Ranks.alone(), tmp_path / "nothing is made")
    assert not (tmp_path / "nothing is made").exists()
