"""The reference tables of the documents, from what the code declares: settings, messages, metrics, commands, files."""

import ast
import importlib
import inspect
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click

from freshrank.config import ENVIRONMENT, SECTIONS
from freshrank.exits import EXIT_CODES
from freshrank.field_docs import FieldDoc, field_docs, inner_class
from freshrank.metrics import metric_table
from stream.schema import Feedback, Impression, SchemaConfig

ROOT = Path(__file__).parents[1]
PACKAGES = ("stream", "model", "utility_blender", "ranker", "sim", "freshrank")


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
    rows = ((f"`{row.variable}`", f"`{'.'.join(row.setting)}`" if row.setting else "", row.help) for row in ENVIRONMENT)
    return _table(("variable", "fills", "meaning"), rows)


def event_fields() -> str:
    """Returns a heading and a table for each object of an event."""
    return "\n".join(_section(title, f"### `{title.path}`") for title in event_classes())


def http_classes() -> Iterator[Titled]:
    """Yields every Struct the HTTP service takes or answers, each once."""
    from ranker.openapi import ENDPOINTS

    kinds = [inner_class(kind) for endpoint in ENDPOINTS for kind in (endpoint.body, *endpoint.answers.values())]
    return _with_inner(Titled(kind.__name__, kind) for kind in kinds if kind is not None)


def endpoints() -> str:
    """Returns the table of the HTTP service's paths."""
    from ranker.openapi import ENDPOINTS

    rows = []
    for endpoint in ENDPOINTS:
        answers = ", ".join(f"{status} {_struct_name(kind)}".strip() for status, kind in endpoint.answers.items())
        path = f"`{endpoint.method.upper()} {endpoint.path}`"
        rows.append((path, endpoint.summary, _struct_name(endpoint.body), answers))
    return _table(("path", "what it does", "body", "answers"), rows)


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


def figures() -> str:
    """Returns the table of the newest results of the benchmarks, and where they were measured."""
    latest, machine = (ROOT / "benchmarks/results" / f"{name}.json" for name in ("latest", "machine"))
    if not latest.exists():
        return "Not measured yet."
    where = json.loads(machine.read_text())
    versions = ", ".join(f"{name} {version}" for name, version in where["versions"].items())
    rows = []
    for goal, figure in json.loads(latest.read_text()).items():
        low, high = figure["ci"]
        spread = f" ({_figure(low)} to {_figure(high)})" if low < high else ""
        peers = "; ".join(f"{name} {_figure(value)}" for name, value in figure["peers"].items())
        measured = f"**{_figure(figure['value'])}** {figure['unit']}{spread}"
        rows.append((goal, figure["question"], measured, peers, figure.get("note", "")))
    return (
        f"{where['cpu']}, {where['cores']} cores, {where['memory_gib']:.0f} GiB; Python {where['python']}, {versions}; "
        f"commit {where['commit']}, {where['measured'][:10]}.\n\n"
        + _table(("goal", "question", "median (range)", "beside it, in the same run", "note"), rows)
    )


def join_peers() -> str:
    """Returns the table of other stream processors doing the joiner's work, from the newest results."""
    figures = json.loads((ROOT / "benchmarks/results/latest.json").read_text(encoding="utf-8"))
    if "P2 peers" not in figures:
        return "Not measured yet."
    header = (
        "peer", "version", "events/CPU-s", "events/s", "peak MiB", "rows expected",
        "wrong (lost, double, contradictory, wrong)", "exactly once", "note",
    )  # fmt: skip
    rows = []
    for row in figures["P2 peers"]["table"]:
        measured = ["", "", "", "", ""]
        if "events_per_cpu_s" in row:
            low, high = row["events_per_cpu_s_range"]
            spread = f" ({_figure(low)} to {_figure(high)})" if low < high else ""
            classes = ", ".join(str(row[name]) for name in ("lost", "double", "contradictory", "wrong"))
            measured = [
                f"{_figure(row['events_per_cpu_s'])}{spread}",
                _figure(row["events_per_s"]),
                _figure(row["peak_rss_mib"]),
                str(row["expected"]),
                f"{row['rows_wrong']} ({classes})",
            ]
        rows.append((row["peer"], row["version"], *measured, row["exactly_once"], row["note"]))
    return _table(header, rows)


def tree() -> str:
    """Returns the files of the six packages with the first line of what each says about itself."""
    lines = []
    for package in PACKAGES:
        lines.append(f"{package + '/':24}{_first_line(ROOT / package / '__init__.py')}")
        files = sorted(path for path in (ROOT / package).glob("*.py") if path.name != "__init__.py")
        lines += [f"  {path.name:22}{_first_line(path)}" for path in files]
    return "\n".join(("```text", *lines, "```"))


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


def _struct_name(kind: Any) -> str:
    found = inner_class(kind)
    return "" if found is None else f"[`{found.__name__}`](#{found.__name__.lower()})"


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


def _figure(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _help(command: click.Command, path: str, parent: click.Context | None) -> Iterator[tuple[str, str]]:
    # As the command line makes it, or the help would depend on whether that has run before: click keeps its options.
    info_name = path if parent is None else command.name
    context: Any = click.Context(command, parent=parent, info_name=info_name, **command.context_settings)
    context.terminal_width = context.max_content_width = 100
    yield path, command.get_help(context)
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            if inner is not None and not inner.hidden:
                yield from _help(inner, f"{path} {name}", context)
