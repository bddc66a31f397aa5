"""What one unit of work costs, each figure with where it was measured or why it is assumed: `per_core.json`.

The file is written by `python -m benchmarks.per_core` from the results of the benchmarks; nobody edits it.
"""

from collections.abc import Iterable, Mapping
from importlib.resources import files
from typing import Literal

import msgspec

Kind = Literal["measured", "assumed"]


class Cost(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One figure that a plan rests on."""

    value: float
    unit: str
    kind: Kind
    """`measured`: by the command, on one machine of two cores; `assumed`: for the reason that `source` gives."""
    source: str
    """The entry of the results, the document, or the reason."""
    command: str = ""
    """What measures it; empty where it is assumed."""

    def __post_init__(self) -> None:
        if not self.source.strip() or (self.kind == "measured") != bool(self.command.strip()):
            raise ValueError(f"source: {self.source!r} is not allowed; where it is from, and measured ones the command")


class Costs:
    """All figures by name.

    >>> Costs({"joiner.event": Cost(value=7.0, unit="CPU us", kind="assumed", source="a guess")})["joiner.event"]
    7.0
    """

    def __init__(self, by_name: Mapping[str, Cost]) -> None:
        self._by_name = dict(by_name)

    def __getitem__(self, name: str) -> float:
        return self._by_name[name].value

    def about(self, name: str) -> Cost:
        """Returns the figure with its unit and source."""
        return self._by_name[name]

    def names(self) -> list[str]:
        """Returns all names."""
        return list(self._by_name)

    def are_measured(self, names: Iterable[str]) -> bool:
        """Tells whether none of these is assumed."""
        return all(self._by_name[name].kind == "measured" for name in names)


def decode_costs(text: bytes) -> Costs:
    """Returns the figures of a file of them.

    Raises:
        ValueError: not such a file, or a figure without a source.
    """
    try:
        return Costs(msgspec.json.decode(text, type=dict[str, Cost]))
    except msgspec.DecodeError as error:
        raise ValueError(f"per_core.json: {error}") from error


def packaged_costs() -> Costs:
    """Returns the figures that this release was measured with."""
    return decode_costs((files("freshrank") / "per_core.json").read_bytes())
