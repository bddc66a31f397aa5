"""What the labels must be, from the complete log, whatever its order of arrival; and what is wrong with rows."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from benchmarks.peers.events import END, WINDOW_MS, Event


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """How many items got the right label once, and what became of the others: each is in one class."""

    expected: int
    """Items shown: one row each."""
    lost: int
    """Items without a row."""
    double: int
    """Items with several rows, all with the right label."""
    contradictory: int
    """Items with rows of both labels."""
    wrong: int
    """Items with the wrong label only, and rows of items that were never shown."""

    @property
    def rows_wrong(self) -> int:
        """The four together."""
        return self.lost + self.double + self.contradictory + self.wrong


def truth(events: Iterable[Event]) -> dict[str, int]:
    """Returns the label of each item shown, by key: 1 if any feedback is dated in the window, both ends included."""
    seen = list(events)
    shown = {event.key: event.ts for event in seen if event.kind == "impression"}
    label = dict.fromkeys(shown, 0)
    for event in seen:
        if event.kind == "feedback" and event.key in shown:
            if 0 <= event.ts - shown[event.key] <= WINDOW_MS:
                label[event.key] = 1
    return label


def score(rows: Iterable[tuple[str, int]], expected: Mapping[str, int]) -> Score:
    """Returns what is wrong with the rows (key, label); the rows of the event that ends a log are left out."""
    labels: dict[str, list[int]] = {key: [] for key in expected}
    num_unknown = 0
    for key, label in rows:
        if key in labels:
            labels[key].append(label)
        elif key != END:
            num_unknown += 1
    lost = double = contradictory = wrong = 0
    for key, found in labels.items():
        if not found:
            lost += 1
        elif len(set(found)) > 1:
            contradictory += 1
        elif found[0] != expected[key]:
            wrong += 1
        elif len(found) > 1:
            double += 1
    return Score(
        expected=len(expected), lost=lost, double=double, contradictory=contradictory, wrong=wrong + num_unknown
    )
