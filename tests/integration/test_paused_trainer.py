"""A trainer that was stopped (SIGSTOP) in the middle of a publish, on a real Redis, and another that took over."""

import os
import signal
import subprocess
import sys

import pytest
import torch

from model.store_redis import RedisSnapshotStore
from model.trainer import Trainer
from model.trainer_config import TrainerParts
from tests.integration.publish_child import CONFIG, STORE
from tests.model.example_log import MODEL, SCHEMA

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("step", ["payload", "pointer"])
def test_a_trainer_that_slept_through_a_takeover_publishes_nothing_and_says_so(redis_url: str, step: str) -> None:
    argv = [sys.executable, "-m", "tests.integration.publish_child", redis_url, step]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as child:
        try:
            _, status = os.waitpid(child.pid, os.WUNTRACED)
            assert os.WIFSTOPPED(status)
            store = RedisSnapshotStore(redis_url, CONFIG.model_name, STORE)
            first = store.pointer()
            assert first is not None and first.version == 1
            other = Trainer(SCHEMA, CONFIG, MODEL, now_ms=lambda: 2_000, parts=TrainerParts(store=store))
            with torch.no_grad():
                next(iter(other.learner.trained.parameters.values())).add_(0.25)
            taken_over = other.publish()
            assert taken_over is not None and taken_over.epoch > first.epoch
            payload = bytes(store.payload(taken_over))
            child.send_signal(signal.SIGCONT)
            answer, _ = child.communicate(timeout=60)
        finally:
            child.kill()
    assert answer.startswith(f"overtaken: another trainer publishes model main with epoch {taken_over.epoch}")
    for live in (store.pointer(), store.pointer("stable")):
        assert live is not None and (live.version, live.epoch) == (taken_over.version, taken_over.epoch)
    assert bytes(store.payload(taken_over)) == payload
    assert store.versions() == [1, taken_over.version]
    after = other.publish()
    assert after is not None and after.kind == "delta" and after.base_version == taken_over.version
    store.close()
