"""When feedback leaves: on time, late or twice."""

import numpy as np

from sim.config import SimConfig
from sim.delivery import Delivery
from stream.schema import Feedback


def feedback(number: int) -> Feedback:
    return Feedback(f"r{number}", "u1", "i1", "click", ts=1_000 * number, event_id=f"e{number}")


def test_feedback_is_due_at_its_event_time_in_that_order() -> None:
    delivery = Delivery(SimConfig(), np.random.default_rng(1))
    for number in (3, 1, 2):
        delivery.add(feedback(number))
    assert delivery.next_due_ms() == 1_000
    assert [f.event_id for _, f in delivery.due(2_000, 10)] == ["e1", "e2"]
    assert delivery.due(2_999, 10) == []
    assert [f.event_id for _, f in delivery.due(3_000, 10)] == ["e3"]
    assert delivery.next_due_ms() is None


def test_all_of_it_may_be_late_and_twice_with_its_event_time_unchanged() -> None:
    delivery = Delivery(SimConfig(disorder_share=1.0, duplicate_share=1.0, disorder_s=5.0), np.random.default_rng(1))
    for number in range(100):
        delivery.add(feedback(number))
    sent = delivery.due(10**9, 1_000)
    assert len(sent) == 200
    assert delivery.delayed == delivery.duplicated == 100
    assert all(f.ts <= due_ms <= f.ts + 10_000 for due_ms, f in sent)
    assert sorted({f.event_id for _, f in sent}) == sorted(f"e{number}" for number in range(100))


def test_what_could_not_be_sent_stays_due() -> None:
    delivery = Delivery(SimConfig(), np.random.default_rng(1))
    for number in (1, 2):
        delivery.add(feedback(number))
    delivery.give_back(delivery.due(2_000, 10))
    assert [f.event_id for _, f in delivery.due(2_000, 1)] == ["e1"]
    assert len(delivery) == 1
