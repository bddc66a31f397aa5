"""Of when a snapshot of the join state is, and that it is whole: a small file written last into its folder.

First line: SHA-256 of the second. Second line: JSON with the SHA-256 of RocksDB's `MANIFEST`, which says which tables
there are and how long; the tables carry checksums of their own. So nothing is taken for a state that was not one.
"""

import hashlib
import os
from pathlib import Path

import msgspec

FORMAT = 2
"""Version of the layout of everything in a snapshot; one of another version is not read."""
_FILE = "record"


class SnapshotRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a snapshot holds beside slates and pending feedback."""

    format: int = FORMAT
    """Layout of the snapshot."""
    labels: str
    """`labels_hash` of the settings under which the state came to be."""
    lineage: str
    """Which life of the log: that of the committed offsets."""
    next_impression: int
    """Offset of the first impression that the state knows nothing of."""
    next_feedback: int
    """Offset of the first feedback that the state knows nothing of."""
    watermark_ms: int
    """Watermark of the state."""
    traffic: dict[str, list[tuple[int, int, dict[str, int]]]] = {}
    """`Traffic.state()` by task."""
    num_slates: int = 0
    """Slates in the snapshot."""
    num_requests_pending: int = 0
    """Requests that pending feedback waits for."""
    num_pending: int = 0
    """Pending feedback in the snapshot."""
    impressions_needed: dict[int, int] = {}
    """`NeededOffsets.blocks()`."""
    feedback_needed: dict[int, int] = {}
    """The same of feedback."""
    manifest: str = ""
    """SHA-256 of RocksDB's `MANIFEST`."""


def write_record(folder: Path, record: SnapshotRecord) -> None:
    """Declares a snapshot whole. Raises OSError."""
    text = msgspec.json.encode(msgspec.structs.replace(record, manifest=_manifest_hash(folder)))
    aside = folder / f"{_FILE}.tmp"
    with aside.open("wb") as file:
        file.write(_hash(text) + b"\n" + text)
        file.flush()
        os.fsync(file.fileno())
    aside.rename(folder / _FILE)


def read_record(folder: Path) -> SnapshotRecord:
    """Returns the record of a snapshot.

    Raises:
        ValueError: it is not whole, damaged, or not of this format.
        OSError: it cannot be read.
    """
    path = folder / _FILE
    if not path.exists():
        raise ValueError("it was not finished")
    digest, _, text = path.read_bytes().partition(b"\n")
    if digest != _hash(text):
        raise ValueError("its record is damaged")
    found = msgspec.json.decode(text).get("format")
    if found != FORMAT:
        raise ValueError(f"it is of format {found}, not {FORMAT}")
    record = msgspec.json.decode(text, type=SnapshotRecord)
    if record.manifest != _manifest_hash(folder):
        raise ValueError("its list of tables is damaged")
    return record


def _manifest_hash(folder: Path) -> str:
    manifests = sorted(folder.glob("MANIFEST-*"))
    return _hash(b"".join(manifest.read_bytes() for manifest in manifests)).decode()


def _hash(data: bytes) -> bytes:
    return hashlib.sha256(data).hexdigest().encode()
