"""The whole circle in one process gives outcomes away as the joiner sends them."""

from collections import Counter

import torch

from freshrank.in_process import InProcessLoop
from model.config import ModelConfig
from model.hinet_config import HiNetConfig
from model.trainer_config import TrainerConfig
from stream.emission import Outcome
from stream.join import JoinConfig
from stream.schema import Feedback, Impression, SchemaConfig, TaskConfig
from tests.stream.build import did, explored, shown
from tests.stream.oracle import deeds_of, outcomes_of

SCHEMA = SchemaConfig(scenarios=("home",), tasks={"click": TaskConfig(action="click", window_ms=5_000)})
SMALL = HiNetConfig(expert_hidden=8, expert_width=4, task_hidden=8, task_width=4, tower=(4,))
WINDOW_MS = 8_000


def test_every_explored_slate_has_its_outcome_once() -> None:
    torch.set_num_threads(1)
    outcomes: list[Outcome] = []
    loop = InProcessLoop(
        SCHEMA,
        JoinConfig(outcome_window_ms=WINDOW_MS),
        ModelConfig(preset="custom", hinet=SMALL),
        TrainerConfig(batch_rows=32),
        start_ms=0,
        on_outcome=outcomes.append,
    )
    impressions: list[Impression] = []
    feedback: list[Feedback] = []
    for number in range(40):
        at_ms = 500 * number
        slate = shown(f"r{number}", "a", "b", at=at_ms)
        impressions.append(explored(slate, SCHEMA.tasks, "c") if number % 2 else slate)
        loop.observe(slate, at_ms)
        for action, delay_ms in (("click", 100), ("share", 200)):
            feedback.append(did(action, at=at_ms + delay_ms, on=f"r{number - number % 7}"))
            loop.observe(feedback[-1], at_ms + delay_ms)
    loop.finish()
    found = Counter((outcome.impression.request_id, deeds_of(outcome)) for outcome in outcomes)
    assert found == outcomes_of(impressions, feedback, WINDOW_MS)
    assert len(found) == 20
    assert any(deeds for _, deeds in found)
