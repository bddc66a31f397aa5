"""Checkpoints: the trainer's own recovery state, one folder each, either whole or not there.

All ranks write into one folder, on a file system that they share. The order of a save:

1. the lead makes a folder aside; every rank writes its rows into it, the lead also the metrics, and what all ranks have
   alike; each file fsynced, its length and hash told to the lead; the store of rows that left memory is linked
2. the manifest last, with the length and hash of every file; fsynced, then the folder
3. the folder renamed to its final name, the parent fsynced
4. older ones beyond `keep` removed, and what earlier crashes left aside

A crash of any rank in 1 or 2 leaves a folder aside that nobody reads; in 3 the rename has happened or not; in 4 one too
many stays. Where one rank cannot write, none keeps anything. No pickle: safetensors and JSON.
"""

import hashlib
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from safetensors.numpy import save as save_arrays
from safetensors.torch import save as save_tensors

from model.cold_names import cold_name
from model.metrics import Arrays
from model.ranks import Ranks
from model.reshard import split_rows

TENSORS, METRICS, MANIFEST = "tensors.safetensors", "metrics.safetensors", "manifest.json"
TABLE = ".sst"
"""Ending of the files of rows that left memory that are never changed, only linked."""
_PREFIX = "checkpoint-"
_DIGITS = 8
_ASIDE = ".aside-"


class Position(msgspec.Struct, frozen=True, order=True):
    """The next thing to train on in one partition: a message and a row (item) inside it."""

    offset: int
    row: int = 0


class CheckpointManifest(msgspec.Struct, frozen=True, kw_only=True):
    """Everything of a checkpoint that is not a tensor."""

    step: int
    positions: dict[int, Position]
    """Per partition of `examples`: where to go on."""
    watermarks_ms: dict[int, int]
    """Per partition: the watermark of the last message that is learned."""
    version: int
    """The last snapshot version this trainer gave out; 0 before the first."""
    epoch: int
    """The epoch it published with; 0 before the first."""
    schema_hash: str
    config_hash: str
    depends_on: dict[str, Any]
    """What of the configuration the weights cannot do without (`model.compatibility`)."""
    learner_meta: dict[str, Any]
    counters: dict[str, int]
    rollback_epoch: int = 0
    """Epoch of the last rollback that these weights are behind; 0 for none."""
    num_ranks: int = 0
    """Ranks that wrote it, each a file of rows; filled in by `save_checkpoint`. 0: of a format that knew no ranks."""
    files: dict[str, tuple[int, str]] = {}
    """Name -> length in bytes, SHA-256; filled in by `save_checkpoint`."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint in memory."""

    manifest: CheckpointManifest
    tensors: dict[str, torch.Tensor]
    """The learner's, by name; the rows are those of one rank."""
    metrics: Arrays
    save_cold: Callable[[Path], None] | None = None
    """Keeps this rank's rows that left memory, in a new folder; None: there are none."""
    cold_folders: tuple[Path, ...] = ()
    """Where a checkpoint that was read has them; if another number of ranks wrote it, those of several ranks. Not to be
    changed."""


class FileWriter:
    """The few calls that touch the disk; a test replaces it to crash or to run out of space."""

    def write(self, path: Path, data: bytes) -> None:
        """Writes a new file and returns when it is on the disk."""
        with path.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    def sync_folder(self, path: Path) -> None:
        """Returns when the folder's entries are on the disk."""
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        """Moves a folder in one act."""
        source.rename(target)


def save_checkpoint(
    folder: Path, checkpoint: Checkpoint, *, keep: int, writer: FileWriter | None = None, ranks: Ranks | None = None
) -> Path:
    """Returns the path of the checkpoint once it is durable; afterwards the newest `keep` are left in `folder`.

    All ranks call it, each with its own rows; what all have alike, the metrics and the manifest are the lead's.

    Raises:
        OSError: on every rank, if the disk of one is full or gone; nothing half is left under a name that is read.
    """
    writer, ranks = writer or FileWriter(), ranks or Ranks.alone()
    name = _by_lead(ranks, lambda: _begin(folder))
    part = _write_part(folder / f"{_ASIDE}{name}", checkpoint, writer, ranks)
    parts = ranks.gather(msgspec.json.encode(part))
    manifest = msgspec.structs.replace(checkpoint.manifest, num_ranks=ranks.size)
    _by_lead(ranks, lambda: _finish(folder, name, manifest, parts or [], keep, writer))
    return folder / name


class _Outcome(msgspec.Struct):
    """What came of a rank's part of a save."""

    value: str = ""
    files: dict[str, tuple[int, str]] = {}
    """What it wrote, as in the manifest."""
    error: str = ""
    """Why it could not."""


def _by_lead(ranks: Ranks, act: Callable[[], str]) -> str:
    """Returns, on every rank, what the lead's act returns; or raises what it raises."""
    outcome = _Outcome()
    if ranks.is_lead:
        try:
            outcome.value = act()
        except OSError as error:
            outcome.error = str(error)
    outcome = msgspec.json.decode(ranks.broadcast(msgspec.json.encode(outcome)), type=_Outcome)
    if outcome.error:
        raise OSError(outcome.error)
    return outcome.value


def _begin(folder: Path) -> str:
    """Makes the folder aside. Returns what it will be called."""
    folder.mkdir(parents=True, exist_ok=True)
    newest = max((int(path.name.removeprefix(_PREFIX)) for path in checkpoint_paths(folder)), default=0)
    name = f"{_PREFIX}{newest + 1:0{_DIGITS}d}"
    aside = folder / f"{_ASIDE}{name}"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    return name


def _write_part(aside: Path, checkpoint: Checkpoint, writer: FileWriter, ranks: Ranks) -> _Outcome:
    """Writes what is this rank's to write."""
    rows, alike = split_rows(checkpoint.tensors)
    contents: dict[str, Callable[[], bytes]] = {rows_name(ranks.rank, ranks.size): lambda: save_tensors(_plain(rows))}
    if ranks.is_lead:
        contents[TENSORS] = lambda: save_tensors(_plain(alike))
        contents[METRICS] = lambda: save_arrays(_arrays(checkpoint.metrics))
    part = _Outcome()
    try:
        for file_name, content in contents.items():  # 1
            data = content()
            writer.write(aside / file_name, data)
            part.files[file_name] = (len(data), hashlib.sha256(data).hexdigest())
        if checkpoint.save_cold is not None:
            part.files |= _write_cold(aside, cold_name(ranks.rank, ranks.size), checkpoint.save_cold)
    except OSError as error:
        part.error = str(error) if ranks.size == 1 else f"rank {ranks.rank}: {error}"
    return part


def _write_cold(aside: Path, name: str, save: Callable[[Path], None]) -> dict[str, tuple[int, str]]:
    """Returns the files of a rank's rows that left memory, linked into the folder aside.

    Tables have no hash: they are large, and hold one for each of their blocks that is checked whenever it is read.
    """
    save(aside / name)
    files = {}
    for path in sorted((aside / name).iterdir()):
        digest = "" if path.suffix == TABLE else hashlib.sha256(path.read_bytes()).hexdigest()
        files[f"{name}/{path.name}"] = (path.stat().st_size, digest)
    return files


def _finish(
    folder: Path, name: str, manifest: CheckpointManifest, parts: list[bytes], keep: int, writer: FileWriter
) -> str:
    """Makes the folder aside a checkpoint, if every rank has written its part."""
    aside = folder / f"{_ASIDE}{name}"
    outcomes = [msgspec.json.decode(part, type=_Outcome) for part in parts]
    files = {file_name: written for part in outcomes for file_name, written in part.files.items()}
    try:
        if errors := [part.error for part in outcomes if part.error]:
            raise OSError("; ".join(errors))
        if unseen := [file_name for file_name in files if not (aside / file_name).exists()]:
            raise OSError(f"{folder} is not shared by all ranks: rank 0 does not see {', '.join(unseen)}")
        writer.write(aside / MANIFEST, msgspec.json.encode(msgspec.structs.replace(manifest, files=files)))  # 2
        writer.sync_folder(aside)
        writer.rename(aside, folder / name)  # 3
    except OSError:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    writer.sync_folder(folder)
    for old in [*checkpoint_paths(folder)[keep:], *folder.glob(f"{_ASIDE}*")]:  # 4
        shutil.rmtree(old, ignore_errors=True)
    return name


def _plain(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}


def _arrays(metrics: Arrays) -> Arrays:
    return {name: np.ascontiguousarray(array) for name, array in metrics.items()}


def rows_name(rank: int, size: int) -> str:
    """Returns the name of the file with the rows of one of `size` ranks."""
    return f"rows-{rank:05d}-of-{size:05d}.safetensors"


def checkpoint_paths(folder: Path) -> list[Path]:
    """Returns the checkpoint folders, newest first."""
    return sorted(folder.glob(f"{_PREFIX}{'[0-9]' * _DIGITS}"), reverse=True)
