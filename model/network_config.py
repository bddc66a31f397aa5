"""What the configurations of all networks are checked for."""

from collections.abc import Collection
from dataclasses import fields
from typing import Any


def check_counts(config: Any, *, but: Collection[str] = ()) -> None:
    """Looks at a configuration: every setting declared as an int, or as a tuple of ints, is a count or a width.

    `but` names those that are not.

    Raises:
        ValueError: one of them is below 1.
    """
    for setting in fields(config):
        if setting.name in but or setting.type not in (int, tuple[int, ...]):
            continue
        value = getattr(config, setting.name)
        if any(count < 1 for count in (value if isinstance(value, tuple) else (value,))):
            raise ValueError(f"{setting.name}: {value} is not allowed; at least 1")
