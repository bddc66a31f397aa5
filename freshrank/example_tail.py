"""The newest messages of `examples`: from a broker, a saved or recorded log, or a file of example batches."""

from collections import deque
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from freshrank.log_source import open_folder
from stream.log import EXAMPLES, KafkaConfig, Reader, TopicPartition, topic_name

LAST_MESSAGES = 2_000
"""Messages that are looked at, per partition: each holds at least one slate."""
_POLL_MS = 200


def tail_of_folder(path: Path) -> list[bytes]:
    """Returns the newest messages of a folder, or of an Arrow file as `freshrank replay --examples-out` writes it.

    Raises:
        ValueError: it is neither.
    """
    if path.is_file():
        return _tail_of_file(path)
    if path.is_dir() and not (path / "log.json").exists() and (path / "examples.arrow").is_file():
        return _tail_of_file(path / "examples.arrow")
    source = open_folder(path)
    partitions = range(source.partitions(EXAMPLES))
    return [m.value for number in partitions for m in deque(source.messages(EXAMPLES, number), LAST_MESSAGES)]


def _tail_of_file(path: Path) -> list[bytes]:
    try:
        with pa.memory_map(str(path)) as saved, pa.ipc.open_file(saved) as file:
            messages = []
            for index in range(max(0, file.num_record_batches - LAST_MESSAGES), file.num_record_batches):
                sink = pa.BufferOutputStream()
                with pa.ipc.new_stream(sink, file.schema) as stream:
                    stream.write_batch(file.get_batch(index))
                messages.append(sink.getvalue().to_pybytes())
            return messages
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from error


def tail_of_broker(reader: Reader, kafka: KafkaConfig) -> list[bytes]:
    """Returns the newest messages of the topic, up to where it is now."""
    topic = topic_name(kafka, EXAMPLES)
    places: Sequence[TopicPartition] = [TopicPartition(topic, number) for number in range(reader.num_partitions(topic))]
    begins, ends = reader.begin_offsets(places), reader.end_offsets(places)
    messages = []
    for place in places:
        position = max(begins[place], ends[place] - LAST_MESSAGES)
        reader.assign({place: position})
        while position < ends[place]:
            found = reader.poll(LAST_MESSAGES, _POLL_MS)
            for message in found:
                position = message.offset + 1
                if message.offset < ends[place]:
                    messages.append(message.value)
            # The marks of transactions have offsets too: the last ones are never polled.
            if not found and reader.end_offsets([place])[place] == ends[place]:
                break
    return messages
