"""Messages made wrong in every way: bytes changed, cut and doubled; JSON with anything in any place."""

import copy
import json
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

DEEP = 3_000
"""Levels of a nesting that no recursive decoder takes."""
ODD_VALUES: list[Any] = [
    None, True, False, 0, -1, 2**31, 2**53, 2**63 - 1, 2**63, -(2**63), 10**400, 0.5, -0.0, 1e308, -1e308, 1e-320,
    "", " ", "0", "a", "\x00", "\n", "é" * 300, "x" * 100_000, "\U0001f600", "NaN", "-Infinity", "../../etc/passwd",
    [], [[]], [None], [0] * 5_000, ["a", 1, None, {}], {}, {"": {}}, {"id": None}, {"a": {"b": {"c": []}}},
]  # fmt: skip
ODD_TEXTS = [
    b"NaN",
    b"-Infinity",
    b"1e999",
    b'"\\ud800"',
    b"\xff",
    b"[" * DEEP,
    b"[" * DEEP + b"]" * DEEP,
    b"01",
    b"{}{}",
]
_MARK = "here stands what is no JSON"


@st.composite
def wrong_bytes(draw: st.DrawFn, good: list[bytes]) -> bytes:
    """Returns one of the messages with a few changes to its bytes, or bytes that are nothing at all."""
    data = bytearray(draw(st.sampled_from(good)))
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=300))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        to = at + draw(st.integers(1, 40))
        match draw(st.sampled_from(["set", "cut", "double", "insert", "end"])):
            case "set":
                data[at : at + 1] = bytes([draw(st.integers(0, 255))])
            case "cut":
                del data[at:to]
            case "double":
                data[at:at] = data[at:to]
            case "insert":
                data[at:at] = draw(st.binary(min_size=1, max_size=8))
            case "end":
                del data[at:]
    return bytes(data)


@st.composite
def wrong_json(draw: st.DrawFn, good: list[Any]) -> bytes:
    """Returns one of the documents with something odd in one to three places: other values, names, lengths, no JSON."""
    document = copy.deepcopy(draw(st.sampled_from(good)))
    texts: list[bytes] = []
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(document))
        if not places:
            break
        holder, key = draw(st.sampled_from(places))
        match draw(st.sampled_from(["value", "value", "text", "remove", "rename", "double"])):
            case "value":
                odd = draw(st.sampled_from(ODD_VALUES) | st.integers() | st.floats(allow_nan=False) | st.text())
                holder[key] = copy.deepcopy(odd)
            case "text":
                holder[key] = f"{_MARK}{len(texts)}"
                texts.append(draw(st.sampled_from(ODD_TEXTS)))
            case "remove":
                del holder[key]
            case "rename" if isinstance(holder, dict):
                holder[draw(st.text(max_size=5))] = holder.pop(key)
            case "double" if isinstance(holder, list):
                holder.append(copy.deepcopy(holder[key]))
            case _:
                holder[key] = None
    data = json.dumps(document, ensure_ascii=False).encode()  # integers of any size, which msgspec does not write
    for number, text in enumerate(texts):
        data = data.replace(f'"{_MARK}{number}"'.encode(), text)
    return data


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yields every (holder, key) of a document, at most the first three of a list."""
    keys: Any = ()
    if isinstance(value, dict):
        keys = list(value)
    elif isinstance(value, list):
        keys = range(min(3, len(value)))
    for key in keys:
        yield value, key
        yield from _places(value[key])
