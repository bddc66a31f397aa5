"""Writes the generated parts of the documents anew from the code: `python -m freshrank.docs`; `--check` only compares.

A generated part stands between two comment lines that name it; everything else in the files is written by hand.
"""

import argparse
import ast
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click

from freshrank.config import ENVIRONMENT, SECTIONS
from freshrank.exits import EXIT_CODES
from freshrank.field_docs import FieldDoc, field_docs
from freshrank.metrics import metric_table
from stream.schema import Feedback, Impression, SchemaConfig

ROOT = Path(__file__).parents[1]
PACKAGES = ("stream", "model", "utility_blender", "ranker", "sim", "freshrank")


class Part(NamedTuple):
    """One generated part: the file and name it stands under, and what writes it."""

    file: str
    name: str
    write: Callable[[], str]


class Titled(NamedTuple):
    """A dataclass or Struct and the path its fields have in a file or message."""

    path: str
    cls: type


def settings() -> str:
    """Returns a heading and a table for each section of the configuration."""
    return "\n".join(
        _section(title, f"### `{title.path}`" if title.path else "### Top of the file") for title in config_classes()
    )


def config_classes() -> Iterator[Titled]:
    """Yields every dataclass a configuration file is built from, each once, in the order of the file."""
    roots = [Titled("", SchemaConfig)]
    for section in SECTIONS:
        module, _, name = section.owner.partition(":")
        roots.append(Titled(section.name, getattr(importlib.import_module(module), name)))
    return _with_inner(roots)


def event_classes() -> Iterator[Titled]:
    """Yields every Struct an event is made of, each once."""
    return _with_inner([Titled("impression", Impression), Titled("feedback", Feedback)])


def undocumented() -> list[str]:
    """Returns what nobody has said the meaning of: `module.Class.field` of settings and messages, names of metrics."""
    fields = [
        f"{title.cls.__module__}.{title.cls.__qualname__}.{doc.name}"
        for title in (*config_classes(), *event_classes(), *http_classes())
        for doc in field_docs(title.cls)
        if not doc.text
    ]
    return fields + [row.name for row in metric_table() if not row.help]


def environment() -> str:
    """Returns the table of environment variables."""
    rows = ((f"`{row.variable}`", f"`{'.'.join(row.setting)}`", row.help) for row in ENVIRONMENT)
    return _table(("variable", "fills", "meaning"), rows)


def event_fields() -> str:
    """Returns a heading and a table for each object of an event."""
    return "\n".join(_section(title, f"### `{title.path}`") for title in event_classes())


def http_classes() -> Iterator[Titled]:
    """Yields every Struct the HTTP service takes or answers, each once."""
    from ranker import api

    roots = (
        *(api.RankRequest, api.RankResponse, api.FeedbackRequest, api.FeedbackResponse),
        *(api.HealthResponse, api.ModelResponse, api.ErrorResponse),
    )
    return _with_inner(Titled(root.__name__, root) for root in roots)


def http_fields() -> str:
    """Returns a heading and a table for each object of the HTTP service."""
    return "\n".join(_section(title, f"### `{title.cls.__name__}`") for title in http_classes())


def metrics() -> str:
    """Returns the table of all metrics."""
    rows = (
        (f"`{row.name}`", row.type, ", ".join(f"`{label}`" for label in row.labels), row.help) for row in metric_table()
    )
    return _table(("metric", "type", "labels", "meaning"), rows)


def commands() -> str:
    """Returns the help of every command, as the command line prints it."""
    from freshrank.cli import main

    return "\n".join(f"### {path}\n\n```text\n{text}\n```\n" for path, text in _help(main, "freshrank", None))


def exit_codes() -> str:
    """Returns the table of exit codes."""
    rows = ((str(int(row.code)), row.meaning, row.next_move) for row in EXIT_CODES)
    return _table(("code", "meaning", "next move"), rows)


def tree() -> str:
    """Returns the files of the six packages with the first line of what each says about itself."""
    lines = []
    for package in PACKAGES:
        lines.append(f"{package + '/':24}{_first_line(ROOT / package / '__init__.py')}")
        files = sorted(path for path in (ROOT / package).glob("*.py") if path.name != "__init__.py")
        lines += [f"  {path.name:22}{_first_line(path)}" for path in files]
    return "\n".join(("```text", *lines, "```"))


PARTS = (
    Part("docs/configuration.md", "settings", settings),
    Part("docs/configuration.md", "environment", environment),
    Part("docs/events.md", "event fields", event_fields),
    Part("docs/http.md", "http fields", http_fields),
    Part("docs/metrics.md", "metrics", metrics),
    Part("docs/cli.md", "exit codes", exit_codes),
    Part("docs/cli.md", "commands", commands),
    Part("README.md", "tree", tree),
)


def insert(text: str, name: str, part: str) -> str:
    r"""Returns a document with the named part replaced.

    >>> insert("<!-- generated: x -->\nold\n<!-- end: x -->", "x", "new")
    '<!-- generated: x -->\nnew\n<!-- end: x -->'

    Raises:
        ValueError: the document has no place for it, or several.
    """
    begin, end = f"<!-- generated: {name} -->\n", f"<!-- end: {name} -->"
    if text.count(begin) != 1 or text.count(end) != 1:
        raise ValueError(f"{name}: the document must hold the lines {begin.strip()} and {end}, once each")
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(end)
    return f"{before}{begin}{part.strip()}\n{end}{after}"


def stale(root: Path = ROOT) -> dict[Path, str]:
    """Returns, for each document that is not what the code says, what it should be."""
    texts = {file: (root / file).read_text(encoding="utf-8") for file in dict.fromkeys(part.file for part in PARTS)}
    fresh = dict(texts)
    for part in PARTS:
        fresh[part.file] = insert(fresh[part.file], part.name, part.write())
    return {root / file: fresh[file] for file in texts if fresh[file] != texts[file]}


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes, or with `--check` compares, the generated parts. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m freshrank.docs", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if a document is out of date")
    check = parser.parse_args(arguments).check
    outdated = stale()
    for path, text in outdated.items():
        if check:
            print(f"{path.relative_to(ROOT)} is not what the code says; run `make docs`", file=sys.stderr)
        else:
            path.write_text(text, encoding="utf-8")
            print(f"wrote {path.relative_to(ROOT)}")
    return 1 if check and outdated else 0


def _with_inner(roots: Iterable[Titled]) -> Iterator[Titled]:
    seen: set[type] = set()
    waiting = list(roots)
    while waiting:
        title = waiting.pop(0)
        if title.cls in seen:
            continue
        seen.add(title.cls)
        yield title
        inner = [Titled(_path(title.path, doc), doc.inner) for doc in field_docs(title.cls) if doc.inner is not None]
        waiting[:0] = inner


def _path(parent: str, doc: FieldDoc) -> str:
    path = f"{parent}.{doc.name}" if parent else doc.name
    return f"{path}.<name>" if doc.is_mapping else path


def _section(title: Titled, heading: str) -> str:
    rows = ((f"`{doc.name}`", doc.kind, _default(doc), doc.text) for doc in field_docs(title.cls))
    about = " ".join((inspect.getdoc(title.cls) or "").split())
    return f"{heading}\n\n{about}\n\n{_table(('field', 'value', 'default', 'meaning'), rows)}"


def _default(doc: FieldDoc) -> str:
    if doc.default is None:
        return "*required*"
    return doc.default if doc.default == "see below" else f"`{doc.default}`"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *([re.sub(r"\s*\|\s*", r" \\| ", cell) for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _first_line(path: Path) -> str:
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")[0]


def _help(command: click.Command, path: str, parent: click.Context | None) -> Iterator[tuple[str, str]]:
    context: Any = click.Context(command, parent=parent, info_name=path if parent is None else command.name)
    context.terminal_width = context.max_content_width = 100
    yield path, command.get_help(context)
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            if inner is not None and not inner.hidden:
                yield from _help(inner, f"{path} {name}", context)


if __name__ == "__main__":
    sys.exit(main())
