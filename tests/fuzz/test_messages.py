"""Whatever stands in a topic or in Redis: it is decoded, or refused by the error its reader knows. Nothing else."""

import hashlib
import io
import math
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from freshrank.outcome_rows import decode_outcomes
from freshrank.simulator_door import with_control
from model.examples import ExampleDecoder
from model.exceptions import ExampleError, SnapshotError
from model.features import FeatureEncoder
from model.snapshot import Manifest, decode_manifest, encode_manifest, encode_payload, open_snapshot, payload_sha256
from ranker.exceptions import RequestError
from ranker.request import RequestDecoder, RequestLimits
from ranker.stats import RankerStats
from stream.codec import EventDecoder, decode_sequence
from stream.exceptions import DecodeError
from stream.log import DEAD_LETTER, FEEDBACK, IMPRESSIONS
from stream.schema import Feedback, Impression
from tests.freshrank.test_outcome_rows import SCHEMA as OUTCOME_SCHEMA
from tests.freshrank.test_outcome_rows import drawn, message
from tests.fuzz.mutations import wrong_bytes, wrong_json
from tests.model.example_log import MODEL, slate
from tests.model.example_log import SCHEMA as EXAMPLE_SCHEMA
from tests.model.example_log import encode as encode_examples
from tests.ranker.given import SCHEMA as RANKER_SCHEMA
from tests.ranker.given import body
from tests.stream.cluster import Cluster
from tests.stream.oracle import labels_of
from tests.stream.test_codec import FEEDBACK as FEEDBACK_EVENT
from tests.stream.test_codec import IMPRESSION, SCHEMA
from tests.stream.test_joiner import FINAL, PLAIN, traffic
from tests.utility_blender.some_versions import some_version
from utility_blender.exceptions import BlenderVersionError
from utility_blender.version import decode_version

SEQUENCE = {"item_id": ["i"], "action": ["click"], "ts": [900]}
CHANGE = {"requests_per_s": 3.0}
bounded = settings(
    max_examples=50,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def encoded(good: list[Any]) -> list[bytes]:
    return [msgspec.json.encode(document) for document in good]


class Reader(NamedTuple):
    """What decodes some kind of JSON, what it may raise, and good documents of that kind."""

    read: Callable[[bytes], Any]
    refusal: type[Exception]
    good: list[Any]


def manifest() -> Manifest:
    payload = encode_payload({"a": torch.ones(3)})
    fields: dict[str, Any] = {
        "model": "m", "version": 2, "base_version": 1, "kind": "delta", "step": 3, "created_ms": 4, "watermark_ms": 5,
        "offsets": {0: 7}, "schema_hash": "s", "config_hash": "c", "metrics": {"click": {"all": {"ne": 0.5}}},
        "payload_sha256": payload_sha256(payload), "payload_bytes": len(payload), "epoch": 1, "scenarios": ["home"],
        "tasks": ["click"], "model_config": {"preset": "small"}, "feedback_ms": [1],
        "calibration": {"a": {"b": (1, 0)}},
    }  # fmt: skip
    return Manifest(**fields)


def read_version(body: bytes) -> Any:
    """Decodes a body under a hash that is right: who may write to Redis can make one."""
    return decode_version(hashlib.sha256(body).hexdigest().encode() + b"\n" + body)


def requests() -> RequestDecoder:
    return RequestDecoder(RANKER_SCHEMA, RequestLimits(), RankerStats())


READERS = {
    "impression": Reader(lambda data: EventDecoder(SCHEMA).impression(data), DecodeError, [IMPRESSION]),
    "feedback": Reader(lambda data: EventDecoder(SCHEMA).feedback(data), DecodeError, [FEEDBACK_EVENT]),
    "sequence": Reader(decode_sequence, DecodeError, [SEQUENCE]),
    "rank": Reader(lambda data: requests().rank(data), RequestError, [body()]),
    "actions": Reader(
        lambda data: requests().feedback(data, 1), RequestError, [FEEDBACK_EVENT, [FEEDBACK_EVENT, FEEDBACK_EVENT]]
    ),
    "manifest": Reader(decode_manifest, SnapshotError, [msgspec.json.decode(encode_manifest(manifest()))]),
    "weights": Reader(
        read_version, BlenderVersionError, [msgspec.json.decode(some_version(3).encode().partition(b"\n")[2])]
    ),
}


@pytest.mark.parametrize("kind", READERS)
def test_json_is_decoded_or_refused_by_name(kind: str) -> None:
    reader = READERS[kind]
    for document in reader.good:
        reader.read(msgspec.json.encode(document))

    @bounded
    @given(wrong_json(reader.good) | wrong_bytes(encoded(reader.good)))
    def check(data: bytes) -> None:
        try:
            reader.read(data)
        except reader.refusal as error:
            assert len(str(error).splitlines()) <= 1
            assert len(str(error)) < 2_000

    check()


@bounded
@given(wrong_json([IMPRESSION]))
def test_an_impression_that_is_taken_can_be_learned_from(data: bytes) -> None:
    try:
        impression = EventDecoder(SCHEMA).impression(data)
    except DecodeError:
        return
    columns = [*impression.items.scores.values(), impression.items.utility or [], impression.items.propensity or []]
    assert all(math.isfinite(number) for column in columns for number in column)
    assert {len(column) for column in columns if column} <= {len(impression.items.id)}


def examples() -> list[bytes]:
    rng = np.random.default_rng(0)
    return [encode_examples([slate(rng, 1, num_items=3), slate(rng, 2, num_items=2, with_scores=False)])]


@bounded
@given(wrong_bytes(examples()))
def test_examples_are_decoded_or_refused_by_name(data: bytes) -> None:
    decoder = ExampleDecoder(EXAMPLE_SCHEMA, FeatureEncoder(EXAMPLE_SCHEMA, MODEL.encoding))
    try:
        rows = decoder.decode(data).rows
    except ExampleError:
        return
    assert np.isfinite(rows.weight_BT).all()


@bounded
@given(wrong_bytes([message(drawn(1), drawn(2))]))
def test_outcomes_are_decoded_or_refused_by_name(data: bytes) -> None:
    try:
        decode_outcomes(data, OUTCOME_SCHEMA)
    except ValueError:
        return


@bounded
@given(wrong_bytes([encode_payload({"a": torch.ones(3, 2), "keys": torch.arange(4), "is": torch.ones(2).bool()})]))
def test_payloads_are_decoded_or_refused_by_name(data: bytes) -> None:
    of_data = msgspec.structs.replace(manifest(), payload_sha256=payload_sha256(data), payload_bytes=len(data))
    for claimed in (manifest(), of_data):  # who may write to Redis can make the hash right
        try:
            tensors = open_snapshot(claimed, bytearray(data), schema_hash="s")
        except SnapshotError:
            continue
        assert all(torch.isfinite(tensor).all() for tensor in tensors.values() if tensor.is_floating_point())


@bounded
@given(wrong_json([CHANGE]) | wrong_bytes(encoded([CHANGE])))
def test_orders_for_the_simulator_are_taken_or_refused(data: bytes) -> None:
    taken: list[Any] = []
    statuses: list[str] = []
    app = with_control(lambda *_: [], taken.append)
    environ = {
        "PATH_INFO": "/control", "REQUEST_METHOD": "POST", "HTTP_X_FRESHRANK_CONTROL": "1",
        "CONTENT_LENGTH": str(len(data)), "wsgi.input": io.BytesIO(data),
    }  # fmt: skip
    answer = b"".join(app(environ, lambda status, headers: statuses.append(status[:3])))  # type: ignore[arg-type]
    assert statuses[0] in ("200", "400", "413") and (statuses[0] == "200") == bool(taken)
    assert ("error" in msgspec.json.decode(answer)) == (statuses[0] != "200")
    for change in taken:
        for number in (change.requests_per_s, change.bots_for_s):
            assert number is None or math.isfinite(number)


NOISE = st.tuples(st.sampled_from([IMPRESSIONS, FEEDBACK]), wrong_json([IMPRESSION, FEEDBACK_EVENT]))


@settings(bounded, max_examples=20)
@given(st.lists(NOISE, min_size=1, max_size=6))
def test_between_wrong_messages_nothing_good_is_lost_and_no_wrong_one_is_silent(noise: list[tuple[str, bytes]]) -> None:
    arrivals = traffic(seed=1, num_slates=4)
    cluster = Cluster(FINAL, PLAIN)
    cluster.start()
    for number, (_, event) in enumerate(arrivals):
        cluster.now_ms += 700
        cluster.send(event)
        if number < len(noise):
            cluster.send_bytes(*noise[number], user=event.user_id)
        cluster.turn()
    cluster.settle()
    events = [event for _, event in arrivals]
    shown = [event for event in events if isinstance(event, Impression)]
    done = [event for event in events if isinstance(event, Feedback)]
    names = {event.request_id for event in shown}
    assert Counter({label: n for label, n in cluster.labels().items() if label[0] in names}) == labels_of(
        FINAL, shown, done
    )
    refused = [value for topic, value in noise[: len(arrivals)] if not _is_taken(topic, value)]
    assert sorted(message.value for message in cluster.messages(DEAD_LETTER)) == sorted(refused)


def _is_taken(topic: str, value: bytes) -> bool:
    decoder = EventDecoder(FINAL)
    try:
        decoder.impression(value) if topic == IMPRESSIONS else decoder.feedback(value)
    except DecodeError:
        return False
    return True
