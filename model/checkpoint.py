"""Checkpoints: the trainer's own recovery state, one folder each, either whole or not there.

The order of a save:

1. tensors and metrics into a folder aside, each file fsynced
2. the manifest last, with the length and hash of every file; fsynced, then the folder
3. the folder renamed to its final name, the parent fsynced
4. older ones beyond `keep` removed, and what earlier crashes left aside

A crash in 1 or 2 leaves a folder aside that nobody reads; in 3 the rename has happened or not; in 4 one too many stays.
No pickle: safetensors and JSON.
"""

import hashlib
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from model.exceptions import CheckpointCorruptError
from model.metrics import Arrays

logger = logging.getLogger(__name__)

_PREFIX = "checkpoint-"
_DIGITS = 8
_ASIDE = ".aside-"
_TENSORS, _METRICS, _MANIFEST = "tensors.safetensors", "metrics.safetensors", "manifest.json"


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
    files: dict[str, tuple[int, str]] = {}
    """Name -> length in bytes, SHA-256; filled in by `save_checkpoint`."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint in memory."""

    manifest: CheckpointManifest
    tensors: dict[str, torch.Tensor]
    """The learner's, by name."""
    metrics: Arrays


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


def save_checkpoint(folder: Path, checkpoint: Checkpoint, *, keep: int, writer: FileWriter | None = None) -> Path:
    """Returns the path of the checkpoint once it is durable; afterwards the newest `keep` are left in `folder`.

    Raises:
        OSError: the disk is full or gone; nothing half is left under a name that `load_latest` reads.
    """
    writer = writer or FileWriter()
    folder.mkdir(parents=True, exist_ok=True)
    newest = max((int(path.name.removeprefix(_PREFIX)) for path in checkpoint_paths(folder)), default=0)
    name = f"{_PREFIX}{newest + 1:0{_DIGITS}d}"
    target, aside = folder / name, folder / f"{_ASIDE}{name}"
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir()
        contents = {
            _TENSORS: save_tensors(_plain(checkpoint.tensors)),
            _METRICS: save_arrays(_arrays(checkpoint.metrics)),
        }
        for file_name, data in contents.items():  # 1
            writer.write(aside / file_name, data)
        files = {file_name: (len(data), hashlib.sha256(data).hexdigest()) for file_name, data in contents.items()}
        manifest = msgspec.structs.replace(checkpoint.manifest, files=files)
        writer.write(aside / _MANIFEST, msgspec.json.encode(manifest))  # 2
        writer.sync_folder(aside)
        writer.rename(aside, target)  # 3
    except OSError:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    writer.sync_folder(folder)
    for old in [*checkpoint_paths(folder)[keep:], *folder.glob(f"{_ASIDE}*")]:  # 4
        shutil.rmtree(old, ignore_errors=True)
    return target


def _plain(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}


def _arrays(metrics: Arrays) -> Arrays:
    return {name: np.ascontiguousarray(array) for name, array in metrics.items()}


def checkpoint_paths(folder: Path) -> list[Path]:
    """Returns the checkpoint folders, newest first."""
    return sorted(folder.glob(f"{_PREFIX}{'[0-9]' * _DIGITS}"), reverse=True)


def load_checkpoint(path: Path) -> Checkpoint:
    """Returns one checkpoint after checking the length and hash of every file.

    Raises:
        CheckpointCorruptError: a file is missing, torn, or not what was written.
    """
    try:
        manifest = msgspec.json.decode((path / _MANIFEST).read_bytes(), type=CheckpointManifest)
        contents = {name: (path / name).read_bytes() for name in (_TENSORS, _METRICS)}
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CheckpointCorruptError(f"checkpoint {path.name} cannot be read: {error}") from error
    for name, data in contents.items():
        if manifest.files.get(name) != (len(data), hashlib.sha256(data).hexdigest()):
            raise CheckpointCorruptError(f"checkpoint {path.name}: {name} is not what was written")
    try:
        return Checkpoint(manifest, load_tensors(contents[_TENSORS]), load_arrays(contents[_METRICS]))
    except SafetensorError as error:
        raise CheckpointCorruptError(f"checkpoint {path.name} cannot be read: {error}") from error


def load_latest(folder: Path) -> Checkpoint | None:
    """Returns the newest checkpoint that is whole; None if there is none. Says which ones it had to skip."""
    for path in checkpoint_paths(folder):
        try:
            return load_checkpoint(path)
        except CheckpointCorruptError as error:
            logger.warning("Skipping a broken checkpoint, trying the one before it path=%s error=%s", path, error)
    return None
