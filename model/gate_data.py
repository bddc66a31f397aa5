"""Level 1 of the publish gate, the data: what came in one window against what came before.

| check | blocks |
|---|---|
| `missing` | a field whose values are missing more often, beyond chance |
| `unknown` | a field whose values have no row more often, beyond chance |
| `feature_psi` | a field whose values are distributed otherwise; values are counted in 16 buckets of their hash |
| `rows` | many times, or a fraction of, the usual rows per second of event time |
| `users` | rows that come from few users |
| `clock_ahead` | impressions from the future |

Reference: past windows that were in order, each older one at nine tenths of the weight of the next.

Letters: F fields, N values, R requests, B rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from model.assembly import InputLayout
from model.features import EncodedBatch
from model.gate_config import GateConfig
from model.gate_report import Finding
from model.hashing import MISSING_KEY
from model.metrics import Arrays, Float64Array, Int64Array

BUCKETS = 16
"""Buckets of a field's values."""
KEEP = 0.9
"""Weight of a window in the reference after the next one."""
MIN_WINDOWS = 3
"""Windows in the reference before anything is judged against it."""
MIN_REQUESTS = 200
"""Requests, or emissions of one, from which a window is judged."""
SIGMAS = 4.0
"""Standard errors that a share may rise by on top of its limit."""
_FACTOR = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True, slots=True)
class BatchCounts:
    """What the checks take in of a micro-batch; that of several ranks' rows adds up."""

    values_FK: Int64Array
    """Per field the values by bucket; the last column counts the missing ones."""
    lookups_F2: Float64Array
    """Lookups so far, and those without a row."""
    user_R: Int64Array
    """Key of each request's user; empty without that field."""
    num_rows_R: Int64Array
    """Rows of each request."""

    @staticmethod
    def total(parts: Sequence["BatchCounts"]) -> "BatchCounts":
        """Returns the counts of several ranks' rows together."""
        return BatchCounts(
            values_FK=np.sum([part.values_FK for part in parts], axis=0),
            lookups_F2=np.sum([part.lookups_F2 for part in parts], axis=0),
            user_R=np.concatenate([part.user_R for part in parts]),
            num_rows_R=np.concatenate([part.num_rows_R for part in parts]),
        )


class DataWindow:
    """Counts of one window."""

    def __init__(self, num_fields: int) -> None:
        self.values_FK: Float64Array = np.zeros((num_fields, BUCKETS + 1))
        """Per field the values by bucket; the last column counts the missing ones."""
        self.lookups_F2: Float64Array = np.zeros((num_fields, 2))
        """Lookups, and those without a row."""
        self.num_requests = self.num_rows = self.num_ahead = 0
        self.rows_of_user: dict[int, int] = {}
        self.first_ms = self.last_ms = 0
        """Watermarks it goes over."""

    def rows_per_s(self) -> float | None:
        """Returns rows per second of event time; None if no second went by."""
        span_ms = self.last_ms - self.first_ms
        return 1_000 * self.num_rows / span_ms if self.first_ms > 0 and span_ms >= 1_000 else None

    def rows_of_mean_user(self) -> float | None:
        """Returns how many rows the user of a row has, on average over rows."""
        rows_U = np.array(list(self.rows_of_user.values()), np.float64)
        return float((rows_U**2).sum() / rows_U.sum()) if len(rows_U) else None


class DataChecks:
    """Counts the data of a window and judges it against those before."""

    def __init__(self, config: GateConfig, layout: InputLayout, judged_share: float = 1.0) -> None:
        self._config, self._layout, self._judged_share = config, layout, judged_share
        self._names = [one.name for one in layout.fields]
        self._is_request_F = np.array([one.side == "request" for one in layout.fields])
        is_moved = [one.side == "item" or one.name.startswith("history") for one in layout.fields]
        self._psi_F = [config.shown_psi if moved else config.feature_psi for moved in is_moved]
        singles = [one.name for one in layout.fields if one.side == "request" and not one.many]
        self._user = singles.index("user_id") if "user_id" in singles else None
        self._seen_lookups_F2: Float64Array | None = None
        self.window = DataWindow(len(self._names))
        self._values_FK = np.zeros_like(self.window.values_FK)
        self._lookups_F2 = np.zeros_like(self.window.lookups_F2)
        self._usual = np.zeros(3)  # rows per second, rows of the mean user, windows

    def count(self, batch: EncodedBatch, lookups_F2: Float64Array) -> BatchCounts:
        """Returns the counts of some rows. `lookups_F2`: per field, all lookups here so far and those without a row."""
        keys_N, starts = self._layout.flat_keys(batch), self._layout.field_starts(batch)
        field_N = np.repeat(np.arange(len(self._names)), np.diff(starts))
        with np.errstate(over="ignore"):
            bucket_N = ((keys_N.astype(np.uint64) * _FACTOR) >> np.uint64(60)).astype(np.int64)
        bucket_N[keys_N == MISSING_KEY] = BUCKETS
        shape = self._values_FK.shape
        return BatchCounts(
            values_FK=np.bincount(field_N * shape[1] + bucket_N, minlength=shape[0] * shape[1]).reshape(shape),
            lookups_F2=lookups_F2,
            user_R=np.empty(0, np.int64) if self._user is None else batch.request_keys_FR[self._user],
            num_rows_R=np.bincount(batch.request_index_B, minlength=batch.num_requests),
        )

    def observe(self, counts: BatchCounts, impression_ms_B: Int64Array, *, now_ms: int, watermark_ms: int) -> None:
        """Counts a batch in."""
        window = self.window
        window.values_FK += counts.values_FK
        if self._seen_lookups_F2 is not None:
            window.lookups_F2 += counts.lookups_F2 - self._seen_lookups_F2
        self._seen_lookups_F2 = counts.lookups_F2
        window.num_requests += len(counts.num_rows_R)
        window.num_rows += len(impression_ms_B)
        window.num_ahead += int((impression_ms_B > now_ms + self._config.ahead_ms).sum())
        if self._user is not None:
            for user, num_rows in zip(counts.user_R.tolist(), counts.num_rows_R.tolist(), strict=True):
                window.rows_of_user[user] = window.rows_of_user.get(user, 0) + num_rows
        window.first_ms = window.first_ms or watermark_ms
        window.last_ms = watermark_ms

    def judge(self) -> list[Finding]:
        """Returns what every check says of the window so far."""
        window, config = self.window, self._config
        if window.num_requests < MIN_REQUESTS:
            return [_unjudged("feature_psi", f"{window.num_requests} requests, from {MIN_REQUESTS} on it is judged")]
        found: list[Finding] = []
        if config.ahead_share is not None:
            share = window.num_ahead / window.num_rows
            found.append(
                _finding("clock_ahead", share > config.ahead_share, f"{share:.1%} of the rows are of the future")
            )
        if self._usual[2] < MIN_WINDOWS:
            return [*found, _unjudged("feature_psi", f"fewer than {MIN_WINDOWS} windows before")]
        found += self._shares("missing", self._missing(window.values_FK), self._missing(self._values_FK))
        found += self._shares("unknown", self._unknown(window.lookups_F2), self._unknown(self._lookups_F2))
        found += self._distributions()
        return found + self._volume()

    @staticmethod
    def _missing(values_FK: Float64Array) -> Float64Array:
        shares_F: Float64Array = values_FK[:, -1] / np.maximum(values_FK.sum(axis=1), 1)
        return shares_F

    @staticmethod
    def _unknown(lookups_F2: Float64Array) -> Float64Array:
        shares_F: Float64Array = lookups_F2[:, 1] / np.maximum(lookups_F2[:, 0], 1)
        return shares_F

    def _shares(self, check: str, now_F: Float64Array, before_F: Float64Array) -> list[Finding]:
        limit = self._config.missing_points if check == "missing" else self._config.unknown_points
        if limit is None:
            return []
        # Scenarios differ in what they leave out, and a short window has few requests of each: beyond chance, too.
        num_F = np.array([self._num_independent(num) for num in self.window.values_FK.sum(axis=1)])
        rise_F = now_F - before_F - SIGMAS * np.sqrt(before_F * (1 - before_F) / num_F)
        worst = int(np.argmax(rise_F))
        text = f"{now_F[worst]:.1%} of {self._names[worst]}, before {before_F[worst]:.1%}"
        return [_finding(check, bool(rise_F[worst] > limit), text)]

    def _distributions(self) -> list[Finding]:
        found = []
        for index, (name, limit) in enumerate(zip(self._names, self._psi_F, strict=True)):
            now_K, before_K = self.window.values_FK[index, :-1], self._values_FK[index, :-1]
            if limit is None or now_K.sum() < MIN_REQUESTS or before_K.sum() < MIN_REQUESTS:
                continue
            moved = _psi(before_K, now_K)
            # Thrice what two samples of one distribution differ by on average. Values of one user go together.
            noise = 3 * (BUCKETS - 1) / self._num_independent(now_K.sum())
            if moved > limit + noise:
                found.append(_finding("feature_psi", True, f"{name} moved by {moved:.2f}, allowed {limit}"))
        return found or [_finding("feature_psi", False, "no field moved beyond its limit")]

    def _num_independent(self, num_values: float) -> float:
        """Returns how many independent values the window's are worth."""
        rows_of_user = self.window.rows_of_mean_user()
        num = min(num_values, self.window.num_requests)
        return max(1.0, num if rows_of_user is None else min(num, self.window.num_rows / rows_of_user))

    def _volume(self) -> list[Finding]:
        found = []
        usual_rate, usual_user = self._usual[:2]
        rate, user = self.window.rows_per_s(), self.window.rows_of_mean_user()
        if self._config.rows_ratio is not None and rate is not None and usual_rate > 0:
            ratio = rate / usual_rate
            is_odd = not 1 / self._config.rows_ratio <= ratio <= self._config.rows_ratio
            found.append(_finding("rows", is_odd, f"{rate:.0f} rows per second, usual are {usual_rate:.0f}"))
        if self._config.user_ratio is not None and user is not None and usual_user > 0:
            # Where traffic as a whole has grown, so has each user's share of it.
            growth = max(1.0, rate / usual_rate) if rate is not None and usual_rate > 0 else 1.0
            text = f"the user of a row has {user:.1f} rows, usual are {usual_user:.1f}"
            found.append(_finding("users", user > self._config.user_ratio * usual_user * growth, text))
        return found

    def close(self, *, is_kept: bool) -> None:
        """Starts the next window; this one joins the reference if `is_kept` and long enough to be judged."""
        window = self.window
        if is_kept and window.num_requests >= MIN_REQUESTS:
            self._values_FK = KEEP * self._values_FK + window.values_FK
            self._lookups_F2 = KEEP * self._lookups_F2 + window.lookups_F2
            for index, value in enumerate((window.rows_per_s(), window.rows_of_mean_user())):
                if value is not None:
                    before = self._usual[index]
                    self._usual[index] = KEEP * before + (1 - KEEP) * value if before else value
            self._usual[2] += 1
        self.window = DataWindow(len(self._names))

    def forget(self) -> None:
        """Takes what comes next for the usual."""
        self._usual[:] = self._values_FK[:] = self._lookups_F2[:] = 0

    def state(self) -> Arrays:
        """Returns the reference."""
        return {"values": self._values_FK.copy(), "lookups": self._lookups_F2.copy(), "usual": self._usual.copy()} | {
            "judged_share": np.array([self._judged_share])
        }

    def load_state(self, state: Arrays) -> None:
        """Takes up a reference; one over other fields, or over another share of the micro-batches, is left aside."""
        share = state.get("judged_share", np.ones(1))[0]
        if state["values"].shape == self._values_FK.shape and share == self._judged_share:
            self._values_FK, self._lookups_F2 = state["values"].copy(), state["lookups"].copy()
            self._usual = state["usual"].copy()


def _psi(before_K: Float64Array, now_K: Float64Array) -> float:
    """Returns the population stability index of counts; each bucket has half a value more, so that none is empty."""
    before = (before_K + 0.5) / (before_K.sum() + 0.5 * len(before_K))
    now = (now_K + 0.5) / (now_K.sum() + 0.5 * len(now_K))
    return float(((now - before) * np.log(now / before)).sum())


def _finding(check: str, is_blocked: bool, text: str) -> Finding:
    return Finding(check=check, state="block" if is_blocked else "pass", text=text)


def _unjudged(check: str, text: str) -> Finding:
    return Finding(check=check, state="not_judged", text=text)
