"""A YAML file as plain data, read strictly, and single settings put over it by their path."""

import re
from collections.abc import Sequence
from typing import Any

import yaml

from freshrank.strict import ConfigError, show


def parse_yaml(text: str) -> dict[str, Any]:
    """Returns the mapping a YAML text holds; a key given twice is a mistake, not a choice of the last."""
    data = _yaml(text)
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(f"{show(data)} is not a mapping of sections")
    return data


def put_override(settings: dict[str, Any], override: str) -> None:
    """Sets what `a.b=value` says, in place; the value is YAML."""
    name, equals, value = override.partition("=")
    if not equals or not all(name.split(".")):
        raise ConfigError(f"--set {override}: must be SECTION.KEY=VALUE")
    put(settings, name.split("."), _yaml(value))


def put(settings: dict[str, Any], path: Sequence[str], value: object) -> None:
    """Sets one setting by its path, in place; sections that are not there yet are made."""
    for i, key in enumerate(path[:-1]):
        if settings.get(key) is None:
            settings[key] = {}
        settings = settings[key]
        if not isinstance(settings, dict):
            raise ConfigError(f"{'.'.join(path[: i + 2])}: {path[i]} has no settings of its own")
    settings[path[-1]] = value


class _StrictLoader(yaml.SafeLoader):
    """YAML 1.1 as PyYAML reads it, but refuses double keys and reads `1e-3` as the number it is."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[object] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str | int | float | bool):
                raise ConfigError(f"line {key_node.start_mark.line + 1}: {show(key)} cannot be a key")
            if key in seen:
                raise ConfigError(f"line {key_node.start_mark.line + 1}: {key} is given twice")
            seen.add(key)
        return super().construct_mapping(node, deep)


_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _yaml(text: str) -> Any:
    try:
        return yaml.load(text, Loader=_StrictLoader)  # noqa: S506 - derives from SafeLoader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark is not None else ""
        raise ConfigError(f"{where}not YAML: {getattr(error, 'problem', None) or error}") from error
