"""Reading checkpoints: those that are whole, by any number of ranks, whatever number wrote them.

Every rank reads what all have alike and the files that may have rows of its own: its own one where as many ranks wrote
it; else up to all of them, one after the other, of which it keeps its own rows. Files are mapped, not read into memory.
"""

import hashlib
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec
from safetensors import SafetensorError
from safetensors.numpy import load_file as load_arrays
from safetensors.torch import load_file as load_tensors

from model.checkpoint import (
    MANIFEST,
    METRICS,
    TENSORS,
    Checkpoint,
    CheckpointManifest,
    checkpoint_paths,
    rows_name,
)
from model.cold_names import cold_name
from model.exceptions import CheckpointCorruptError
from model.rank_checks import problem_of_any
from model.ranks import Ranks
from model.reshard import ranks_with, reshard

logger = logging.getLogger(__name__)


def check_checkpoint(path: Path) -> CheckpointManifest:
    """Returns the manifest of one checkpoint after checking the length and hash of every file; loads nothing.

    Raises:
        CheckpointCorruptError: a file is missing, torn, or not what was written.
    """
    manifest = _manifest(path)
    parts = (rows_name(rank, manifest.num_ranks) for rank in range(manifest.num_ranks))
    _check(path, manifest, (TENSORS, METRICS, *parts, *(name for name in manifest.files if "/" in name)))
    return manifest


def load_checkpoint(path: Path, ranks: Ranks | None = None) -> Checkpoint:
    """Returns one checkpoint, with this rank's rows, after checking the files that it reads. All ranks call it.

    Raises:
        CheckpointCorruptError: on every rank, if one finds a file missing, torn, or not what was written.
    """
    ranks = ranks or Ranks.alone()
    checkpoint, problem = None, ""
    try:
        checkpoint = _read(path, ranks.rank, ranks.size)
    except CheckpointCorruptError as error:
        problem = str(error)
    problem = problem_of_any(ranks, problem)
    if checkpoint is None or problem:
        raise CheckpointCorruptError(problem)
    return checkpoint


def whole_checkpoints(folder: Path, ranks: Ranks | None = None) -> Iterator[Checkpoint]:
    """Yields the checkpoints that are whole, newest first, each once it is asked for. Says which ones it had to skip.

    All ranks ask alike; which checkpoints there are the lead says.
    """
    ranks = ranks or Ranks.alone()
    names = msgspec.json.encode([path.name for path in checkpoint_paths(folder)])
    for name in msgspec.json.decode(ranks.broadcast(names), type=list[str]):
        try:
            yield load_checkpoint(folder / name, ranks)
        except CheckpointCorruptError as error:
            if ranks.is_lead:
                path = folder / name
                logger.warning("Skipping a broken checkpoint, trying the one before it path=%s error=%s", path, error)


def load_latest(folder: Path, ranks: Ranks | None = None) -> Checkpoint | None:
    """Returns the newest checkpoint that is whole; None if there is none. Says which ones it had to skip."""
    return next(whole_checkpoints(folder, ranks), None)


def _read(path: Path, rank: int, size: int) -> Checkpoint:
    manifest = _manifest(path)
    writers = ranks_with(rank, size, of=manifest.num_ranks)
    parts = [rows_name(writer, manifest.num_ranks) for writer in writers]
    cold = {cold_name(writer, manifest.num_ranks) for writer in writers}
    tables = [name for name in manifest.files if name.partition("/")[0] in cold]
    _check(path, manifest, [TENSORS, METRICS, *parts, *tables])
    try:
        tensors = load_tensors(path / TENSORS)
        if manifest.num_ranks == size:
            tensors |= load_tensors(path / parts[0])
        elif parts:
            tensors |= reshard((load_tensors(path / name) for name in parts), rank, size)
        folders = sorted({path / name.partition("/")[0] for name in tables})
        return Checkpoint(manifest, tensors, load_arrays(path / METRICS), cold_folders=tuple(folders))
    except (OSError, SafetensorError) as error:
        raise CheckpointCorruptError(f"checkpoint {path.name} cannot be read: {error}") from error


def _manifest(path: Path) -> CheckpointManifest:
    try:
        return msgspec.json.decode((path / MANIFEST).read_bytes(), type=CheckpointManifest)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CheckpointCorruptError(f"checkpoint {path.name} cannot be read: {error}") from error


def _check(path: Path, manifest: CheckpointManifest, names: Iterable[str]) -> None:
    for name in names:
        if name not in manifest.files:
            raise CheckpointCorruptError(f"checkpoint {path.name}: its manifest does not know {name}")
        length, sha256 = manifest.files[name]
        try:
            with (path / name).open("rb") as file:
                found = (path / name).stat().st_size
                digest = hashlib.file_digest(file, "sha256").hexdigest() if sha256 else ""
        except FileNotFoundError as error:
            raise CheckpointCorruptError(f"checkpoint {path.name}: {name} is missing") from error
        except OSError as error:
            raise CheckpointCorruptError(f"checkpoint {path.name} cannot be read: {error}") from error
        if found != length:
            raise CheckpointCorruptError(f"checkpoint {path.name}: {name} is torn, {found:,} of {length:,} bytes")
        if digest != sha256:
            raise CheckpointCorruptError(f"checkpoint {path.name}: {name} is not what was written")
