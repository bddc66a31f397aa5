import pytest

from utility_blender.power import arm_requests, paired_requests, plan

DAY_MS = 86_400_000


def test_the_design_tables_figures() -> None:
    """Design, section 9: binary reward at 0.2 for the arms; a reward with sd / mean 0.66 for the paired lift."""
    assert arm_requests(49, 2.0, 0.01) == pytest.approx(30.8e6, rel=0.005)
    assert arm_requests(9, 2.0, 0.02) == pytest.approx(1.4e6, rel=0.02)
    found = {row.lift: row.paired for row in plan(20_000, DAY_MS, 1.0, 0.66).rows}
    assert found[0.02] == pytest.approx(7_000, rel=0.03)
    assert found[0.01] == pytest.approx(27_000, rel=0.02)
    assert found[0.005] == pytest.approx(109_000, rel=0.01)
    assert found[0.002] == pytest.approx(680_000, rel=0.01)


def test_noisier_rewards_need_more_by_the_square() -> None:
    calm, noisy = plan(5_000, DAY_MS, 2.0, 2.0), plan(5_000, DAY_MS, 2.0, 6.0)
    assert noisy.rows[0].paired == pytest.approx(9 * calm.rows[0].paired, rel=1e-4)
    assert noisy.rows[0].arms[9] == pytest.approx(9 * calm.rows[0].arms[9], rel=1e-4)


def test_a_measured_error_is_taken_as_it_is() -> None:
    found = plan(5_000, 2 * DAY_MS, 2.0, 2.0, relative_se=0.01)
    assert found.is_measured
    assert found.requests_per_day == 2_500
    for row in found.rows:
        assert row.paired == paired_requests(5_000, 0.01, row.lift)
        assert row.days == row.paired / 2_500


def test_a_log_without_duration_has_no_days() -> None:
    found = plan(5_000, 0, 2.0, 2.0)
    assert found.requests_per_day is None
    assert {row.days for row in found.rows} == {None}


@pytest.mark.parametrize(
    ("num", "mean", "message"),
    [(5_000, 0.0, "^reward: a mean of 0 is not allowed; above 0"), (1, 1.0, "^explored requests: 1 is not allowed")],
)
def test_without_a_mean_or_requests_there_is_no_plan(num: int, mean: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan(num, DAY_MS, mean, 1.0)
