"""RankLens (metarank; CC-BY-SA 4.0) as a recorded log: 9,800 slates of 24 films shown to 2,145 people.

Source: a folder with `impressions.csv.gz`, `items.csv.gz` and `scenarios.csv.gz`. What becomes what:

- *Scenario*: the 98 listings are too many for a network with experts per scenario, each with 100 slates. They are lists
  of films that share one tag, so they go by what sort of tag it is: `genre` (comedy, horror), `style` (atmospheric,
  cult film) or `theme` (revenge, time travel). The listing itself is the context feature `listing`.
- *Clock*: the source's, which is only an order; it stamps each click five seconds after its slate. Slates of the same
  second keep the source's order.
- *Propensity*: `p_item_in_slate`, exact, because slates were drawn at random from their listing.
- *What serving would have known*: the person's clicks before the slate are its `sequence`; `past_slates` and
  `clicks_per_slate` count slates whose clicks had all come by then. No look-ahead.
"""

import csv
import gzip
import itertools
import zlib
from collections import defaultdict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from heapq import heappop, heappush
from pathlib import Path
from typing import Any

from freshrank.table_row import TableRow
from stream.recorded import RecordedLogWriter
from stream.schema import Feedback, Impression, Items, Sequence

SCENARIOS = ("genre", "style", "theme")
GENRES = frozenset(
    (
        "action", "adventure", "animation", "anime", "biography", "black comedy", "comedy", "crime", "dark comedy",
        "drama", "family", "fantasy", "horror", "martial arts", "musical", "mystery", "parody", "romance",
        "romantic comedy", "satire", "sci-fi", "spoof", "sports", "superhero", "thriller", "war",
    )
)  # fmt: skip
STYLES = frozenset(
    (
        "atmospheric", "bad acting", "betamax", "cheesy", "cinematography", "classic", "criterion", "cult film", "dark",
        "disney", "disturbing", "franchise", "funny", "humorous", "independent film", "nudity (full frontal)",
        "nudity (topless)", "remake", "scarlett johansson", "sequel", "stylized", "surreal", "suspense", "tense",
        "twist ending", "violence", "visually appealing",
    )
)  # fmt: skip
CLICK_DELAY_MS = 5_000
MAX_TAGS = 10
MAX_ACTORS = 3
HISTORY_LENGTH = 100
_NUMBERS = ("popularity", "vote_avg", "vote_cnt", "runtime")
_LISTS = ("genres", "tags", "actors")
_FEATURES = (*_LISTS, "director", "year", "budget", *_NUMBERS)
_NEEDED = {
    "impressions.csv.gz": {
        "ts_ms", "slate_id", "user_id", "scenario_id", "position", "item_id", "click", "p_item_in_slate",
    },
    "items.csv.gz": {"item_id", "genres", "tags", "director", "actors", "release_ts", "budget", *_NUMBERS},
    "scenarios.csv.gz": {"scenario_id", "inferred_tag"},
}  # fmt: skip


@dataclass(slots=True)
class ConvertSummary:
    """What was written."""

    impressions: int = 0
    items: int = 0
    """Impression rows: items over all slates."""
    feedback: int = 0
    users: int = 0
    scenarios: dict[str, int] = field(default_factory=dict)
    """Slates by scenario."""


def convert_ranklens(source: Path, folder: Path) -> ConvertSummary:
    """Writes the recorded log of `source` into `folder`; the same source gives the same bytes.

    Raises:
        ValueError: a file or a column is missing, or a value is not what it should be; names file and line.
    """
    features = {row["item_id"]: _item_features(row) for row in _rows(source / "items.csv.gz")}
    scenario_of = {
        row["scenario_id"]: scenario_of_tag(row["inferred_tag"]) for row in _rows(source / "scenarios.csv.gz")
    }
    summary = ConvertSummary(scenarios=dict.fromkeys(SCENARIOS, 0))
    people: defaultdict[str, _Person] = defaultdict(_Person)
    clicks: list[tuple[int, int, Feedback]] = []
    with RecordedLogWriter(folder) as log:
        for slate_id, group in itertools.groupby(_rows(source / "impressions.csv.gz"), key=lambda row: row["slate_id"]):
            rows = sorted(group, key=lambda row: row.number("position"))
            first = rows[0]
            if first["scenario_id"] not in scenario_of:
                raise first.error("scenario_id", "one of scenarios.csv.gz")
            ts = int(first.number("ts_ms"))
            while clicks and clicks[0][0] <= ts:
                log.write(heappop(clicks)[2])
            person = people[first["user_id"]]
            impression = Impression(
                request_id=f"s{slate_id}",
                user_id=f"u{first['user_id']}",
                scenario=scenario_of[first["scenario_id"]],
                ts=ts,
                items=Items(
                    id=[row["item_id"] for row in rows],
                    features=_columns([features.get(row["item_id"], {}) for row in rows]),
                    propensity=[row.number("p_item_in_slate") for row in rows],
                ),
                context={"listing": first["scenario_id"]},
                user=person.features(ts),
                sequence=person.sequence(ts),
            )
            log.write(impression)
            clicked = [row["item_id"] for row in rows if row["click"] == "1"]
            person.saw(ts + CLICK_DELAY_MS, clicked)
            for item_id in clicked:
                click = Feedback(
                    request_id=impression.request_id,
                    user_id=impression.user_id,
                    item_id=item_id,
                    action="click",
                    ts=ts + CLICK_DELAY_MS,
                    event_id=f"{impression.request_id}:{item_id}",
                )
                summary.feedback += 1
                heappush(clicks, (click.ts, summary.feedback, click))
            summary.impressions += 1
            summary.items += len(rows)
            summary.scenarios[impression.scenario] += 1
        while clicks:
            log.write(heappop(clicks)[2])
    summary.users = len(people)
    return summary


def scenario_of_tag(tag: str) -> str:
    """Returns the scenario of the listing of films with this tag.

    >>> [scenario_of_tag(tag) for tag in ("horror", "cult film", "time travel")]
    ['genre', 'style', 'theme']
    """
    return "genre" if tag in GENRES else "style" if tag in STYLES else "theme"


class _Person:
    """What is known of one person at a moment. Times asked for must not go back."""

    def __init__(self) -> None:
        self._ahead: deque[tuple[int, list[str]]] = deque()
        self._clicks: deque[tuple[str, int]] = deque(maxlen=HISTORY_LENGTH)
        self._num_slates = 0
        self._num_clicks = 0

    def saw(self, done_ms: int, clicked: list[str]) -> None:
        """Takes a slate whose clicks will have come at `done_ms`."""
        self._ahead.append((done_ms, clicked))

    def features(self, now_ms: int) -> dict[str, Any]:
        """Returns the user features."""
        self._move_to(now_ms)
        per_slate = self._num_clicks / self._num_slates if self._num_slates else None
        return {"past_slates": float(self._num_slates), "clicks_per_slate": per_slate}

    def sequence(self, now_ms: int) -> Sequence:
        """Returns the last clicks, newest first."""
        self._move_to(now_ms)
        return Sequence(
            item_id=[item_id for item_id, _ in self._clicks],
            action=["click"] * len(self._clicks),
            ts=[ts for _, ts in self._clicks],
        )

    def _move_to(self, now_ms: int) -> None:
        while self._ahead and self._ahead[0][0] < now_ms:
            done_ms, clicked = self._ahead.popleft()
            self._num_slates += 1
            self._num_clicks += len(clicked)
            self._clicks.extendleft((item_id, done_ms) for item_id in clicked)


def _item_features(row: TableRow) -> dict[str, Any]:
    budget = row.number("budget")
    return {
        "genres": _split(row["genres"]),
        "tags": _split(row["tags"])[:MAX_TAGS],
        "director": row["director"] or None,
        "actors": _split(row["actors"])[:MAX_ACTORS],
        "year": float(datetime.fromtimestamp(row.number("release_ts"), UTC).year),
        "budget": budget if budget > 0 else None,
        **{name: row.number(name) for name in _NUMBERS},
    }


def _columns(features: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """Returns item features as columns; a film that the source does not describe has none."""
    absent: dict[str, list[str] | None] = {name: [] if name in _LISTS else None for name in _FEATURES}
    return {name: [row.get(name, absent[name]) for row in features] for name in _FEATURES}


def _split(text: str) -> list[str]:
    return [part for part in text.split("|") if part]


def _rows(path: Path) -> Iterator[TableRow]:
    """Yields the rows of a packed CSV file by column name.

    Raises:
        ValueError: no such file, a column is missing, or the file is damaged.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file; {', '.join(_NEEDED)} are needed")
    with gzip.open(path, "rt", encoding="utf-8", newline="") as text:
        try:
            reader = csv.DictReader(text)
            missing = sorted(_NEEDED[path.name] - set(reader.fieldnames or ()))
            if missing:
                raise ValueError(f"{path}: column {', '.join(missing)} is missing")
            for row in reader:
                yield TableRow(row, f"{path} line {reader.line_num}")
        except (EOFError, gzip.BadGzipFile, zlib.error, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: cannot be read: {error}") from error
