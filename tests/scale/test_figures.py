"""What the drill counts: failed requests and how long they failed, late labels, and the name server's answers."""

import socket
import struct
from pathlib import Path

import pyarrow as pa
import pytest

from freshrank.config import load_config
from stream.log import Message
from stream.schema import KINDS
from tests.drills.load import FEEDBACK, RANK, Reply
from tests.scale.labels import from_messages
from tests.scale.names import NameServer, answer
from tests.scale.run import requests

QUERY = struct.pack(">6H", 7, 0x0100, 1, 0, 0, 0) + b"\x06ranker\x00" + struct.pack(">HH", 1, 1)


def test_requests_that_failed_are_counted_by_status_and_time() -> None:
    replies = [
        Reply(RANK, 1.0, 1.01, 200, (), (), "10.0.0.1"),
        Reply(RANK, 2.0, 2.1, 503, (), ()),
        Reply(FEEDBACK, 2.5, 2.6, 0, (), ()),
        Reply(RANK, 3.0, 4.0, 0, (), ()),
        Reply(RANK, 5.0, 5.03, 200, ("no_model",), (), "10.0.0.2"),
        Reply(RANK, 9.0, 9.1, 0, (), ()),
    ]
    found = requests(replies, 0.0, 9.0)
    assert (found["asked"], found["failed"], found["failed_for_s"]) == (4, {"503": 1, "0": 1}, 2.0)
    assert (found["unranked"], found["by_ranker"]) == (1, {"10.0.0.1": 1, "10.0.0.2": 1})
    assert found["p99_ms"] == pytest.approx(30.0, abs=0.5)


def test_labels_are_late_by_what_lies_between_the_earliest_moment_and_the_log() -> None:
    run = load_config(Path("configs/demo.yaml"))  # click: 2 s, grace 1 s, disorder 0.2 s
    kind = {name: number for number, name in enumerate(KINDS)}
    columns = {
        "ts": [10_000, 20_000],
        "kind.click": [[kind["final"], kind["none"]], [kind["final"]]],
        "label.click": [[1, 0], [0]],
        "delay_ms.click": [[500, -1], [-1]],
    }
    table = pa.table(columns)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    found = from_messages(run, "click", [Message("examples", 3, 0, None, sink.getvalue().to_pybytes(), 24_300)])
    assert found.partition_N.tolist() == [3, 3]
    assert found.delay_ms_N.tolist() == [24_300 - 10_500, 24_300 - 23_200]
    assert found.within(24_300, 24_301).figures() == {
        "labels": 2,
        "delayed": 1,
        "p50_ms": (13_800 + 1_100) // 2,
        "longest_ms": 13_800,
    }
    assert found.within(0, 24_300).figures() == {"labels": 0}


def test_a_name_has_all_addresses_and_none_of_another_kind() -> None:
    found = answer(QUERY, ["10.0.0.1", "10.0.0.2"])
    assert struct.unpack_from(">6H", found) == (7, 0x8180, 1, 2, 0, 0)
    assert found[-4:] == bytes([10, 0, 0, 2])
    of_ipv6 = QUERY[:-4] + struct.pack(">HH", 28, 1)
    assert struct.unpack_from(">6H", answer(of_ipv6, ["10.0.0.1"]))[3] == 0


def test_the_name_server_answers_over_udp() -> None:
    server = NameServer("127.0.0.1", 0)
    server.addresses = ["10.0.0.9"]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(10)
        client.sendto(QUERY, ("127.0.0.1", server.port))
        assert client.recv(512) == answer(QUERY, ["10.0.0.9"])
    server.close()
