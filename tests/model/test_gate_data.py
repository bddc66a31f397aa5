"""Shares of missing values: beyond a limit, and beyond what few requests differ by."""

import pytest

from model.features import FeatureEncoder
from model.gate_config import GateConfig
from model.gate_data import DataChecks
from tests.model.gate_stream import MODEL, SCHEMA


@pytest.mark.parametrize(("num_requests", "state"), [(200, "pass"), (20_000, "block")])
def test_missing_values_rise_by_chance_where_requests_are_few(num_requests: int, state: str) -> None:
    layout = MODEL.input_layout(FeatureEncoder(SCHEMA, MODEL.encoding).fields)
    checks = DataChecks(GateConfig(), layout)
    field = [one.name for one in layout.fields].index("context.device")

    def fill(missing: float) -> None:
        window = checks.window
        window.num_requests = window.num_rows = num_requests
        window.rows_of_user = dict.fromkeys(range(num_requests), 1)
        window.values_FK[field, [0, -1]] = (1 - missing) * num_requests, missing * num_requests

    for _ in range(3):
        fill(0.7)
        checks.close(is_kept=True)
    fill(0.82)
    [finding] = [finding for finding in checks.judge() if finding.check == "missing"]
    assert finding.state == state
    assert (finding.text == "82.0% of context.device, before 70.0%") == (state == "block")


@pytest.mark.parametrize(("share", "is_taken_up"), [(0.1, True), (1.0, False)])
def test_what_was_usual_counts_only_for_the_same_share_of_the_micro_batches(share: float, is_taken_up: bool) -> None:
    layout = MODEL.input_layout(FeatureEncoder(SCHEMA, MODEL.encoding).fields)
    before, after = DataChecks(GateConfig(), layout, 0.1), DataChecks(GateConfig(), layout, share)
    for _ in range(3):
        before.window.num_requests = before.window.num_rows = 1_000
        before.close(is_kept=True)
    after.load_state(before.state())
    assert (after.state()["usual"][2] == 3) == is_taken_up
