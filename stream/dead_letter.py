"""Dead letters: the offending bytes of a message, with where they came from and what is wrong with them."""

from typing import NamedTuple

from stream.log import Message


class DeadLetter(NamedTuple):
    """One message for the topic `dead-letter`."""

    key: bytes | None
    value: bytes
    headers: tuple[tuple[str, bytes], ...]


def dead_letter(message: Message, error: Exception) -> DeadLetter:
    """Returns the dead letter of a message: its own key and bytes; the headers say why and from where.

    >>> letter = dead_letter(Message("feedback", 1, 7, b"u1", b"{"), ValueError("ts: missing"))
    >>> letter.value, dict(letter.headers)["error"], dict(letter.headers)["source_offset"]
    (b'{', b'ts: missing', b'7')
    """
    return DeadLetter(
        message.key,
        message.value,
        (
            ("error", str(error).encode()),
            ("source_topic", message.topic.encode()),
            ("source_partition", str(message.partition).encode()),
            ("source_offset", str(message.offset).encode()),
        ),
    )
