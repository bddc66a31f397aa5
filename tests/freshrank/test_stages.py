"""Quantiles of the stages are over the last minute, whatever a ranker counted before, and of nothing they are None."""

import pytest

from freshrank.scrape import Figures, Scrape
from freshrank.stages import METRIC, WINDOW_MS, StageWindow, quantile_of
from ranker.freshness_stages import STAGES

INF = float("inf")


def round_of(**counts: tuple[float, float, float]) -> Figures:
    """A ranker's buckets: by stage, actions within 0.1 s, within 1 s, and all."""
    bounds = ("0.1", "1.0", "+Inf")
    return Figures(
        [
            Scrape(
                {
                    (METRIC, (bound, stage)): count
                    for stage, of_stage in counts.items()
                    for bound, count in zip(bounds, of_stage, strict=True)
                }
            )
        ]
    )


@pytest.mark.parametrize(
    ("counts", "quantile", "expected"),
    [
        ({}, 0.5, None),
        ({0.1: 0.0, INF: 0.0}, 0.5, None),
        ({0.1: 10.0, 1.0: 10.0, INF: 10.0}, 0.5, 0.05),
        ({0.1: 5.0, 1.0: 10.0, INF: 10.0}, 0.75, 0.55),
        ({0.1: 5.0, 1.0: 9.0, INF: 10.0}, 0.99, 1.0),
    ],
)
def test_quantile_lies_in_its_bucket_by_proportion(
    counts: dict[float, float], quantile: float, expected: float | None
) -> None:
    assert quantile_of(counts, quantile) == (expected if expected is None else pytest.approx(expected))


def test_nothing_measured_is_none() -> None:
    window = StageWindow()
    window.observe(0, Figures())
    assert window.quantiles_ms((0.5, 0.99)) == {stage: {"n": 0.0, "p50": None, "p99": None} for stage in STAGES}


def test_what_was_counted_before_the_window_does_not_count() -> None:
    window = StageWindow()
    window.observe(0, round_of(joined=(1_000.0, 1_000.0, 1_000.0)))
    assert window.quantiles_ms((0.5,))["joined"] == {"n": 0.0, "p50": None}
    for second in range(1, 2 * WINDOW_MS // 1_000):
        counts = (1_000.0, 1_000.0 + 10 * second, 1_000.0 + 10 * second)
        window.observe(1_000 * second, round_of(joined=counts, served=(second, second, second)))
    found = window.quantiles_ms((0.5,))
    assert found["joined"]["n"] == pytest.approx(10 * WINDOW_MS / 1_000)
    assert found["joined"]["p50"] == pytest.approx(550.0)
    assert found["served"]["p50"] == pytest.approx(50.0)


def test_ranker_that_starts_again_begins_a_new_window() -> None:
    window = StageWindow()
    window.observe(0, round_of(joined=(50.0, 50.0, 50.0)))
    window.observe(1_000, round_of(joined=(90.0, 90.0, 90.0)))
    window.observe(2_000, round_of(joined=(1.0, 1.0, 1.0)))
    assert window.quantiles_ms((0.5,))["joined"]["n"] == 0.0
    window.observe(3_000, round_of(joined=(1.0, 5.0, 5.0)))
    assert window.quantiles_ms((0.5,))["joined"] == {"n": 4.0, "p50": pytest.approx(550.0)}
