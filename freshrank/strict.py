"""Plain data (what YAML gives) into frozen dataclasses, strictly: every mistake is one line that names its full path.

The types are read from the dataclass itself, so a setting is declared once, beside its owner, and nothing here knows
any section by name.
"""

import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from stream.schema import FeatureConfig

T = TypeVar("T")

SHORT_FORMS: Mapping[type, str] = {FeatureConfig: "kind"}
"""Dataclasses that may be written as one bare value, and the field it fills: `city: categorical`."""


class ConfigError(ValueError):
    """A setting that cannot be used; the text is one line: full path, what was given, what is allowed."""


def build(cls: type[T], value: object, path: str = "") -> T:
    """Returns a dataclass filled from a mapping. Unknown keys, missing keys and wrong types raise.

    >>> from stream.schema import TaskConfig
    >>> build(TaskConfig, {"action": "click", "window_ms": 8000}, "tasks.click").window_ms
    8000
    >>> build(TaskConfig, {"action": "click", "windowms": 8000}, "tasks.click")
    Traceback (most recent call last):
    ...
    freshrank.strict.ConfigError: tasks.click.windowms is not a setting; did you mean window_ms?

    Raises:
        ConfigError: naming the full path of the first mistake, in the order of the data.
    """
    if cls in SHORT_FORMS and not isinstance(value, Mapping):
        value = {SHORT_FORMS[cls]: value}
    if not isinstance(value, Mapping):
        raise ConfigError(f"{path}: {show(value)} is not a mapping of settings")
    settings: tuple[Field[Any], ...] = fields(cls)  # type: ignore[arg-type]  # callers pass dataclasses only
    names = [setting.name for setting in settings]
    for key in value:
        if key not in names:
            raise ConfigError(unknown(join_path(path, key), str(key), names))
    hints = typing.get_type_hints(cls)
    given: dict[str, Any] = {}
    for setting in settings:
        where = join_path(path, setting.name)
        if setting.name in value:
            given[setting.name] = convert(hints[setting.name], value[setting.name], where)
        elif setting.default is MISSING and setting.default_factory is MISSING:
            raise ConfigError(f"{where} is missing")
    try:
        return cls(**given)
    except ConfigError:
        raise
    except ValueError as error:  # from __post_init__: "field: value is not allowed; what is"
        raise ConfigError(join_path(path, str(error))) from error


def convert(hint: Any, value: object, path: str) -> Any:
    """Returns `value` as the annotated type; raises ConfigError if it is another one."""
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any or hint is object:
        return value
    if origin is Literal:
        if value in args and type(value) in {type(arg) for arg in args}:
            return value
        raise ConfigError(f"{path}: {show(value)} is not one of {', '.join(map(str, args))}")
    if origin in (Union, types.UnionType):
        return _convert_union(args, value, path)
    if origin in (tuple, list) or (isinstance(origin, type) and issubclass(origin, Sequence)):
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{path}: {show(value)} is not a list")
        if origin is tuple and args[-1] is not Ellipsis:
            if len(value) != len(args):
                raise ConfigError(f"{path}: {show(value)} must have {len(args)} entries")
            pairs = enumerate(zip(args, value, strict=True))
            return tuple(convert(arg, item, f"{path}[{i}]") for i, (arg, item) in pairs)
        entries = [convert(args[0], item, f"{path}[{i}]") for i, item in enumerate(value)]
        return entries if origin is list else tuple(entries)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{path}: {show(value)} is not a mapping")
        for key in value:
            if not isinstance(key, str):
                raise ConfigError(f"{join_path(path, key)}: the name {key!r} is not a string; quote it")
        return {key: convert(args[1], item, join_path(path, key)) for key, item in value.items()}
    if is_dataclass(hint):
        return build(typing.cast(type, hint), value, path)
    return _convert_scalar(hint, value, path)


def _convert_union(args: tuple[Any, ...], value: object, path: str) -> Any:
    """Tries the members in the order written; the last one's error is the message, as it is the widest."""
    if value is None and type(None) in args:
        return None
    members = [arg for arg in args if arg is not type(None)]
    for member in members[:-1]:
        try:
            return convert(member, value, path)
        except ConfigError:
            continue
    return convert(members[-1], value, path)


def _convert_scalar(hint: Any, value: object, path: str) -> Any:
    if hint is Path:
        hint, wrap = str, Path
    else:
        wrap = None
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ConfigError(f"{path}: {show(value)} is not {SCALAR_NAMES.get(hint, hint.__name__)}")
    return wrap(value) if wrap is not None else value


SCALAR_NAMES: Mapping[type, str] = {int: "an integer", float: "a number", bool: "true or false", str: "a string"}


def unknown(path: str, name: str, allowed: list[str]) -> str:
    """Returns the sentence for a key nobody reads: with the nearest allowed one, else with all of them."""
    nearest = difflib.get_close_matches(name, allowed, n=1, cutoff=0.6)
    if nearest:
        return f"{path} is not a setting; did you mean {nearest[0]}?"
    return f"{path} is not a setting; allowed: {', '.join(allowed) if allowed else 'nothing'}"


def join_path(path: str, key: object) -> str:
    """Returns `path.key`, or `key` at the top."""
    return f"{path}.{key}" if path else str(key)


def show(value: object) -> str:
    """Returns a given value as it stands in the file, short enough for one line."""
    text = {True: "true", False: "false", None: "null"}.get(value) if value is None or isinstance(value, bool) else None
    if text is None:
        text = f'"{value}"' if isinstance(value, str) else repr(value)
    return " ".join((text if len(text) <= 60 else text[:57] + "...").split())
