"""What is committed with each input offset: enough to go on exactly where the last transaction ended.

The committed *offset* is the oldest message still needed to rebuild the open slates. The *metadata* says how far the
committed outputs reach, so that the replay from there emits nothing twice. `docs/joiner.md` has the proof.
"""

import hashlib
from dataclasses import asdict

import msgspec

from stream.exceptions import OffsetMetadataError
from stream.log import OffsetAndMetadata, TopicPartition
from stream.schema import SchemaConfig

METADATA_VERSION = 1


class Progress(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The metadata of one topic's committed offset, as compact JSON."""

    v: int
    """`METADATA_VERSION`."""
    next: int
    """Offset of the first message that no committed transaction has read."""
    watermark: int
    """Watermark of the pair up to which closes have been emitted, in ms; the same in both topics."""
    event: int
    """Largest event time seen in this topic, in ms: where its clock goes on."""
    labels: str
    """`labels_hash` of the settings under which the labels so far were made."""
    lineage: str = ""
    """Names the life of the log that began when the group first took up this partition, or gave up what was lost:
    a snapshot of another life may be of other messages with the same offsets."""
    partitions: int = 0
    """How many partitions the topics had; 0: committed by a release that did not say. With another number users are
    in other partitions, and an open slate and its feedback may not meet."""


def labels_hash(schema: SchemaConfig, grace_ms: int, duplicate_ms: int, outcome_window_ms: int | None = None) -> str:
    """Returns 16 hex digits over every setting that decides which labels and outcomes a log has.

    Under other settings a replay would find other labels, and could no longer tell which of them are committed.
    """
    settings = {
        "schema": schema.schema_hash(),
        "unknown_scenario": schema.unknown_scenario,
        "tasks": {name: asdict(task) for name, task in schema.tasks.items()},
        "grace_ms": grace_ms,
        "duplicate_ms": duplicate_ms,
    }
    if schema.unknown_scenario == "default" and schema.default_scenario is not None:
        settings["default_scenario"] = schema.default_scenario
    if outcome_window_ms is not None:
        settings["outcome_window_ms"] = outcome_window_ms
    return hashlib.sha256(msgspec.json.encode(settings)).hexdigest()[:16]


def encode_progress(progress: Progress) -> str:
    """Returns the metadata string to commit."""
    return msgspec.json.encode(progress).decode()


def decode_progress(partition: TopicPartition, committed: OffsetAndMetadata, labels: str) -> Progress:
    """Returns the progress committed for one partition, checked against the settings of this run.

    Other label settings are allowed where nothing is open: the offset is `next`, so that nothing is replayed.

    Raises:
        OffsetMetadataError: not written by a joiner, by an incompatible one, or under other label settings.
    """
    where = f"committed offset {committed.offset} of {partition.topic}[{partition.partition}]"
    try:
        progress = msgspec.json.decode(committed.metadata, type=Progress)
    except msgspec.MsgspecError as error:
        raise OffsetMetadataError(
            f"{where}: metadata {committed.metadata!r} is not a joiner's ({error}); reset the group, or use another one"
        ) from error
    if progress.v != METADATA_VERSION:
        raise OffsetMetadataError(
            f"{where}: metadata version {progress.v} is not {METADATA_VERSION}; drain with the release that wrote it"
        )
    if progress.labels != labels and committed.offset != progress.next:
        raise OffsetMetadataError(
            f"{where}: slates are still open under other settings (tasks, features, scenarios, grace_ms, "
            f"duplicate_ms or outcome_window_ms changed: labels {progress.labels}, now {labels}); let the old settings "
            "run until all slates are closed, or reset the group"
        )
    return progress
