"""Is one stream of requests worse than another? Asked again and again as they come, without crying wolf.

A test that is repeated trips by chance sooner or later. This one looks only each time the smaller stream has doubled,
and spends its error on the looks: alpha / (k (k + 1)) on the k-th, which sums to alpha however long it runs. It knows a
real loss at most one doubling later than a test that had been planned for the moment.
"""

import math
from dataclasses import dataclass, field
from statistics import NormalDist

FIRST_LOOK = 100
"""Requests of the smaller stream at the first look: fewer make no normal mean."""
_NORMAL = NormalDist()


@dataclass(slots=True)
class Moments:
    """Count, mean and squared deviations of a stream (Welford 1962)."""

    n: int = 0
    mean: float = 0.0
    m2: float = 0.0

    def add(self, value: float) -> None:
        """Takes one value."""
        self.n += 1
        delta = value - self.mean
        self.mean += delta / self.n
        self.m2 += delta * (value - self.mean)

    @property
    def squared_error(self) -> float:
        """Squared standard error of the mean; needs two values."""
        return self.m2 / (self.n - 1) / self.n


@dataclass(slots=True)
class SequentialTest:
    """Tells whether the mean of stream `tried` lies below that of `control` by more than a margin.

    >>> test = SequentialTest(alpha=0.001, margin=0.05)
    >>> for n in range(400):
    ...     test.control.add(1.0 + (n % 2))
    ...     test.tried.add(0.5 + (n % 2))
    >>> test.look()
    True
    """

    alpha: float
    """Probability of tripping at any time where there is no such loss."""
    margin: float
    """Loss that is put up with, as a share of the size of the control's mean."""
    tried: Moments = field(default_factory=Moments)
    control: Moments = field(default_factory=Moments)
    has_tripped: bool = False
    """Once it has, it stays."""
    _num_looks: int = 0

    def look(self) -> bool:
        """Looks, if it is time. Returns whether it has tripped."""
        smaller = min(self.tried.n, self.control.n)
        while not self.has_tripped and smaller >= FIRST_LOOK * 2**self._num_looks:
            self._num_looks += 1
            allowed = self.alpha / (self._num_looks * (self._num_looks + 1))
            self.has_tripped = self._p_value() < allowed
        return self.has_tripped

    def _p_value(self) -> float:
        """Returns the one-sided p-value of "no such loss", by Welch's statistic."""
        kept = 1 - math.copysign(self.margin, self.control.mean)  # more of it is put up with where it counts downwards
        limit = kept * self.control.mean
        error = math.sqrt(self.tried.squared_error + kept**2 * self.control.squared_error)
        if error == 0:
            return 0.0 if self.tried.mean < limit else 1.0
        return _NORMAL.cdf((self.tried.mean - limit) / error)
