"""One request from its bytes to its answer, and what goes on beside it: impression, freshness, counters."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ranker.api import (
    DegradedReason,
    FeedbackResponse,
    FreshnessResponse,
    HealthResponse,
    ModelResponse,
    RankResponse,
)
from ranker.event_log import EventLog
from ranker.exceptions import BufferFullError, RequestError
from ranker.follow import SnapshotFollower
from ranker.freshness import FreshnessRecorder
from ranker.live import LiveModel
from ranker.rank import rank, request_columns
from ranker.request import CheckedRequest, RequestDecoder
from ranker.row_fetch import NoRows, RowReader
from ranker.score_shift import ScoreShift
from ranker.sequences import SequenceReader
from ranker.stats import RankerStats
from stream.schema import Sequence
from utility_blender.blend import Blender


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranker:
    """The parts of a ranker, put together; every method answers one kind of HTTP request, for one event loop."""

    decoder: RequestDecoder
    sequences: SequenceReader
    follower: SnapshotFollower
    blender: Blender
    log: EventLog
    stats: RankerStats
    freshness: FreshnessRecorder
    score_shift: ScoreShift
    now_ms: Callable[[], int]
    """Wall clock, ms since the Unix epoch."""
    elapsed_s: Callable[[], float]
    """A clock that never goes back, in seconds, for durations."""
    new_request_id: Callable[[], str]
    """Returns an id nobody else has."""
    rows: RowReader = field(default_factory=NoRows)
    """Finds rows that are not in memory, of models that have such."""
    last_weights: dict[str, dict[str, float]] = field(default_factory=dict)
    """By scenario, the weights of its last ranking by task; where it explored, those drawn around. For the metrics."""

    async def rank(self, body: bytes) -> RankResponse:
        """Answers `POST /v1/rank`, whatever else is down.

        Raises:
            RequestError: the request cannot be answered as it stands.
        """
        with self.follower.right_of_way:
            return await self._rank(body)

    async def _rank(self, body: bytes) -> RankResponse:
        start_s = self.elapsed_s()
        try:
            request = self.decoder.rank(body)
        except RequestError:
            self.stats.requests_refused += 1
            raise
        sequence, has_no_sequence = await self.sequences.read(request.user_id)
        live, now_ms = self.follower.live, self.now_ms()
        scores_NT, lacks_rows = None, False
        if live is not None and live.manifest.cold_rows is not None:
            scores_NT, lacks_rows = await self._scores(live, request, sequence, now_ms)
        response, impression = rank(
            request,
            sequence,
            live,
            self.blender,
            request_id=self.new_request_id(),
            now_ms=now_ms,
            scores_NT=scores_NT,
        )
        if impression.served is not None and self.follower.lane == "canary":
            impression.served.lane = self.follower.lane
        if response.snapshot:
            self.stats.unknown_scenario += response.scenario != request.scenario
            self.freshness.used(response.snapshot, now_ms)
            columns = request_columns(request, sequence, now_ms)
            self.follower.recent_columns = columns
            if self.follower.churn is not None:
                self.follower.churn.saw(columns, request.listed_scenario)
        beside: dict[DegradedReason, bool] = {
            "sequence": has_no_sequence,
            "rows": lacks_rows,
            "snapshots": not self.follower.is_current,
            "impressions": not self.log.impression(impression),
        }
        response.degraded += [reason for reason, is_so in beside.items() if is_so]
        self.stats.requests += 1
        self.stats.candidates += len(request.item_ids)
        self.stats.explored += response.explore
        if impression.served is not None:
            self.last_weights[request.listed_scenario] = impression.served.center or impression.served.weights
        if response.explore:
            self.score_shift.saw(request.listed_scenario, impression)
        if response.fallback:
            self.stats.blender_fallback[response.fallback] += 1
        self.stats.degraded.update(response.degraded)
        self.stats.latency_ms.observe((self.elapsed_s() - start_s) * 1000)
        return response

    async def _scores(
        self, live: LiveModel, request: CheckedRequest, sequence: Sequence, now_ms: int
    ) -> tuple[NDArray[np.float32], bool]:
        """Returns the scores of a model some of whose rows are not in memory, and whether it had to do without some."""
        looked = live.model.look_up(live.model.encode(request_columns(request, sequence, now_ms)))
        keys_N = live.model.keys_without_row(looked)
        if not len(keys_N):
            return live.model.score_rows(looked), False
        rows, is_degraded = await self.rows.fetch(live, keys_N)
        return live.model.score_rows(looked, rows), is_degraded

    def feedback(self, body: bytes) -> FeedbackResponse:
        """Answers `POST /v1/feedback`.

        Raises:
            RequestError: nothing was taken; the text says why.
            BufferFullError: not all actions were taken; sending all of them again is safe if they carry `ts`.
        """
        try:
            actions = self.decoder.feedback(body, self.now_ms())
        except RequestError:
            self.stats.feedback_refused += 1
            raise
        num_taken = self.log.feedback(actions)
        if num_taken < len(actions):
            raise BufferFullError(
                f"{num_taken} of {len(actions)} actions were taken, the log's buffer is full: try again"
            )
        return FeedbackResponse(accepted=num_taken)

    def health(self) -> HealthResponse:
        """Answers `GET /v1/health`: it answers, so it is ready, but for what it has to do without."""
        beside: dict[DegradedReason, bool] = {
            "no_model": self.follower.live is None,
            "snapshots": not self.follower.is_current,
            "sequence": self.sequences.is_down,
            "rows": self.rows.is_down,
            "impressions": self.log.is_full,
        }
        degraded = [reason for reason, is_so in beside.items() if is_so]
        return HealthResponse(status="degraded" if degraded else "ready", degraded=degraded)

    def model(self) -> ModelResponse:
        """Answers `GET /v1/model`."""
        manifest = self.follower.live.manifest if self.follower.live else None
        fresh = self.freshness.summary()
        return ModelResponse(
            version=manifest.version if manifest else 0,
            kind=manifest.kind if manifest else None,
            step=manifest.step if manifest else None,
            model_age_ms=self.now_ms() - manifest.watermark_ms if manifest else None,
            blender=self.blender.version,
            blender_share=self.blender.lanes.share,
            exploring=self.blender.is_exploring,
            freshness=FreshnessResponse(p50_ms=fresh.p50_ms, p99_ms=fresh.p99_ms, n=fresh.n),
            counters=self.stats.counters(),
        )
