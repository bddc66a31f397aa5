"""What `freshrank agents` shows of the online metrics."""

from collections import Counter

import numpy as np

from freshrank.agents import readings
from freshrank.metrics import exposition, registry
from freshrank.scrape import Scrape
from stream.agents_config import AgentCounters
from stream.online_figures import figures
from stream.online_metrics import PartitionMetrics
from stream.online_metrics_config import OnlineMetricsConfig
from stream.settled_labels import SettledMessage
from tests.stream.served_labels import served

CELL = ("home", "click")  # also the order of a scrape: labels by their names, scenario and task

RATES = {1: 0.2, 2: 0.2, 3: 0.4}


class FakeAgents:
    """Version 1 to 3 served, 1,000 labels each; 3 promises twice what it holds."""

    def __init__(self) -> None:
        self.counters = AgentCounters(labels=3_000)
        self._metrics = PartitionMetrics(OnlineMetricsConfig(cohort_labels=100, window_labels=500))
        rng = np.random.default_rng(1)
        for version, score in RATES.items():
            labels = served(np.full(1_000, score), rng.random(1_000) < 0.2, version=version)
            self._metrics.fold(version, SettledMessage({CELL: labels}, 1_000 * version, 0))

    def figures(self):
        return figures([self._metrics])

    def alarms(self):
        return Counter({("search", "click"): 2})


def test_a_bad_publish_shows_beside_the_one_before() -> None:
    body, _ = exposition(registry("agents", lambda: readings(FakeAgents())))
    scrape = Scrape.parse(body.decode())

    def cohort(name: str, which: str) -> float | None:
        return scrape.value(f"freshrank_agents_{name}", which, *CELL)

    assert cohort("cohort_version", "current") == 3
    assert cohort("cohort_version", "previous") == 2
    assert cohort("cohort_rows", "current") == 1_000
    assert 0.8 < cohort("online_calibration_ratio", "previous") < 1.2
    assert 1.6 < cohort("online_calibration_ratio", "current") < 2.4
    assert cohort("cohort_auc_ratio", "current") == 0.5
    assert scrape.value("freshrank_agents_online_rows", *CELL) == 500
    ctr = scrape.value("freshrank_agents_online_ctr_ratio", *CELL)
    assert ctr * 500 == scrape.value("freshrank_agents_online_positives", *CELL)
    assert scrape.value("freshrank_agents_online_auc_ratio", *CELL) == 0.5
    assert scrape.value("freshrank_agents_drift_alarms_total", *CELL) == 0
    assert scrape.value("freshrank_agents_drift_alarms_total", "search", "click") == 2  # a partition that has moved on
    assert scrape.value("freshrank_agents_labels_total") == 3_000


def test_without_labels_there_is_no_ratio() -> None:
    agents = FakeAgents()
    agents._metrics = PartitionMetrics(OnlineMetricsConfig())
    agents._metrics.fold(0, SettledMessage({CELL: served([0.5], [1], close_ms=9)}, 1, 0))  # its window is open yet
    body, _ = exposition(registry("agents", lambda: readings(agents)))
    scrape = Scrape.parse(body.decode())
    assert scrape.value("freshrank_agents_online_rows", *CELL) == 0
    assert scrape.value("freshrank_agents_online_ctr_ratio", *CELL) is None
    assert scrape.value("freshrank_agents_online_auc_ratio", *CELL) is None
