"""How a model takes in scenarios that are not listed, while it learns and serves.

A name is counted while its rows are learned as the default scenario's. At `scenario_admission` examples the network
gets a scenario that is a copy of the default one, and from then on it learns from its own rows alone. At that moment no
score changes, neither of the old scenarios nor of the new one: the others see nothing of the new scenario. They begin
to after `open_from_rows` of its examples and do in full after `open_full_rows`, linearly in between.

All of it is a function of the examples learned so far, so that replay and resume give the same bits.

Letters: M scenarios.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from model.hashing import Int64Array
from model.network import Network
from model.scenario_registry import ScenarioRegistry
from stream.schema import SchemaConfig

MAX_COUNTED_NAMES = 256
"""Names that are counted at a time; one whose share of the examples of all unknown names is larger than one in so many
is counted whatever else comes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GrowthConfig:
    """When scenarios that are not listed become part of the model; with `unknown_scenario: add` only."""

    scenario_admission: int = 1_000
    """Examples of a name, learned as the default scenario's, before the model gets a part of its own for it; at least
    1."""
    open_from_rows: int = 20_000
    """Examples of an added scenario after which the other scenarios begin to see its features; at least 0."""
    open_full_rows: int = 100_000
    """Examples of an added scenario after which they see them in full; more than `open_from_rows`."""
    max_scenarios: int = 64
    """Scenarios of the model, the listed ones included; names beyond stay with the default one; at least 1."""

    def __post_init__(self) -> None:
        for name, least in (("scenario_admission", 1), ("open_from_rows", 0), ("max_scenarios", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: {getattr(self, name)} is not allowed; at least {least}")
        if self.open_full_rows <= self.open_from_rows:
            raise ValueError(
                f"open_full_rows: {self.open_full_rows} is not allowed; more than open_from_rows, {self.open_from_rows}"
            )

    def share(self, num_rows: int) -> float:
        """Returns how far an added scenario is open after so many of its examples, from 0 to 1."""
        opened = (num_rows - self.open_from_rows) / (self.open_full_rows - self.open_from_rows)
        return min(max(opened, 0.0), 1.0)


class NameCounts:
    """Examples of names, in bounded memory (Misra and Gries, 1982): never too many, and of rare names too few.

    A new name that finds no room takes as much from every count as it brings; what is at zero makes room.
    """

    def __init__(self, most: int = MAX_COUNTED_NAMES) -> None:
        self._most = most
        self.of: dict[str, int] = {}

    def add(self, name: str, num: int) -> int:
        """Counts some examples. Returns how many the name has now."""
        if name not in self.of and len(self.of) >= self._most:
            paid = min(num, *self.of.values())
            self.of = {other: count - paid for other, count in self.of.items() if count > paid}
            num -= paid
        if num:
            self.of[name] = self.of.get(name, 0) + num
        return self.of.get(name, 0)


class ScenarioGrowth:
    """How far a model's growth is: its scenarios, what is counted of other names, and how far new ones are open."""

    def __init__(self, schema: SchemaConfig, config: GrowthConfig) -> None:
        self._schema = schema
        self._config = config
        self.registry = ScenarioRegistry.of(schema)
        self._counts = NameCounts()
        self._rows: dict[str, int] = {}

    def count(self, examples: Mapping[str, int]) -> list[str]:
        """Takes note of learned examples of names that have no part of their own. Returns the names to be added now."""
        num_free = self._config.max_scenarios - len(self.registry.names)
        if num_free <= 0:
            return []
        totals = {n: self._counts.add(n, num) for n, num in examples.items() if n not in self.registry.names}
        return [name for name, total in totals.items() if total >= self._config.scenario_admission][:num_free]

    def add(self, name: str) -> None:
        """Takes a name into the registry, closed to the others."""
        self.registry = self.registry.with_added(name)
        self._counts.of.pop(name, None)
        self._rows[name] = 0

    def opened(self, num_rows_M: Int64Array) -> Iterator[tuple[int, float]]:
        """Takes note of learned rows. Yields index and share of each added scenario that is open further now."""
        for name in self.registry.added:
            index = self.registry.index(name)
            before, self._rows[name] = self._rows[name], self._rows[name] + int(num_rows_M[index])
            if self._config.share(self._rows[name]) != self._config.share(before):
                yield index, self._config.share(self._rows[name])

    def shares(self) -> Iterator[tuple[int, float]]:
        """Yields index and share of each added scenario."""
        for name in self.registry.added:
            yield self.registry.index(name), self._config.share(self._rows[name])

    def state(self) -> dict[str, Any]:
        """Returns everything for a bit-exact resume, as JSON values."""
        return {
            "names": list(self.registry.names),
            "parents": dict(self.registry.parents),
            "rows": dict(self._rows),
            "counts": dict(self._counts.of),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Goes on from what `state` returned.

        Raises:
            ValueError: its scenarios are not those of this schema and others after them.
        """
        self.registry = ScenarioRegistry.restored(self._schema, state["names"], state["parents"])
        self._rows = dict(state["rows"])
        self._counts.of = dict(state["counts"])


def check_growth(net: Network, schema: SchemaConfig, config: GrowthConfig) -> None:
    """Refuses what could not grow when the time has come; nothing changes.

    Raises:
        ValueError: the network cannot grow under this configuration, or there is no room for any.
    """
    if schema.unknown_scenario != "add":
        return
    if config.max_scenarios <= len(schema.scenarios):
        raise ValueError(
            f"growth.max_scenarios: {config.max_scenarios} is not allowed with unknown_scenario: add and"
            f" {len(schema.scenarios)} listed scenarios; more than those"
        )
    if net.cannot_grow is not None:
        raise ValueError(f"{net.cannot_grow} (unknown_scenario: add)")


def grow(net: Network, registry: ScenarioRegistry) -> None:
    """Adds to a network of the listed scenarios those that were added to `registry`; their values are to be loaded."""
    for name in registry.names[net.num_scenarios :]:
        net.add_scenario(registry.index(registry.parents[name]))


def take_moments(adam: torch.optim.Adam, net: Network, before: Mapping[str, nn.Parameter], donor: int) -> None:
    """Gives the newest scenario of a network its place in the optimiser; `before` are the parameters without it.

    Its second moments and step counts are the donor's, its first moments zero: no update of it is larger than the
    donor's of the same gradients. (Second moments of zero under an old step count would make Adam overshoot.)
    """
    index = net.num_scenarios - 1
    rows = net.row_parameters()
    state = dict(adam.state)
    adam.param_groups[0]["params"] = list(net.parameters())
    for name, parameter in net.named_parameters():
        donor_name = _donor_name(name, before, index, donor) if name not in before else name
        moments = state.get(before[donor_name])
        if moments is None:
            continue
        if name not in before:
            adam.state[parameter] = _started(moments)
        elif name in rows:
            adam.state.pop(before[name])
            adam.state[parameter] = _with_row(moments, len(parameter), index, donor)


def _donor_name(name: str, before: Collection[str], index: int, donor: int) -> str:
    """Returns which parameter one of scenario `index` is a copy of: the same name with the donor's number.

    >>> _donor_name("towers.2.weights.2", ["towers.0.weights.2", "towers.1.weights.2"], index=2, donor=0)
    'towers.0.weights.2'
    """
    parts = name.split(".")
    places = [place for place, part in enumerate(parts) if part == str(index)]
    names = [".".join([*parts[:place], str(donor), *parts[place + 1 :]]) for place in places]
    return next(other for other in names if other in before)


def _started(moments: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.zeros_like(tensor) if name == "exp_avg" else tensor.clone() for name, tensor in moments.items()}


def _with_row(moments: Mapping[str, Tensor], num_rows: int, index: int, donor: int) -> dict[str, Tensor]:
    """Returns the moments of a parameter with a row per scenario after one was added, and maybe room for more."""
    grown = {"step": moments["step"]}
    for name in ("exp_avg", "exp_avg_sq"):
        old = moments[name]
        grown[name] = torch.cat([old, old.new_zeros(num_rows - len(old), *old.shape[1:])])
        grown[name][index] = 0.0 if name == "exp_avg" else old[donor]
    return grown
