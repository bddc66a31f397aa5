"""What a search varies: settings of the section `model` by their path, each over a list of values or a range.

PATH=VALUE,VALUE,... gives some values (`hinet.tower=[32],[64,32]`: they may be lists), PATH=LOW..HIGH any number
between two on a logarithmic scale (`optim.dense_lr=0.0003..0.01`).
"""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any, NamedTuple, cast

import msgspec

from freshrank.settings_file import parse_yaml, put
from freshrank.strict import ConfigError, build
from model.architectures import NETWORKS
from model.config import ModelConfig

_RANGE = re.compile(r"^\s*([-+.\deE]+?)\s*\.\.\s*([-+.\deE]+)\s*$")
_FACTORS = (0.5, 1, 2)
_RATE_FACTORS = (0.3, 1, 3)


class Choices(NamedTuple):
    """Some values, each as JSON text: the form in which they are stored and compared."""

    values: tuple[str, ...]


class Range(NamedTuple):
    """All numbers between two positive ones, on a logarithmic scale; whole numbers only if both ends are."""

    low: float
    high: float

    @property
    def is_whole(self) -> bool:
        """Whether the setting is an integer."""
        return isinstance(self.low, int) and isinstance(self.high, int)


Space = dict[str, Choices | Range]
"""By path inside the section `model`."""
Point = Mapping[str, str]
"""By path the value of a setting, as JSON text."""


def parse_space(given: Sequence[str]) -> Space:
    """Returns the space of some `PATH=VALUES` texts.

    Raises:
        ConfigError: no path, no value, a value or path given twice, a range that is none.
    """
    space: Space = {}
    for text in given:
        path, equals, values = text.removeprefix("model.").partition("=")
        if not equals or not all(path.split(".")):
            raise ConfigError(f"--vary {text}: must be PATH=VALUE,VALUE,... or PATH=LOW..HIGH")
        if path in space:
            raise ConfigError(f"--vary {path}: given twice")
        if path.split(".")[0] in ("encoding", "architecture", "preset"):
            raise ConfigError(f"--vary {path}: is not allowed; all trials share one encoding and one architecture")
        found = _RANGE.match(values)
        space[path] = _range(path, found[1], found[2]) if found else _choices(path, values)
    return space


def _range(path: str, *ends: str) -> Range:
    low, high = parse_yaml(f"values: [{', '.join(ends)}]")["values"]
    if not all(isinstance(end, int | float) and math.isfinite(end) for end in (low, high)) or not 0 < low < high:
        raise ConfigError(f"--vary {path}: {'..'.join(ends)} is not allowed; two numbers above 0, the lower first")
    return Range(low, high)


def _choices(path: str, text: str) -> Choices:
    values = tuple(json.dumps(value) for value in parse_yaml(f"values: [{text}]")["values"])
    if not values or len(set(values)) < len(values):
        raise ConfigError(f"--vary {path}: {text!r} is not allowed; at least one value, each once")
    return Choices(values)


def default_space(model: ModelConfig) -> Space:
    """Returns what is varied if nothing is named: experts, widths, embedding width, scenario weights, learning rates.

    Numbers of experts and widths are those of the network at hand, half, and twice as much.
    """
    network, space = model.network, Space()
    for one in fields(network):
        value = getattr(network, one.name)
        is_varied = one.name.endswith(("hidden", "width")) or (one.name.startswith("num_") and "expert" in one.name)
        if is_varied and type(value) is int:
            space[f"{model.architecture}.{one.name}"] = _around(value)
    space["embedding.width"] = _around(model.embedding.width)
    if model.loss.scenario_weight == "inverse_size":
        space["loss.max_scenario_weight"] = Choices(("1.0", "3.0", "10.0", "30.0"))
    else:
        space["loss.scenario_weight"] = Choices(('"uniform"', '"inverse_size"'))
    for name in ("dense_lr", "row_lr"):
        rates = (float(f"{getattr(model.optim, name) * factor:.3g}") for factor in _RATE_FACTORS)
        space[f"optim.{name}"] = Choices(tuple(map(json.dumps, rates)))
    return space


def _around(value: int) -> Choices:
    return Choices(tuple(map(json.dumps, sorted({max(1, round(value * factor)) for factor in _FACTORS}))))


def written_out(model: ModelConfig, architecture: str | None) -> ModelConfig:
    """Returns the configuration with its network's section given, so that single widths can be varied.

    Another architecture than the configuration's starts from its own small preset.

    Raises:
        ConfigError: there is no such architecture.
    """
    name = architecture or model.architecture
    networks: dict[str, Any] = {str(other): each for other, each in NETWORKS.items()}
    if name not in networks:
        raise ConfigError(f"--architecture: {name} is not allowed; {', '.join(networks)}")
    network = model.network if name == model.architecture else networks[name].config()
    sections: dict[str, Any] = dict.fromkeys(networks)
    return _built(_plain(model) | sections | {"architecture": name, "preset": "custom", name: _plain(network)})


def at(model: ModelConfig, point: Point) -> ModelConfig:
    """Returns the configuration (as `written_out` gives it) with some settings changed.

    Raises:
        ConfigError: there is no such setting, or the value is not allowed.
    """
    settings = _plain(model)
    for path, value in point.items():
        put(settings, path.split("."), json.loads(value))
    return _built(settings)


def check_space(model: ModelConfig, space: Space) -> None:
    """Makes sure that each value is allowed by itself; some may still not go together.

    Raises:
        ConfigError: there is no such setting, or a value is not allowed.
    """
    for path, values in space.items():
        for value in values.values if isinstance(values, Choices) else map(json.dumps, values):
            at(model, {path: value})


def as_settings(model: ModelConfig, paths: Iterable[str]) -> dict[str, Any]:
    """Returns what a file must say to give this configuration (as `at` gives it), where the rest is as it was.

    The network's section is whole, but for what is its default anyway; of the others what stands at `paths`.
    """
    plain, section = _plain(model), model.architecture
    default = _plain(NETWORKS[section].config())
    settings: dict[str, Any] = {"architecture": section, "preset": "custom"}
    settings[section] = {name: value for name, value in plain[section].items() if value != default[name]}
    for path in paths:
        keys = path.split(".")
        if keys[0] != section:
            value: Any = plain
            for key in keys:
                value = value[key]
            put(settings, keys, value)
    return {"model": settings}


def _plain(config: Any) -> dict[str, Any]:
    return cast(dict[str, Any], msgspec.json.decode(msgspec.json.encode(config)))


def _built(settings: Mapping[str, Any]) -> ModelConfig:
    return build(ModelConfig, settings, "model")
