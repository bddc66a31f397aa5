"""The blend worker's checkpoint: where the present round begins in the topic. The topic itself keeps all the rest."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class BlendCheckpoint:
    """Where to go on."""

    version: int
    """Version in service when the round began."""
    offsets: dict[int, int]
    """Partition of `outcomes` -> first offset of the round."""


def save(path: Path, checkpoint: BlendCheckpoint) -> None:
    """Writes the checkpoint aside and renames it, so that a crash leaves the one before."""
    aside = path.with_suffix(".part")
    with aside.open("w", encoding="utf-8") as file:
        json.dump(asdict(checkpoint), file)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


def load(path: Path) -> BlendCheckpoint | None:
    """Returns the checkpoint at `path`; None if there is none.

    Raises:
        ValueError: there is one that cannot be read.
    """
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        offsets = {int(partition): int(offset) for partition, offset in found["offsets"].items()}
        return BlendCheckpoint(version=int(found["version"]), offsets=offsets)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"{path} is no checkpoint of `freshrank blend` ({type(error).__name__}: {error}); "
            "remove it to read the topic from its beginning"
        ) from error
