"""What processes said when they were asked for their metrics."""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

_SAMPLE = re.compile(r"([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
_ESCAPES = {r"\\": "\\", r"\"": '"', r"\n": "\n"}

Labels = tuple[str, ...]
"""Values of a sample's labels, ordered by the labels' names."""


@dataclass(frozen=True, slots=True)
class Scrape:
    """All samples of one process at one moment."""

    samples: Mapping[tuple[str, Labels], float]

    @classmethod
    def parse(cls, text: str) -> "Scrape":
        """Returns the samples of a Prometheus text exposition.

        Read here and not by the client library, which takes four times as long: every process is read every second.

        >>> Scrape.parse('requests_total{reason="late"} 3.0').value("requests_total", "late")
        3.0
        """
        samples = {}
        for line in text.split("\n"):
            if not line or line.startswith("#"):
                continue
            found = _SAMPLE.match(line)
            if found is None:
                raise ValueError(f"not a sample: {line!r}")
            name, labels, value = found.groups()
            samples[name, _values(labels) if labels else ()] = float(value)
        return cls(samples)

    def value(self, name: str, *labels: str) -> float | None:
        """Returns one sample; None if the process does not have it or it is not a number."""
        found = self.samples.get((name, labels))
        return None if found is None or math.isnan(found) else found


def _values(labels: str) -> Labels:
    values = [value for _, value in sorted(_LABEL.findall(labels))]
    return tuple(
        re.sub(r"\\.", lambda at: _ESCAPES.get(at[0], at[0]), value) if "\\" in value else value for value in values
    )


class Figures:
    """The samples of all processes together, what was last said by each. A figure nobody has is None, never zero."""

    def __init__(self, scrapes: Iterable[Scrape] = ()) -> None:
        """Takes one scrape per process."""
        self._by_name: dict[str, list[tuple[Labels, float]]] = {}
        for scrape in scrapes:
            for (name, labels), value in scrape.samples.items():
                if not math.isnan(value):
                    self._by_name.setdefault(name, []).append((labels, value))

    def names(self, prefix: str) -> list[str]:
        """Returns the names that begin so, sorted."""
        return sorted(name for name in self._by_name if name.startswith(prefix))

    def of(self, name: str) -> list[tuple[Labels, float]]:
        """Returns every sample of a name, by labels, process by process."""
        return self._by_name.get(name, [])

    def number(self, name: str, *labels: str) -> float | None:
        """Returns a metric summed over the processes that have it."""
        found = self._values(name, labels)
        return sum(found) if found else None

    def worst(self, name: str, *labels: str) -> float | None:
        """Returns the largest value over several processes, e.g. of an age."""
        return max(self._values(name, labels), default=None)

    def least(self, name: str, *labels: str) -> float | None:
        """Returns the smallest value over several processes."""
        return min(self._values(name, labels), default=None)

    def total(self, name: str) -> float | None:
        """Returns a counter summed over its labels and over the processes that have it."""
        found = self.of(name)
        return sum(value for _, value in found) if found else None

    def _values(self, name: str, labels: Labels) -> list[float]:
        return [value for found, value in self.of(name) if found == labels]
