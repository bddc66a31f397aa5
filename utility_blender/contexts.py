"""What is known of a request before anything is scored, and how it becomes numbers.

Shape letters: N requests, X width of an encoded context.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
MIN_COUNT = 20
"""A categorical value met less often than this when the encoder was fitted is encoded like one never met: all zeros."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contexts:
    """The raw contexts of N requests."""

    scenario: Sequence[str]
    """Listed scenario of each request."""
    columns: Mapping[str, Sequence[Any]]
    """Feature by its full name (`user.age_band`, `context.device`) -> one value per request, None where missing; a
    list of values where a feature has many."""

    def __len__(self) -> int:
        """Returns N."""
        return len(self.scenario)

    def take(self, rows: Sequence[int] | NDArray[np.int64]) -> "Contexts":
        """Returns some of the requests, in the given order."""
        chosen = [int(row) for row in rows]
        return Contexts(
            scenario=[self.scenario[row] for row in chosen],
            columns={name: [column[row] for row in chosen] for name, column in self.columns.items()},
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextEncoder:
    """Contexts to numbers: one column per scenario and per known value, standardised numbers; nothing is ever refused.

    What it was not fitted on (a new value, a missing feature) is encoded as zeros, so a policy falls back to what it
    says of the average.

    >>> encoder = ContextEncoder(scenarios=("home",), values={"context.mood": ("buy", "look")}, numbers={})
    >>> encoder.encode(Contexts(scenario=["home", "home"], columns={"context.mood": ["look", None]}))
    array([[1., 0., 1.],
           [1., 0., 0.]])
    """

    scenarios: tuple[str, ...]
    values: Mapping[str, tuple[str, ...]]
    """Categorical feature -> its values with a column each."""
    numbers: Mapping[str, tuple[float, float]]
    """Numeric feature -> mean and standard deviation."""

    @property
    def width(self) -> int:
        """X."""
        return len(self.scenarios) + sum(map(len, self.values.values())) + len(self.numbers)

    def encode(self, contexts: Contexts) -> Floats:
        """Returns x_NX."""
        num = len(contexts)
        x_NX = np.zeros((num, self.width))
        _mark(x_NX, 0, self.scenarios, contexts.scenario)
        start = len(self.scenarios)
        for name, values in self.values.items():
            _mark(x_NX, start, values, contexts.columns.get(name, ()))
            start += len(values)
        for name, (mean, sd) in self.numbers.items():
            for row, value in enumerate(contexts.columns.get(name, ())):
                if isinstance(value, int | float) and math.isfinite(value):
                    x_NX[row, start] = min(max((value - mean) / sd, -5.0), 5.0)
            start += 1
        return x_NX

    def as_dict(self) -> dict[str, Any]:
        """Returns plain data, for JSON."""
        return asdict(self)

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> "ContextEncoder":
        """Returns the encoder of plain data.

        Raises:
            KeyError, TypeError, ValueError: it is not an encoder's.
        """
        return ContextEncoder(
            scenarios=tuple(map(str, data["scenarios"])),
            values={str(name): tuple(map(str, values)) for name, values in data["values"].items()},
            numbers={str(name): (float(mean), float(sd)) for name, (mean, sd) in data["numbers"].items()},
        )


def fit_encoder(contexts: Contexts, *, numeric: Sequence[str] = ()) -> ContextEncoder:
    """Returns an encoder for contexts like these: all their columns, numbers for the names in `numeric`."""
    values: dict[str, tuple[str, ...]] = {}
    numbers: dict[str, tuple[float, float]] = {}
    for name, column in sorted(contexts.columns.items()):
        present = [value for value in column if value is not None]
        if name in numeric:
            finite = [float(value) for value in present if math.isfinite(value)]
            sd = float(np.std(finite)) if finite else 0.0
            numbers[name] = (float(np.mean(finite)) if finite else 0.0, sd if sd > 0 else 1.0)
        else:
            counts = Counter(name for value in present for name in _names(value))
            values[name] = tuple(sorted(value for value, count in counts.items() if count >= MIN_COUNT))
    return ContextEncoder(scenarios=tuple(sorted(set(contexts.scenario))), values=values, numbers=numbers)


def _mark(x_NX: Floats, start: int, values: Sequence[str], column: Sequence[Any]) -> None:
    place = {value: start + index for index, value in enumerate(values)}
    for row, value in enumerate(column):
        for name in _names(value):
            if name in place:
                x_NX[row, place[name]] = 1.0


def _names(value: Any) -> set[str]:
    """Returns the categories of one value as the log writes them: 3 and "3" are one, and a list has several."""
    if value is None:
        return set()
    return set(map(str, value)) if isinstance(value, list | tuple) else {str(value)}
