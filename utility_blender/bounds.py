"""What learned weights may not do, whatever the model says."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundsConfig:
    """Limits of served weights; the sign of a production weight is always kept."""

    most: float = 4.0
    """A weight stays between the production weight divided by and multiplied with this; at least 1."""

    def __post_init__(self) -> None:
        if self.most < 1:
            raise ValueError(f"most: {self.most} is not allowed; at least 1")
