"""Whether the scores have moved away from those that weights were learned on.

A weight means something only for scores of one size. Under a trainer that never stops they drift; the population
stability index against the scores of the fit says how far: `PSI = sum_b (q_b - p_b) ln(q_b / p_b)` over ten bins that
were equally full then.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from utility_blender.contexts import Floats
from utility_blender.outcomes import Ints, Outcomes

ALARM = 0.1
"""PSI above which weights should be learned anew: the usual reading, 0.1 a small shift, 0.25 a large one."""
LIMIT = 0.25
"""PSI above which the weights no longer serve."""
_BINS = 10


@dataclass(frozen=True, slots=True)
class ScoreReference:
    """The scores of one task when the weights were learned: a histogram.

    >>> reference = reference_of(np.arange(1000) / 1000)
    >>> round(reference.psi(reference.counts(np.arange(500) / 500)), 3)
    0.0
    >>> reference.psi(reference.counts(np.arange(500) / 1000)) > LIMIT
    True
    """

    edges: tuple[float, ...]
    """Upper ends of all bins but the last, inclusive, rising."""
    shares: tuple[float, ...]
    """Share of the scores in each bin; the sum is 1."""

    def __post_init__(self) -> None:
        rises = all(low < high for low, high in zip(self.edges, self.edges[1:], strict=False))
        if len(self.shares) != len(self.edges) + 1 or not rises or not min(self.shares) >= 0:
            raise ValueError(f"edges: {self.edges} is not allowed; rising, one fewer than shares")

    def counts(self, scores_N: NDArray[Any]) -> Ints:
        """Returns how many scores fall into each bin."""
        bins_N = np.searchsorted(self.edges, np.asarray(scores_N, np.float64))
        counts_B: Ints = np.bincount(bins_N, minlength=len(self.shares))
        return counts_B

    def psi(self, counts_B: Ints) -> float:
        """Returns the PSI of scores with these counts; half a score is added to each bin, so that none is empty."""
        now_B = (counts_B + 0.5) / (counts_B.sum() + 0.5 * len(counts_B))
        then_B = np.maximum(np.array(self.shares), 1e-4)
        return float(((now_B - then_B) * np.log(now_B / then_B)).sum())


def reference_of(scores_N: NDArray[Any]) -> ScoreReference:
    """Returns the histogram of scores, at least one."""
    given_N = np.asarray(scores_N, np.float64)
    edges = np.unique(np.quantile(given_N, np.arange(1, _BINS) / _BINS, method="lower"))
    counts_B = np.bincount(np.searchsorted(edges, given_N), minlength=len(edges) + 1)
    return ScoreReference(tuple(edges.tolist()), tuple((counts_B / len(given_N)).tolist()))


def score_references(outcomes: Outcomes) -> dict[str, dict[str, dict[str, Any]]]:
    """Returns the histogram of every candidate's score by scenario and task, as plain data for `BlenderVersion`."""
    names = np.array(outcomes.contexts.scenario)
    references = {}
    for name in sorted(set(outcomes.contexts.scenario)):
        rows_N = names == name
        scores_RT: Floats = outcomes.scores_NCT[rows_N][outcomes.present_NC[rows_N]]
        references[str(name)] = {
            task: asdict(reference_of(scores_RT[:, place])) for place, task in enumerate(outcomes.tasks)
        }
    return references


def references_from(data: Mapping[str, Mapping[str, Any]], tasks: Sequence[str]) -> dict[str, list[ScoreReference]]:
    """Returns the histograms of each scenario in the order of the tasks.

    Raises:
        KeyError, TypeError, ValueError: they are none.
    """
    return {
        scenario: [
            ScoreReference(tuple(map(float, of_task[task]["edges"])), tuple(map(float, of_task[task]["shares"])))
            for task in tasks
        ]
        for scenario, of_task in data.items()
    }
