"""A trainer in a process of its own that stops at a chosen step: `python -m tests.integration.publish_child URL STEP`.

It publishes a full version, then stops itself (SIGSTOP) just before a step of the next publish. When it is continued it
goes on where it was, and says how that ended.
"""

import os
import signal
import sys

import torch

from model.exceptions import StaleEpochError
from model.payload_view import Payload
from model.snapshot import Manifest
from model.store import StoreConfig
from model.store_redis import RedisSnapshotStore
from model.trainer import Trainer
from model.trainer_config import TrainerConfig, TrainerParts
from tests.model.example_log import MODEL, SCHEMA

CONFIG = TrainerConfig(full_every=100)
STORE = StoreConfig(prefix="test:paused-trainer")


class Pausing(RedisSnapshotStore):
    """A store that stops the process once, before a step of its second publish."""

    def __init__(self, url: str, step: str) -> None:
        super().__init__(url, CONFIG.model_name, STORE)
        self._step = step

    def put(self, manifest: Manifest, payload: Payload) -> None:
        self._reached("payload", manifest)
        super().put(manifest, payload)

    def promote(self, manifest: Manifest, *, release: bool = True) -> bool:
        self._reached("pointer", manifest)
        return super().promote(manifest, release=release)

    def _reached(self, step: str, manifest: Manifest) -> None:
        if step == self._step and manifest.version == 2:
            os.kill(os.getpid(), signal.SIGSTOP)


if __name__ == "__main__":
    torch.set_num_threads(1)
    trainer = Trainer(
        SCHEMA, CONFIG, MODEL, now_ms=lambda: 1_000, parts=TrainerParts(store=Pausing(sys.argv[1], sys.argv[2]))
    )
    trainer.publish()
    with torch.no_grad():
        next(iter(trainer.learner.trained.parameters.values())).add_(0.5)
    try:
        print("published", trainer.publish(), flush=True)
    except StaleEpochError as error:
        print("overtaken:", error, flush=True)
