"""The bootstrap over users: requests of one user are not independent, so users are drawn and not requests.

Shape letters: N requests, U users, B resamples, K columns.
"""

from collections.abc import Callable, Sequence

import numpy as np

from utility_blender.contexts import Floats
from utility_blender.ope_report import Interval

Statistic = Callable[[Floats], Floats]
"""From sums over requests, of shape (..., K), to an estimate of shape (...)."""
_CHUNK = 2_000_000
"""Numbers drawn at once."""


def user_sums(columns_NK: Floats, user_id: Sequence[str]) -> Floats:
    """Returns the sums of each user's requests, sums_UK."""
    _, user_N = np.unique(np.array(user_id), return_inverse=True)
    sums_UK: Floats = np.stack([np.bincount(user_N, column_N) for column_N in columns_NK.T], axis=1)
    return sums_UK


class Bootstrap:
    """Sums over all requests and over resamples of users: every estimate of a report is a function of them.

    >>> sums_UK = np.array([[1.0, 1.0], [1.0, 3.0]])
    >>> Bootstrap(sums_UK, 200, np.random.default_rng(0)).interval(lambda sums: sums[..., 1] / sums[..., 0]).value
    2.0
    """

    def __init__(self, sums_UK: Floats, resamples: int, rng: np.random.Generator) -> None:
        num_users, width = sums_UK.shape
        self._sums_K = sums_UK.sum(axis=0)
        self._resampled_BK = np.empty((resamples, width))
        at_once = max(1, _CHUNK // num_users)
        for start in range(0, resamples, at_once):
            size = min(at_once, resamples - start)
            drawn = rng.integers(0, num_users, (size, num_users)) + num_users * np.arange(size)[:, None]
            count_BU = np.bincount(drawn.ravel(), minlength=size * num_users).reshape(size, num_users)
            self._resampled_BK[start : start + size] = count_BU @ sums_UK

    def interval(self, statistic: Statistic, *, level: float = 0.95) -> Interval:
        """Returns the estimate with its percentile bounds, each one-sided at `level`."""
        resampled_B = statistic(self._resampled_BK)
        low, high = np.quantile(resampled_B, [1 - level, level])
        return Interval(float(statistic(self._sums_K)), float(resampled_B.std(ddof=1)), float(low), float(high))
