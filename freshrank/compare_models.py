"""The networks of a comparison: all on the same embeddings, each scaled to the same number of dense parameters."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from freshrank.compare_data import CompareBatch
from freshrank.peers import PEERS, peer_of
from freshrank.settings_file import put_override
from freshrank.strict import ConfigError, build
from model.architectures import NETWORKS, Architecture
from model.config import ModelConfig
from model.features import FeatureEncoder
from model.learner import Learner
from stream.schema import SchemaConfig

TOLERANCE = 0.1
"""By how much of the budget a network's dense parameters may differ from it."""
WIDTHS = ("hidden", "width", "embedding")
"""How the settings of a network end that are widths; so is every tuple of whole numbers (the layers of a tower)."""
_STEPS, _STEP = 400, 1.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Sized:
    """A model configuration, what its network was scaled by, and how many dense parameters that gives."""

    config: ModelConfig
    scale: float
    num_parameters: int


class NetworkModel:
    """A network in training as `freshrank.peers.OnlineModel`."""

    def __init__(self, schema: SchemaConfig, config: ModelConfig, seed: int) -> None:
        self._learner = Learner(schema, config, seed)
        self.num_weights: int | None = sum(one.numel() for one in self._learner.trained.parameters.values())
        self.num_skipped = 0
        """Steps that were not made because something was not finite."""

    def prepare(self, batch: CompareBatch) -> CompareBatch:
        """Returns the batch: it is encoded already."""
        return batch

    def score(self, prepared: CompareBatch) -> npt.NDArray[np.float32]:
        """Returns the logits, [B, T]."""
        return self._learner.score(prepared.encoded)

    def score_then_learn(self, prepared: CompareBatch) -> npt.NDArray[np.float32]:
        """Returns the pre-step logits, [B, T]."""
        report = self._learner.learn(prepared.encoded, prepared.labels)
        self.num_skipped += report.skipped is not None
        return report.logits_BT


def equal_inputs(config: ModelConfig) -> ModelConfig:
    """Returns the configuration with the scenario among the fields: a network without scenario parts needs it there."""
    return replace(config, encoding=replace(config.encoding, scenario=True))


def check_name(name: str) -> None:
    """Makes sure that there is such a model, before a source is read.

    Raises:
        ValueError: no such architecture, peer or setting; the peer is not installed.
    """
    if peer_of(name) is None:
        _parsed(name)


def sized(name: str, base: ModelConfig, schema: SchemaConfig, budget: int | None = None) -> Sized:
    """Returns the configuration of a model, its widths scaled to `budget` dense parameters; None: as it is.

    `name` is an architecture, and may go on with settings of its section: `hinet:san=none`. HiNet starts from the
    widths of `base`, every other architecture from its own small preset.

    Raises:
        ValueError: no such architecture or setting; no width brings it within `TOLERANCE` of the budget.
    """
    architecture, settings = _parsed(name)
    is_base = architecture == base.architecture
    network: Any = replace(base.network if is_base else NETWORKS[architecture].config(), **settings)
    count = _Counter(base, schema, architecture)
    if budget is None:
        return Sized(config=count.config(network), scale=1.0, num_parameters=count(network))
    found = _nearest(count, network, budget)
    if found is None:
        count(network)  # says what no width can mend, if that is why
    if found is None or abs(found.num_parameters - budget) > TOLERANCE * budget:
        nearest = "none is allowed" if found is None else f"the nearest has {found.num_parameters:,}"
        raise ValueError(f"models: {name} cannot be scaled to {budget:,} dense parameters; {nearest}")
    return found


class _Counter:
    """Counts the parameters of networks that differ in their configuration alone."""

    def __init__(self, base: ModelConfig, schema: SchemaConfig, architecture: Architecture) -> None:
        self._base, self._architecture = base, architecture
        self._shape = base.input_layout(FeatureEncoder(schema, base.encoding).fields).network_shape(schema)

    def config(self, network: Any) -> ModelConfig:
        sections: dict[str, Any] = {name: network if name == self._architecture else None for name in NETWORKS}
        return replace(self._base, architecture=self._architecture, preset="custom", **sections)

    def __call__(self, network: Any) -> int:
        net = self.config(network).build_network(self._shape, seed=None)
        return sum(parameter.numel() for parameter in net.parameters())


def _nearest(count: _Counter, network: Any, budget: int) -> Sized | None:
    """Bisects on the scale and returns the nearest of those looked at; scales that the network refuses are passed."""
    best: Sized | None = None
    low, high = -_STEPS // 2, _STEPS // 2
    while low < high:
        middle = (low + high) // 2
        looked_at = _first_allowed(count, network, range(middle, high))
        if looked_at is None:
            high = middle
            continue
        place, found = looked_at
        if best is None or abs(found.num_parameters - budget) < abs(best.num_parameters - budget):
            best = found
        low, high = (place + 1, high) if found.num_parameters < budget else (low, middle)
    return best


def _first_allowed(count: _Counter, network: Any, places: Sequence[int]) -> tuple[int, Sized] | None:
    for place in places:
        scale = _STEP**place
        try:
            config = scaled(network, scale)
            number = count(config)
        except ValueError:  # a width that does not go with another, as with the heads of an attention
            continue
        return place, Sized(config=count.config(config), scale=round(scale, 3), num_parameters=number)
    return None


def scaled(network: Any, scale: float) -> Any:
    """Returns a network's configuration with its widths scaled; counts, rates and switches stay.

    >>> from model.hinet import HiNetConfig
    >>> half = scaled(HiNetConfig(tower=(32, 16)), 0.5)
    >>> half.expert_hidden, half.tower, half.num_shared_experts
    (64, (16, 8), 2)

    Raises:
        ValueError: the configuration does not allow the widths.
    """

    def value_of(name: str, value: Any) -> Any:
        if is_dataclass(value) and not isinstance(value, type):
            return scaled(value, scale)
        if isinstance(value, tuple) and all(isinstance(width, int) for width in value):
            return tuple(max(1, round(width * scale)) for width in value)
        is_width = isinstance(value, int) and name.rpartition("_")[2] in WIDTHS
        return max(1, round(value * scale)) if is_width else value

    return replace(network, **{one.name: value_of(one.name, getattr(network, one.name)) for one in fields(network)})


def _parsed(name: str) -> tuple[Architecture, dict[str, Any]]:
    """Returns the architecture that a name begins with, and the settings that follow."""
    given, *overrides = name.split(":")
    architecture = next((one for one in NETWORKS if one == given), None)
    if architecture is None:
        raise ValueError(f"models: {given!r} is not allowed; {', '.join([*NETWORKS, *PEERS])}")
    settings: dict[str, Any] = {}
    try:
        for override in overrides:
            put_override(settings, override)
        changed = build(NETWORKS[architecture].config, settings, f"models: {name}")
    except ConfigError as error:
        raise ValueError(str(error)) from error
    return architecture, {key: getattr(changed, key) for key in settings}
