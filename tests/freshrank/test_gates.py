"""`freshrank gates`: from a checkpoint and a file of examples to tables, JSON and a page."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pytest
import torch
import yaml
from click.testing import CliRunner

from freshrank.cli import main
from freshrank.example_tail import tail_of_broker, tail_of_folder
from freshrank.gates import find_checkpoint, gates_of
from freshrank.gates_page import gates_page
from freshrank.heat_map import heat_map
from model.architectures import NETWORKS
from model.checkpoint import Checkpoint
from model.checkpoint_load import load_latest
from model.config import ModelConfig
from stream.log import EXAMPLES, KafkaConfig, Message, TopicPartition
from tests.model.example_log import MODEL, SCHEMA, new_trainer, partition_log

torch.set_num_threads(1)
MESSAGES = partition_log(0, 40)
GATED = replace(MODEL, hinet=replace(MODEL.network, num_shared_experts=3))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a config, a checkpoint whose shared SEI has a planted dead expert, and its examples."""
    folder = tmp_path_factory.mktemp("gates")
    trainer = new_trainer(checkpoint_dir=folder / "checkpoints", model=GATED)
    for offset, message in enumerate(MESSAGES):
        trainer.train_message(message, 0, offset)
    trainer.flush()
    bank = trainer.learner.trained.net.get_submodule("shared.experts")
    with torch.no_grad():
        bank.in_bias[-1] = -20.0
    assert trainer.checkpoint() is not None
    write_examples(folder / "examples.arrow", MESSAGES)
    settings = msgspec.to_builtins(
        {
            "scenarios": SCHEMA.scenarios,
            "tasks": SCHEMA.tasks,
            "features": SCHEMA.features,
            "model": {
                "preset": "custom",
                "hinet": GATED.network,
                "encoding": {"history_length": 4},
                "embedding": {"width": 4, "admission": {"counter_bits": 14}},
            },
            "checkpoint": {"folder": str(folder / "checkpoints")},
        }
    )
    (folder / "run.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(settings))))
    return folder


def write_examples(path: Path, messages: list[bytes]) -> None:
    tables = [pa.ipc.open_stream(message).read_all() for message in messages]
    with pa.ipc.new_file(str(path), tables[0].schema) as file:
        for table in tables:
            for batch in table.to_batches():
                file.write_batch(batch)


def checkpoint_in(folder: Path) -> Checkpoint:
    checkpoint = load_latest(folder / "checkpoints")
    assert checkpoint is not None
    return checkpoint


def run(folder: Path, *arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(
        main, ["gates", "--config", str(folder / "run.yaml"), "--log-level", "error", *arguments]
    )
    return result.exit_code, result.output


def test_the_command_writes_tables_json_and_a_page(folder: Path, tmp_path: Path) -> None:
    report, figures = tmp_path / "gates.html", tmp_path / "gates.json"
    examples = str(folder / "examples.arrow")
    code, output = run(folder, "--examples", examples, "--report", str(report), "--json", str(figures))
    assert code == 0, output
    result = json.loads(figures.read_text())
    gates = {gate["gate"]: gate for gate in result["gates"]}
    assert set(gates) == {"sei.shared", "sei.own", "san", "cgc"} and result["architecture"] == "hinet"
    assert gates["san"]["experts"] == list(SCHEMA.scenarios)
    assert gates["san"]["heads"][0]["mean"] == {"home": 0.0, "search": 1.0}
    assert gates["sei.shared"]["dead"] == [{"scenario": None, "expert": "2"}]
    for gate in gates.values():
        assert all(sum(head["mean"].values()) == pytest.approx(1.0) for head in gate["heads"])
        assert sum(head["rows"] for head in gate["heads"]) == result["rows"] * (2 if gate["gate"] == "cgc" else 1)
    assert [(h["scenario"], h["task"]) for h in gates["cgc"]["heads"]] == [
        (scenario, task) for scenario in SCHEMA.scenarios for task in SCHEMA.tasks
    ]
    assert {d["scenario"]: d["tasks"] for d in gates["cgc"]["distances"]} == {
        scenario: ["click", "order"] for scenario in SCHEMA.scenarios
    }
    assert "Dead experts, with less than a tenth of an even weight everywhere: 2." in " ".join(output.split())
    page = report.read_text()
    assert page.count("<svg") == 4 and "http" not in page.replace("http://www.w3.org/2000/svg", "")
    assert gates_page(result) == page


def test_figures_are_of_the_last_rows_in_order_of_the_log(folder: Path) -> None:
    def gates(messages: list[bytes], num_rows: int) -> dict[str, Any]:
        return gates_of(SCHEMA, GATED, checkpoint_in(folder), messages, num_rows)

    last = gates(MESSAGES, 30)
    assert last["rows"] == 30 and last == gates(MESSAGES[::-1], 30) == gates(MESSAGES[-20:], 30)
    assert last != gates(MESSAGES[:-5], 30)
    everything = gates(MESSAGES, 10_000)
    assert 30 < everything["rows"] < 10_000


def test_a_folder_with_examples_in_it_is_its_examples(folder: Path) -> None:
    assert tail_of_folder(folder) == tail_of_folder(folder / "examples.arrow")
    assert len(tail_of_folder(folder)) == len(MESSAGES)


class FakeReader:
    """A topic of two partitions; the last offset of each is the mark of a transaction."""

    def __init__(self) -> None:
        self.position: dict[TopicPartition, int] = {}

    def num_partitions(self, topic: str) -> int:
        return 2

    def begin_offsets(self, partitions: list[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(partitions, 3)

    def end_offsets(self, partitions: list[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(partitions, 8)

    def assign(self, positions: dict[TopicPartition, int]) -> None:
        self.position = dict(positions)

    def poll(self, max_messages: int, timeout_ms: int) -> list[Message]:
        [(place, offset)] = self.position.items()
        if offset >= 7:
            return []
        self.position[place] = offset + 1
        return [Message(place.topic, place.partition, offset, None, f"{place.partition}/{offset}".encode(), 0)]


def test_the_brokers_tail_is_all_partitions_up_to_their_ends() -> None:
    messages = tail_of_broker(FakeReader(), KafkaConfig())  # type: ignore[arg-type]  # what of a reader it needs
    assert messages == [f"{number}/{offset}".encode() for number in (0, 1) for offset in range(3, 7)]
    assert EXAMPLES == "examples"


def test_one_checkpoint_can_be_named(folder: Path, tmp_path: Path) -> None:
    name, checkpoint = find_checkpoint(folder / "checkpoints" / "checkpoint-00000001")
    assert name == "checkpoint-00000001" and checkpoint.manifest.step == checkpoint_in(folder).manifest.step
    with pytest.raises(ValueError, match="no whole checkpoint in it"):
        find_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--checkpoint", "{folder}"], "no whole checkpoint in it"),
        (["--report", "{folder}/no/x.html"], "x.html: there is no folder"),
        (["--json", "{folder}/no/x.json"], "x.json: there is no folder"),
        (["--set", "model.hinet.num_shared_experts=2"], "model.network.num_shared_experts: was 3, is 2"),
        (["--examples", "{folder}/run.yaml"], "run.yaml: cannot be read"),
    ],
)
def test_what_cannot_be_is_told_in_one_line(folder: Path, arguments: list[str], sentence: str) -> None:
    given = ["--examples", "{folder}/examples.arrow", *arguments]
    code, output = run(folder, *(argument.format(folder=folder) for argument in given))
    assert code != 0 and sentence in output and len(output.splitlines()) == 1, output


@pytest.mark.parametrize("architecture", [name for name in ("shared_bottom", "star") if name in NETWORKS])
def test_a_network_without_gates_says_so(architecture: str) -> None:
    model = ModelConfig(architecture=architecture, encoding=MODEL.encoding)  # type: ignore[arg-type]  # one of its names
    trainer = new_trainer(model=model)
    for offset, message in enumerate(MESSAGES[:5]):
        trainer.train_message(message, 0, offset)
    trainer.flush()
    checkpoint = trainer._state.checkpoint(version=0, epoch=0, rollback_epoch=0)
    with pytest.raises(ValueError, match=f"model.architecture: {architecture} has no gates between experts"):
        gates_of(SCHEMA, model, checkpoint, MESSAGES[:5], 100)


def test_a_heat_map_has_a_cell_per_value_and_none_where_there_is_none() -> None:
    svg = heat_map([("home <x>", [0.0, 1.0, None]), ("search", [0.25, None, 0.75])], ["a", "b", "c"])
    assert svg.count("<rect") == 4 and "home &lt;x&gt;" in svg
    assert re.findall(r'fill="(#\w+)"/><text[^>]*>([\d.]+)', svg) == [
        ("#ffffff", "0.000"),
        ("#0b7285", "1.000"),
        ("#c2dce0", "0.250"),
        ("#4895a4", "0.750"),
    ]
