"""MovieLens-1M (GroupLens) as labelled rows in the order of time: one rating is one request with one item.

Source: RecBole's atomic files `ml-1m.inter`, `ml-1m.item`, `ml-1m.user`, in a folder or inside a wheel or zip file that
has them. What becomes what, after M3oE (SIGIR 2024):

- *Scenario*: three age domains, `young` (groups 1 and 18), `adult` (25) and `mature` (35 and older).
- *Tasks*: thresholds of the rating: `click` above 3, `like` above 4, `dislike` below 3. Of these click and like are
  M3oE's, one inside the other; dislike is ours. Every label is known, so every cell is trained and judged.
- *Order*: by time stamp, equal ones as in the file.
- *Features*: gender, age group, occupation and the first three characters of the zip code of the user; genres and year
  of the film. The history is the user's last films rated above 3, newest first, with the action `like` above 4 and
  `click` otherwise, only those of an earlier second: no look-ahead.
"""

import zipfile
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import ExitStack
from io import TextIOWrapper
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np
import numpy.typing as npt

from freshrank.table_row import TableRow
from model.features import RowColumns, SequenceColumns
from stream.schema import SchemaConfig

SCENARIOS = ("young", "adult", "mature")
TASKS = {"click": lambda rating: rating > 3, "like": lambda rating: rating > 4, "dislike": lambda rating: rating < 3}
"""What of a rating each task predicts."""
FILES = ("ml-1m.inter", "ml-1m.item", "ml-1m.user")
HISTORY_LENGTH = 50
_COLUMNS = {
    "ml-1m.inter": ("user_id", "item_id", "rating", "timestamp"),
    "ml-1m.item": ("item_id", "release_year", "genre"),
    "ml-1m.user": ("user_id", "age", "gender", "occupation", "zip_code"),
}


class LabelledRows(NamedTuple):
    """Raw columns of B rows and their labels, tasks in the schema's order."""

    columns: RowColumns
    label_BT: npt.NDArray[np.float32]


class _Rating(NamedTuple):
    timestamp: float
    user_id: str
    item_id: str
    rating: float


def read_ml_1m(path: Path, schema: SchemaConfig, *, chunk_rows: int = 4096) -> Iterator[LabelledRows]:
    """Yields all ratings in time order, in chunks of `chunk_rows`.

    Raises:
        ValueError: no such files, or a value in them that is not what it should be (named with its line); scenarios or
            tasks of the schema that the data set does not have.
    """
    if schema.scenarios != SCENARIOS:
        raise ValueError(f"scenarios: {list(schema.scenarios)} is not allowed; ml-1m has {', '.join(SCENARIOS)}")
    unknown = [task for task in schema.tasks if task not in TASKS]
    if unknown:
        raise ValueError(f"tasks: {unknown[0]!r} is not allowed; ml-1m has {', '.join(TASKS)}")
    users = {row["user_id"]: _user(row) for row in _rows(path, "ml-1m.user")}
    items = {row["item_id"]: _item(row) for row in _rows(path, "ml-1m.item")}
    ratings = [
        _Rating(row.number("timestamp"), _known(row, "user_id", users), row["item_id"], row.number("rating"))
        for row in _rows(path, "ml-1m.inter")
    ]
    ratings.sort(key=lambda rating: rating.timestamp)
    histories: defaultdict[str, _History] = defaultdict(_History)
    for start in range(0, len(ratings), chunk_rows):
        chunk = ratings[start : start + chunk_rows]
        seen = []
        for rating in chunk:
            history = histories[rating.user_id]
            seen.append(history.before(rating.timestamp))
            if TASKS["click"](rating.rating):
                history.add(rating)
        yield _labelled(chunk, seen, users, items, list(schema.tasks))


class _History:
    """One user's films, newest first. Times must not go back."""

    def __init__(self) -> None:
        self._known: deque[_Rating] = deque(maxlen=HISTORY_LENGTH)
        self._ahead: list[_Rating] = []

    def add(self, rating: _Rating) -> None:
        self._ahead.append(rating)

    def before(self, timestamp: float) -> list[_Rating]:
        if self._ahead and self._ahead[-1].timestamp < timestamp:
            self._known.extendleft(self._ahead)
            self._ahead.clear()
        return list(self._known)


def _labelled(
    chunk: list[_Rating],
    seen: list[list[_Rating]],
    users: dict[str, dict[str, Any]],
    items: dict[str, dict[str, Any]],
    tasks: list[str],
) -> LabelledRows:
    about = [users[rating.user_id] for rating in chunk]
    films = [items.get(rating.item_id, {"genres": [], "year": None}) for rating in chunk]
    columns = RowColumns(
        scenario=[user["scenario"] for user in about],
        user_id=[rating.user_id for rating in chunk],
        item_id=[rating.item_id for rating in chunk],
        request_index_B=np.arange(len(chunk)),
        user={name: [user[name] for user in about] for name in ("gender", "age", "occupation", "zip")},
        item={name: [film[name] for film in films] for name in ("genres", "year")},
        sequence=SequenceColumns(
            item_id=[[past.item_id for past in history] for history in seen],
            action=[["like" if TASKS["like"](past.rating) else "click" for past in history] for history in seen],
        ),
    )
    labels = [[TASKS[task](rating.rating) for task in tasks] for rating in chunk]
    return LabelledRows(columns, np.array(labels, np.float32))


def _known(row: TableRow, column: str, among: dict[str, Any]) -> str:
    if row[column] not in among:
        raise row.error(column, "in ml-1m.user")
    return row[column]


def _user(row: TableRow) -> dict[str, Any]:
    age = int(row.number("age"))
    return {
        "scenario": "young" if age < 25 else "adult" if age < 35 else "mature",
        "age": str(age),
        "gender": row["gender"],
        "occupation": row["occupation"],
        "zip": row["zip_code"][:3],
    }


def _item(row: TableRow) -> dict[str, Any]:
    return {"genres": row["genre"].split(), "year": row.number("release_year") if row["release_year"] else None}


def _rows(path: Path, name: str) -> Iterator[TableRow]:
    """Yields the rows of one atomic file: tab-separated, a head of `column:type`."""
    needed = _COLUMNS[name]
    with ExitStack() as stack:
        lines = _open(path, name, stack)
        try:
            names = [column.partition(":")[0] for column in next(lines, "").rstrip("\n").split("\t")]
            for column in needed:
                if column not in names:
                    raise ValueError(f"{path}: {name}: column {column} is missing")
            for number, line in enumerate(lines, start=2):
                cells = line.rstrip("\n").split("\t")
                if len(cells) != len(names):
                    raise ValueError(f"{path}: {name} line {number}: {len(cells)} values for {len(names)} columns")
                yield TableRow(dict(zip(names, cells, strict=True)), f"{path}: {name} line {number}")
        except (UnicodeDecodeError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path}: {name}: cannot be read: {error}") from error


def _open(path: Path, name: str, stack: ExitStack) -> TextIO:
    """Opens a file of the folder, or of the zip file, that has it."""
    if path.is_file() and zipfile.is_zipfile(path):
        packed = stack.enter_context(zipfile.ZipFile(path))
        for member in packed.namelist():
            if member.rpartition("/")[2] == name:
                return TextIOWrapper(stack.enter_context(packed.open(member)), encoding="utf-8")
    elif (path / name).is_file():
        return stack.enter_context((path / name).open(encoding="utf-8"))
    raise ValueError(f"{path}: {name} is not there; a folder, wheel or zip file with {', '.join(FILES)} is needed")
