"""Item inclusion on RankLens, whose propensities are known: estimates of fixed policies against held-out truth.

Slates were 24 films drawn at random from a listing, so film j was shown with a known `p_item_in_slate`. A policy shows
the 24 films of the listing that are first by some feature. Half of the people give its value by item inclusion,

    V = 1/N sum_i sum_{j shown, j in top(listing_i)} click_ij / p_ij

and the other half the truth: the click rates that its films had when they were shown, summed over the films. No
propensity is in the latter. Both halves look at the same listings.
"""

import csv
import gzip
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from utility_blender.bootstrap import Bootstrap, user_sums
from utility_blender.contexts import Floats

POLICIES = ("popularity", "vote_avg", "vote_cnt", "release_ts", "runtime", "budget")
"""Features that films are ordered by, most first; and `-` in front for least first."""
SLATE = 24


class Row(NamedTuple):
    """One policy."""

    policy: str
    estimate: float
    """Clicks per slate, by item inclusion on one half."""
    se: float
    truth: float
    """Clicks per slate, from click rates on the other half."""
    truth_se: float
    mean_weight: float
    """Importance weights of the policy's films per slate, over 24: 1 where propensities are right."""

    @property
    def off(self) -> float:
        """Estimate minus truth in standard errors of both."""
        return float((self.estimate - self.truth) / np.hypot(self.se, self.truth_se))


class _Log(NamedTuple):
    slate_M: NDArray[np.int64]
    user_M: NDArray[np.int64]
    film_M: NDArray[np.int64]
    """Number of the pair (listing, film)."""
    click_M: Floats
    propensity_M: Floats
    listing_P: NDArray[np.int64]
    """Of each pair."""
    item_P: list[str]


def ranklens_rows(folder: Path, *, seed: int, resamples: int = 500) -> list[Row]:
    """Returns a row per policy; `seed` splits the people and resamples them.

    Raises:
        OSError, KeyError, ValueError: not the files of RankLens.
    """
    log, features = _read(folder)
    rng = np.random.default_rng(seed)
    is_first_M = (rng.permutation(int(log.user_M.max()) + 1) % 2 == 0)[log.user_M]
    rows = []
    for name in (*POLICIES, *(f"-{policy}" for policy in POLICIES)):
        is_top_P = _top(log, features, name)
        estimate, mean_weight = _by_inclusion(log, is_top_P, is_first_M, resamples, rng)
        truth = _by_rates(log, is_top_P, is_first_M, rng)
        rows.append(Row(name, *estimate, *truth, mean_weight))
    return rows


def _top(log: _Log, features: Mapping[str, Mapping[str, float]], name: str) -> NDArray[np.bool_]:
    """Returns which pairs (listing, film) a policy shows."""
    feature, sign = name.removeprefix("-"), -1 if name.startswith("-") else 1
    value_P = np.array([sign * features[item][feature] for item in log.item_P])
    is_top_P = np.zeros(len(value_P), np.bool_)
    for listing in np.unique(log.listing_P):
        pairs = np.flatnonzero(log.listing_P == listing)
        is_top_P[pairs[np.argsort(-value_P[pairs], kind="stable")[:SLATE]]] = True
    return is_top_P


def _by_inclusion(
    log: _Log, is_top_P: NDArray[np.bool_], rows_M: NDArray[np.bool_], resamples: int, rng: np.random.Generator
) -> tuple[tuple[float, float], float]:
    omega_M = np.where(is_top_P[log.film_M], 1 / log.propensity_M, 0.0)[rows_M]
    columns = np.stack([np.full(len(omega_M), 1 / SLATE), omega_M * log.click_M[rows_M], omega_M], axis=1)
    sums = Bootstrap(user_sums(columns, [str(user) for user in log.user_M[rows_M]]), resamples, rng)
    value = sums.interval(lambda sums: sums[..., 1] / sums[..., 0])
    weight = sums.interval(lambda sums: sums[..., 2] / sums[..., 0] / SLATE)
    return (value.value, value.se), weight.value


def _by_rates(
    log: _Log, is_top_P: NDArray[np.bool_], first_M: NDArray[np.bool_], rng: np.random.Generator
) -> tuple[float, float]:
    """Returns the sum of the policy's films' held-out click rates, per slate of the first half; and its error."""
    num = len(is_top_P)
    slates = np.unique(np.stack([log.slate_M[first_M], log.listing_P[log.film_M[first_M]]]), axis=1)[1]
    share_P = (np.bincount(slates, minlength=int(log.listing_P.max()) + 1) / len(slates))[log.listing_P]
    shown_P = np.bincount(log.film_M[~first_M], minlength=num)
    clicks_P = np.bincount(log.film_M[~first_M], log.click_M[~first_M], minlength=num)
    if (shown_P[is_top_P] == 0).any():  # a film the half never saw: one more look at each, at the mean rate
        shown_P, clicks_P = shown_P + 1, clicks_P + log.click_M[~first_M].mean()
    weight_P = np.where(is_top_P, share_P, 0.0) / shown_P
    value = float((weight_P * clicks_P).sum())
    users = log.user_M[~first_M]
    # Delta method, by user: what each click, less its film's rate, moves the sum by.
    moved = (weight_P[log.film_M] * (log.click_M - (clicks_P / shown_P)[log.film_M]))[~first_M]
    return value, float(np.sqrt((np.bincount(users, moved) ** 2).sum()))


def _read(folder: Path) -> tuple[_Log, dict[str, dict[str, float]]]:
    with gzip.open(folder / "items.csv.gz", "rt", encoding="utf-8", newline="") as text:
        features = {row["item_id"]: {name: float(row[name]) for name in POLICIES} for row in csv.DictReader(text)}
    columns: list[tuple[int, int, str, str, float, float]] = []
    with gzip.open(folder / "impressions.csv.gz", "rt", encoding="utf-8", newline="") as text:
        for row in csv.DictReader(text):
            columns.append(
                (int(row["slate_id"]), int(row["user_id"]), row["scenario_id"], row["item_id"], float(row["click"]),
                 float(row["p_item_in_slate"]))
            )  # fmt: skip
    slate, user, listing, item, click, propensity = zip(*columns, strict=True)
    known = [name in features for name in item]
    pairs = sorted({pair for pair, is_known in zip(zip(listing, item, strict=True), known, strict=True) if is_known})
    number = {pair: index for index, pair in enumerate(pairs)}
    kept = np.array(known)
    film = [number[pair] for pair, is_known in zip(zip(listing, item, strict=True), known, strict=True) if is_known]
    log = _Log(
        np.array(slate)[kept], np.array(user)[kept], np.array(film), np.array(click)[kept],
        np.array(propensity)[kept], np.array([int(one) for one, _ in pairs]), [film for _, film in pairs],
    )  # fmt: skip
    return log, features
