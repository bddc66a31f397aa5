"""A recorded log: a folder with `impressions.jsonl[.gz]` and `feedback.jsonl[.gz]`, each in arrival order.

Reading merges the two files on one clock and needs memory for the order alone, 32 bytes per event: a first pass notes
where each line is and when it happened, a second one decodes the lines in that order. Packed files are unpacked into
a temporary file in between.
"""

import gzip
import json
import mmap
import tempfile
import zlib
from array import array
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Annotated, BinaryIO, Literal, NamedTuple, Self, get_args

import msgspec
import numpy as np
from numpy.typing import NDArray

from stream.codec import MAX_TIME_MS, EventDecoder, encode
from stream.exceptions import DecodeError
from stream.schema import Feedback, Impression, SchemaConfig

ReplayOrder = Literal["ts", "arrival"]
"""`ts`: all events by event time. `arrival`: as they arrived, by `arrival_ts`; an event without one arrived at its
event time, but not before the line above it. Of equal times the impression comes first, then the line above."""
FILES = ("impressions", "feedback")


class RecordedEvent(NamedTuple):
    """One event and the clock of the merge when it came: its event time, or its arrival."""

    event: Impression | Feedback
    clock_ms: int


@dataclass(slots=True)
class RecordedCounters:
    """What became of the lines; blank ones are not counted."""

    impressions: int = 0
    feedback: int = 0
    malformed: int = 0
    """Lines that could not be decoded; they are in the dead-letter file."""

    @property
    def total(self) -> int:
        """Lines read."""
        return self.impressions + self.feedback + self.malformed


class _Times(msgspec.Struct):
    ts: Annotated[int, msgspec.Meta(ge=0, le=MAX_TIME_MS)]
    arrival_ts: Annotated[int, msgspec.Meta(ge=0, le=MAX_TIME_MS)] | None = None


class _Lines(NamedTuple):
    """The lines of one file: unpacked bytes, and per line where it starts, how long it is, its number, its time."""

    data: bytes | mmap.mmap
    start: NDArray[np.int64]
    length: NDArray[np.int64]
    number: NDArray[np.int64]
    clock_ms: NDArray[np.int64]


class RecordedLog:
    """The events of a folder, to be iterated once. Lines that cannot be decoded are counted and written down.

    Use it as a context manager: it holds the files open.

    Attributes:
        counters: what was read so far.
        dead_letter: where lines go that cannot be decoded.
        unknown_fields: how often each field that nobody knows was met, from the decoder.
    """

    def __init__(
        self, folder: Path, schema: SchemaConfig, *, order: ReplayOrder = "ts", dead_letter: Path | None = None
    ) -> None:
        """Reads the order of the events.

        `dead_letter` (default: `dead-letter.jsonl` in the folder) is written only if a line is malformed: one JSON
        object per line with file, line, error and value.

        Raises:
            ValueError: no such folder, a file missing or twice, or one that cannot be unpacked.
        """
        if order not in get_args(ReplayOrder):
            raise ValueError(f"order: {order!r} is not allowed; {' or '.join(get_args(ReplayOrder))}")
        self.counters = RecordedCounters()
        self._decoder = EventDecoder(schema)
        self.unknown_fields = self._decoder.unknown_fields
        self.dead_letter = folder / "dead-letter.jsonl" if dead_letter is None else dead_letter
        self._files = ExitStack()
        try:
            self._paths = [find_file(folder, name) for name in FILES]
            self._lines = [_scan(path, order, self._files) for path in self._paths]
        except BaseException:
            self._files.close()
            raise

    def __len__(self) -> int:
        return sum(len(lines.start) for lines in self._lines)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()

    def __iter__(self) -> Iterator[RecordedEvent]:
        clock_ms = np.concatenate([lines.clock_ms for lines in self._lines])
        num_impressions = len(self._lines[0].start)
        for place in np.argsort(clock_ms, kind="stable").tolist():
            is_impression = place < num_impressions
            kind, line = (0, place) if is_impression else (1, place - num_impressions)
            lines = self._lines[kind]
            start = int(lines.start[line])
            data = lines.data[start : start + int(lines.length[line])]
            try:
                event = self._decoder.impression(data) if is_impression else self._decoder.feedback(data)
            except DecodeError as error:
                self._bury(self._paths[kind].name, int(lines.number[line]), error, data)
                continue
            self.counters.impressions += is_impression
            self.counters.feedback += not is_impression
            yield RecordedEvent(event, int(clock_ms[place]))

    def _bury(self, file: str, line: int, error: DecodeError, data: bytes) -> None:
        is_first = self.counters.malformed == 0
        self.counters.malformed += 1
        letter = {"file": file, "line": line, "error": str(error), "value": data.decode(errors="replace")}
        with self.dead_letter.open("w" if is_first else "a", encoding="utf-8") as letters:
            letters.write(json.dumps(letter, ensure_ascii=False) + "\n")


def find_file(folder: Path, name: str) -> Path:
    """Returns `folder/name.jsonl` or `folder/name.jsonl.gz`, whichever is there.

    Raises:
        ValueError: no such folder, none of the two, or both.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; a recorded log is one with impressions.jsonl and feedback.jsonl")
    found = [path for path in (folder / f"{name}.jsonl", folder / f"{name}.jsonl.gz") if path.is_file()]
    if len(found) != 1:
        trouble = "both are there, keep one" if found else "there is none"
        raise ValueError(f"{folder}: {name}.jsonl or {name}.jsonl.gz is needed; {trouble}")
    return found[0]


class RecordedLogWriter:
    """Writes a folder that `RecordedLog` reads. The files appear under their names when the context ends well.

    The bytes depend on the events alone: the packed files hold neither a time nor a name.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._open = ExitStack()
        self._impressions: BinaryIO | gzip.GzipFile
        self._feedback: BinaryIO | gzip.GzipFile

    def __enter__(self) -> Self:
        with ExitStack() as opening:
            self._impressions, self._feedback = (
                opening.enter_context(_packed_aside(self._folder / f"{name}.jsonl.gz")) for name in FILES
            )
            self._open = opening.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.__exit__(kind, error, trace)

    def write(self, event: Impression | Feedback) -> None:
        """Appends one event, in arrival order."""
        lines = self._impressions if isinstance(event, Impression) else self._feedback
        lines.write(encode(event) + b"\n")


@contextmanager
def _packed_aside(path: Path) -> Iterator[gzip.GzipFile]:
    aside = path.with_name(path.name + ".part")
    try:
        with (
            aside.open("wb") as raw,
            gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0, compresslevel=6) as lines,
        ):
            yield lines
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    aside.replace(path)


def _scan(path: Path, order: ReplayOrder, files: ExitStack) -> _Lines:
    """Returns where the lines of a file are and when they came.

    A line without a readable time came with its predecessor; what is wrong with it the decoder will say.
    """
    start, length, number, clock_ms = array("q"), array("q"), array("q"), array("q")
    decoder = msgspec.json.Decoder(_Times)
    offset, newest_ms = 0, 0
    plain = files.enter_context(path.open("rb") if path.suffix == ".jsonl" else tempfile.TemporaryFile())
    with ExitStack() as unpacking:
        source = plain if path.suffix == ".jsonl" else unpacking.enter_context(gzip.open(path))
        try:
            for index, line in enumerate(source, start=1):
                if source is not plain:
                    plain.write(line)
                offset += len(line)
                if not line.strip():
                    continue
                try:
                    times = decoder.decode(line)
                except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                    line_ms = newest_ms
                else:
                    line_ms = times.ts if order == "ts" or times.arrival_ts is None else times.arrival_ts
                newest_ms = line_ms if order == "ts" else max(newest_ms, line_ms)
                for column, value in (
                    (start, offset - len(line)), (length, len(line)), (number, index), (clock_ms, newest_ms),
                ):  # fmt: skip
                    column.append(value)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(f"{path}: cannot be unpacked: {error}") from error
    plain.flush()
    data = files.enter_context(mmap.mmap(plain.fileno(), 0, access=mmap.ACCESS_READ)) if offset else b""
    columns = (np.frombuffer(column, dtype=np.int64) for column in (start, length, number, clock_ms))
    return _Lines(data, *columns)
