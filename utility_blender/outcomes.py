"""Explored requests with what came of them: what policies are fitted to and judged by.

Shape letters: N requests, C most candidates of one of them, T tasks, A actions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from utility_blender.contexts import Contexts, Floats

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
ABSENT = -2
"""Position of a place of the candidates' axis that holds no candidate."""
NOT_SHOWN = -1
"""Position of a candidate that was scored but not shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcomes:
    """N explored requests whose reward window is closed.

    Candidates are sorted by item id, so that ties break as in serving: equal utilities by the smaller id.
    """

    tasks: tuple[str, ...]
    actions: tuple[str, ...]
    """Every action met, in any order."""
    request_id: Sequence[str]
    user_id: Sequence[str]
    contexts: Contexts
    ts_ms_N: Ints
    center_NT: Floats
    """Weights that would have served without the draw."""
    weights_NT: Floats
    """Weights drawn."""
    log_density_N: Floats
    tau_N: Floats
    """Of the lognormal law; NaN where another one drew."""
    truncate_N: Floats
    scale_NT: Floats
    """What one unit of a score was."""
    snapshot_N: Ints
    blender_N: Ints
    """Version of the blender in service: that of the centre."""
    scores_NCT: NDArray[np.float32]
    """Scores as served; 0 where there is no candidate."""
    position_NC: Ints
    """Position shown, `NOT_SHOWN`, or `ABSENT`."""
    value_NCA: Floats
    """Sum of the values of the distinct actions within the reward window; 0 where not shown."""

    @property
    def num_requests(self) -> int:
        """N."""
        return len(self.ts_ms_N)

    @property
    def size_N(self) -> Ints:
        """Items shown per request."""
        size_N: Ints = (self.position_NC >= 0).sum(axis=1)
        return size_N

    @property
    def shown_NC(self) -> Bools:
        """Which candidates were shown."""
        shown_NC: Bools = self.position_NC >= 0
        return shown_NC

    @property
    def present_NC(self) -> Bools:
        """Which places hold a candidate."""
        present_NC: Bools = self.position_NC != ABSENT
        return present_NC

    def take(self, rows: Sequence[int] | Ints | Bools) -> "Outcomes":
        """Returns some of the requests, by index or by mask, in the given order."""
        chosen = np.asarray(rows)
        chosen = np.flatnonzero(chosen) if chosen.dtype == np.bool_ else chosen.astype(np.int64)
        arrays = {name: getattr(self, name)[chosen] for name in _ARRAYS}
        return Outcomes(
            tasks=self.tasks,
            actions=self.actions,
            request_id=[self.request_id[row] for row in chosen.tolist()],
            user_id=[self.user_id[row] for row in chosen.tolist()],
            contexts=self.contexts.take(chosen),
            **arrays,
        )


_ARRAYS = (
    "ts_ms_N", "center_NT", "weights_NT", "log_density_N", "tau_N", "truncate_N", "scale_NT", "snapshot_N",
    "blender_N", "scores_NCT", "position_NC", "value_NCA",
)  # fmt: skip


def concat(parts: Sequence[Outcomes]) -> Outcomes:
    """Returns the requests of all parts (at least one, of the same tasks), in order; actions are united."""
    actions = tuple(dict.fromkeys(action for part in parts for action in part.actions))
    width = max(part.position_NC.shape[1] for part in parts)
    columns = dict.fromkeys(name for part in parts for name in part.contexts.columns)
    arrays = {name: np.concatenate([getattr(part, name) for part in parts]) for name in _ARRAYS[:9]}
    for name, fill in (("scores_NCT", 0.0), ("position_NC", ABSENT)):
        arrays[name] = np.concatenate([_widened(getattr(part, name), width, fill) for part in parts])
    arrays["value_NCA"] = np.concatenate(
        [_widened(_with_actions(part.value_NCA, part.actions, actions), width, 0.0) for part in parts]
    )
    return Outcomes(
        tasks=parts[0].tasks,
        actions=actions,
        request_id=[request_id for part in parts for request_id in part.request_id],
        user_id=[user_id for part in parts for user_id in part.user_id],
        contexts=Contexts(
            scenario=[scenario for part in parts for scenario in part.contexts.scenario],
            columns={
                name: [v for part in parts for v in part.contexts.columns.get(name, [None] * part.num_requests)]
                for name in columns
            },
        ),
        **arrays,
    )


def utilities(outcomes: Outcomes, weights_NT: Floats) -> Floats:
    """Returns the utility of every candidate under other weights, u_NC; -inf where there is none.

    The same sum in the same order as serving, so that replaying the drawn weights gives the logged slate.
    """
    factor_NT = weights_NT / outcomes.scale_NT
    utility_NC: Floats = (outcomes.scores_NCT * factor_NT[:, None, :]).sum(axis=2, dtype=np.float64)
    utility_NC[~outcomes.present_NC] = -np.inf
    return utility_NC


def slates(utility_NC: Floats, size_N: Ints) -> Bools:
    """Returns which candidates the best `size_N` of each request are; ties go to the candidate further left.

    >>> slates(np.array([[0.5, 0.9, 0.5]]), np.array([2]))
    array([[ True,  True, False]])
    """
    rank_NC = np.empty(utility_NC.shape, np.int64)
    order_NC = np.argsort(-utility_NC, axis=1, kind="stable")
    np.put_along_axis(rank_NC, order_NC, np.arange(utility_NC.shape[1])[None, :], axis=1)
    chosen_NC: Bools = rank_NC < size_N[:, None]
    return chosen_NC


def _widened(array: NDArray[np.generic], width: int, fill: float) -> NDArray[np.generic]:
    padding = [(0, 0)] * array.ndim
    padding[1] = (0, width - array.shape[1])
    return np.pad(array, padding, constant_values=fill)


def _with_actions(value_NCA: Floats, have: tuple[str, ...], want: tuple[str, ...]) -> Floats:
    result = np.zeros((*value_NCA.shape[:2], len(want)))
    result[:, :, [want.index(action) for action in have]] = value_NCA
    return result
