"""The string under a field of a dataclass or msgspec Struct, read from the source: one text for code and docs."""

import ast
import dataclasses
import inspect
import json
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

import msgspec

SCALARS: Mapping[object, str] = {
    str: "text",
    int: "integer",
    float: "number",
    bool: "true or false",
    Path: "path",
    Any: "any",
    msgspec.Raw: "any",
    type(None): "null",
}


class FieldDoc(NamedTuple):
    """One field as a reader sees it."""

    name: str
    kind: str
    """The type in words."""
    default: str | None
    """As in YAML or JSON; None where the field must be given."""
    text: str
    """The string under the field; empty if nobody wrote one."""
    inner: type | None
    """The dataclass or Struct this field holds, alone or in a list or mapping."""
    is_mapping: bool
    """The field maps names of the user's choice to values."""


def field_docs(cls: type) -> list[FieldDoc]:
    """Returns the fields of a dataclass or Struct in order of declaration.

    >>> from stream.schema import FeatureConfig
    >>> [(doc.name, doc.kind, doc.default) for doc in field_docs(FeatureConfig)]
    [('kind', '`categorical` or `numeric`', None), ('many', 'true or false', 'false')]
    """
    hints, texts = typing.get_type_hints(cls), field_texts(cls)
    return [
        FieldDoc(
            name=name,
            kind=kind_text(hints[name]),
            default=default,
            text=texts.get(name, ""),
            inner=inner_class(hints[name]),
            is_mapping=_mapping_value(hints[name]) is not None,
        )
        for name, default in _defaults(cls)
    ]


def field_texts(cls: type) -> dict[str, str]:
    """Returns the string literals that stand right under the fields of a class, by field, on one line each."""
    [tree] = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(tree, ast.ClassDef)
    texts = {}
    for node, below in zip(tree.body, tree.body[1:], strict=False):
        if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)):
            continue
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            texts[node.target.id] = " ".join(str(below.value.value).split())
    return texts


def kind_text(hint: Any) -> str:
    """Returns a type in words for people who write YAML or JSON.

    >>> kind_text(dict[str, list[float]]), kind_text(Literal["wait", "eager"]), kind_text(int | None)
    ('mapping of lists of number', '`wait` or `eager`', 'integer or null')
    """
    origin, args = get_origin(hint), get_args(hint)
    if isinstance(hint, typing.NewType):
        return kind_text(hint.__supertype__)
    if hint in SCALARS:
        return SCALARS[hint]
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in args)
    if origin in (Union, types.UnionType):
        return " or ".join(kind_text(arg) for arg in args)
    if (value := _mapping_value(hint)) is not None:
        return f"mapping of {_plural(kind_text(value))}"
    if origin in (list, tuple) and (origin is list or args[-1] is Ellipsis):
        return f"list of {_plural(kind_text(args[0]))}"
    if origin is tuple:
        return "list: " + ", ".join(kind_text(arg) for arg in args)
    if is_section(hint):
        return "object" if issubclass(hint, msgspec.Struct) else "section"
    raise TypeError(f"{hint}: no words for this type; add them to freshrank.field_docs.kind_text")


def inner_class(hint: Any) -> type | None:
    """Returns the dataclass or Struct inside a type: itself, or what a list, mapping or union holds."""
    if is_section(hint):
        return typing.cast(type, hint)
    return next((inner for inner in map(inner_class, get_args(hint)) if inner is not None), None)


def is_section(hint: object) -> bool:
    """Tells whether a type is a dataclass or Struct, thus has fields of its own."""
    return isinstance(hint, type) and (dataclasses.is_dataclass(hint) or issubclass(hint, msgspec.Struct))


def value_text(value: object) -> str:
    """Returns a default as it would stand in YAML or JSON; that of a section is told by its own table."""
    inner = value.values() if isinstance(value, Mapping) else [value]
    if any(is_section(type(part)) for part in inner):
        return "see below"
    if isinstance(value, Path):
        return str(value)
    return json.dumps(value, ensure_ascii=False)


def _defaults(cls: Any) -> Iterator[tuple[str, str | None]]:
    if issubclass(cls, msgspec.Struct):
        for info in msgspec.structs.fields(cls):
            default = info.default if info.default_factory is msgspec.NODEFAULT else info.default_factory()
            yield info.name, None if info.required else value_text(default)
    else:
        for field in dataclasses.fields(cls):
            default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
            yield field.name, None if default is dataclasses.MISSING else value_text(default)


def _mapping_value(hint: Any) -> Any:
    origin = get_origin(hint)
    return get_args(hint)[1] if isinstance(origin, type) and issubclass(origin, Mapping) else None


def _plural(words: str) -> str:
    head, _, rest = words.partition(" ")
    return f"{head}s {rest}".strip() if head in ("list", "mapping", "section", "object") else words
