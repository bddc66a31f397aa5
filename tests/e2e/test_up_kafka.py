"""The same on Apache Kafka: `freshrank up --broker kafka`, with the folder that KAFKA_HOME names."""

import os

import pytest

from tests.e2e.conftest import UpRun
from tests.e2e.test_up import (
    test_it_says_how_it_goes_and_leaves_nothing_behind,
    test_ranking_was_served_by_a_snapshot_of_its_own_events,
    test_report_holds_what_is_promised,
)

pytestmark = [
    pytest.mark.integration,
    pytest.mark.slow,
    pytest.mark.timeout(240),
    pytest.mark.skipif(
        not os.environ.get("KAFKA_HOME"), reason="KAFKA_HOME is not set: it must name the folder of an Apache Kafka 4"
    ),
]
UP_ARGUMENTS = ("--for", "50", "--broker", "kafka")
__all__ = [
    "test_it_says_how_it_goes_and_leaves_nothing_behind",
    "test_ranking_was_served_by_a_snapshot_of_its_own_events",
    "test_report_holds_what_is_promised",
]


@pytest.fixture(scope="module")
def ended(up_run: UpRun) -> UpRun:
    """The run after it has ended by itself."""
    code = up_run.end(200)
    assert code == 0, up_run.lines[-15:]
    return up_run
