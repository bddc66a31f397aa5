"""From versions to teachers: a version teaches once the stable lane serves it, not while it is on trial."""

import logging

from model.calibrator import Pairs
from model.exceptions import StoreUnavailableError
from model.snapshot import Manifest
from model.store import SnapshotStore
from model.trained_model import TrainedModel

logger = logging.getLogger(__name__)


class TeacherReleases:
    """Copies a model when a version of it is published, and lets the copy, or what it served, teach when released."""

    def __init__(self, model: TrainedModel) -> None:
        self._model = model
        self._waiting: dict[int, Pairs] = {}

    def published(self, manifest: Manifest, watermark_ms: int) -> None:
        """Takes note of a version that was just exported: nothing was learned since, so a copy is that version."""
        teacher = self._model.teacher
        if teacher is None:
            return
        if teacher.is_due:
            self._model.take_teacher(manifest.version, watermark_ms)
        self._waiting[manifest.version] = manifest.calibration

    def released(self, version: int) -> None:
        """Lets teach what the stable lane serves, and what it served before."""
        for waiting in sorted(waiting for waiting in self._waiting if waiting <= version):
            self._model.promote_teacher(waiting, self._waiting.pop(waiting))

    def take_up(self, store: SnapshotStore) -> None:
        """Takes note of the versions that a store has, after a restart: their scores come with the log."""
        if self._model.teacher is None:
            return
        try:
            found = [store.manifest(version) for version in store.versions()]
            stable = store.pointer("stable")
        except StoreUnavailableError as error:
            logger.warning("Earlier versions not known, what they served does not teach error=%s", error)
            return
        self._waiting |= {manifest.version: manifest.calibration for manifest in found if manifest is not None}
        if stable is not None:
            self.released(stable.version)
