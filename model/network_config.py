"""What the configurations of all networks are checked for."""

from typing import Any


def check_counts(config: Any) -> None:
    """Looks at a slotted configuration: every int, also inside a tuple, is a count or a width.

    Raises:
        ValueError: one of them is below 1.
    """
    for name in config.__slots__:
        value = getattr(config, name)
        counts = value if isinstance(value, tuple) else (value,)
        if any(isinstance(count, int) and not isinstance(count, bool) and count < 1 for count in counts):
            raise ValueError(f"{name}: {value} is not allowed; at least 1")
