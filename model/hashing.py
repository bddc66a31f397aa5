"""A feature value's 64-bit key: the same in every process and on every machine, never Python's `hash`."""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import xxhash

Int64Array = npt.NDArray[np.int64]

MISSING_KEY = 0
"""Stands for "no value" wherever keys are passed on; also marks a free slot of the id table."""
REMOVED_KEY = -1
"""Marks a slot of the id table whose key was removed; never the key of a value."""

_SIGN_BIT = 1 << 63
_GOLDEN = 0x9E3779B97F4A7C15


def value_key(field: str, value: str) -> int:
    """Returns the key of `value` in `field`: xxhash64 of both, as a signed 64-bit integer.

    The field's name is the salt, so that equal values of two fields are two ids. The two reserved keys are moved to
    their neighbours. n values collide in n^2/2^65 expected pairs (2.7e-4 at 10^8 values).

    >>> value_key("city", "lyon") == value_key("city", "lyon") != value_key("home", "lyon")
    True
    """
    unsigned = xxhash.xxh64_intdigest(f"{field}\x1f{value}".encode("utf-8", "surrogatepass"))
    key = unsigned - 2 * _SIGN_BIT if unsigned >= _SIGN_BIT else unsigned
    return key + 1 if key == MISSING_KEY else key - 1 if key == REMOVED_KEY else key


def pair_keys(field: str, first_N: Int64Array, second_N: Int64Array) -> Int64Array:
    """Returns a key of `field` for each pair of keys, [N] int64, missing where one of the two is.

    The first key is salted and mixed, the second added, and the sum mixed again. Mixing is a bijection, so that pairs
    which share a key never collide; others as rarely as hashed values do. Which comes first matters.

    >>> a, b = np.array([5, 5, 0]), np.array([6, 7, 6])
    >>> keys = pair_keys("a&b", a, b)
    >>> bool(keys[0] != keys[1]), bool(keys[0] != pair_keys("a&b", b, a)[0]), int(keys[2])
    (True, True, 0)
    """
    salt = np.uint64(xxhash.xxh64_intdigest(field.encode("utf-8", "surrogatepass")))
    mixed_N = _mixed(first_N.view(np.uint64) * np.uint64(_GOLDEN) + salt)
    key_N = _mixed(mixed_N + second_N.view(np.uint64)).view(np.int64)
    key_N[key_N == MISSING_KEY] += 1
    key_N[key_N == REMOVED_KEY] -= 1
    key_N[(first_N == MISSING_KEY) | (second_N == MISSING_KEY)] = MISSING_KEY
    return key_N


def uniforms(keys_N: Int64Array, seed: int, stream: int) -> npt.NDArray[np.float64]:
    """Returns a number in [0, 1) per key, [N], that depends on its key, `seed` and `stream` only.

    splitmix64 (Steele, Lea, Flood 2014): one draw of a stateless generator per key, so no order of draws to keep.

    >>> keys = np.array([5, 6, 5])
    >>> drawn = uniforms(keys, seed=1, stream=2)
    >>> bool(drawn[0] == drawn[2] != drawn[1]), bool((uniforms(keys, seed=1, stream=3) != drawn).all())
    (True, True)
    """
    salt = xxhash.xxh64_intdigest(f"{seed}/{stream}".encode())
    mixed_N = _mixed(keys_N.view(np.uint64) * np.uint64(_GOLDEN) + np.uint64(salt))
    drawn_N: npt.NDArray[np.float64] = (mixed_N >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return drawn_N


def _mixed(number_N: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Returns splitmix64's mix of each number: a bijection."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        number_N = (number_N ^ (number_N >> np.uint64(shift))) * np.uint64(factor)
    return number_N ^ (number_N >> np.uint64(31))


class ValueKeys(dict[str | int | None, int]):
    """Keys of one field's values, each hashed once while it stays in the cache; integers count as their decimal text.

    The cache is emptied when it holds `max_values`, so that a field of unbounded values needs bounded memory.
    Concurrent readers are safe: at worst a value is hashed twice.

    Raises:
        ValueError: a value that is neither a string, nor an integer, nor None (missing).

    >>> keys = ValueKeys("age", max_values=10)
    >>> keys.of([3, "3", None]).tolist() == [value_key("age", "3")] * 2 + [MISSING_KEY]
    True
    """

    def __init__(self, field: str, *, max_values: int) -> None:
        super().__init__({None: MISSING_KEY})
        self._field = field
        self._max_values = max_values

    def __missing__(self, value: str | int | None) -> int:
        if value is None:  # another thread is just emptying the cache
            return MISSING_KEY
        if not isinstance(value, str | int) or isinstance(value, bool):
            raise ValueError(f"{self._field}: {value!r} is not allowed; a string or an integer")
        key = value_key(self._field, str(value))
        if len(self) >= self._max_values:
            self.clear()
            self[None] = MISSING_KEY
        self[value] = key
        return key

    def of(self, values: Iterable[str | int | None]) -> Int64Array:
        """Returns the keys of `values`, [N] int64."""
        return np.fromiter(map(self.__getitem__, values), np.int64)
