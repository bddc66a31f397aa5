"""What `freshrank gates` shows: the HTML page, and tables in the terminal. Figures in, text out."""

from collections.abc import Mapping
from html import escape
from typing import Any, TextIO

from rich.console import Console
from rich.table import Column, Table

from freshrank.heat_map import heat_map
from freshrank.report import number, page, table

_EXPLAINED = (
    "Rows are scenarios, and their tasks where a gate is a task's; columns are experts. Both entropies are over log K, "
    "1 is even: a mean can be even although every row is sharp (<code>routed</code>). <code>fixed</code> gives every "
    "row the same unequal weights. Experts have no order of their own: match them before comparing two runs."
)
_WORDS = ("scenario", "task", "routing")
_NUMBERS = ("rows", "entropy of mean", "mean entropy", "max share")


def gates_page(result: Mapping[str, Any]) -> str:
    """Returns the page of what `freshrank.gates.gates_of` returned."""
    body = [
        "<h1>Gates</h1>",
        f'<p class="quiet"><code>{escape(result["architecture"])}</code> at step {result["step"]:,} '
        f"(<code>{escape(result['checkpoint'])}</code>), on its last {result['rows']:,} examples.</p>",
        f'<p class="quiet">{_EXPLAINED}</p>',
    ]
    for gate in result["gates"]:
        rows = [(_head_name(head), [head["mean"].get(name) for name in gate["experts"]]) for head in gate["heads"]]
        body += [
            f"<h2>{escape(gate['gate'])}</h2>",
            f'<div class="charts"><figure>{heat_map(rows, gate["experts"])}</figure></div>',
            table(_WORDS, _NUMBERS, [("", _texts(head), _figures(head)) for head in gate["heads"]]),
            f'<p class="quiet">{escape(_dead(gate))}</p>',
        ]
        if gate["distances"]:
            distances = [
                ("", [found["scenario"], " / ".join(found["tasks"])], [number(found["distance"], 3)])
                for found in gate["distances"]
            ]
            body.append(table(("scenario", "tasks"), ("Jensen-Shannon distance",), distances))
    return page("freshrank gates", body)


def gates_tables(result: Mapping[str, Any], out: TextIO) -> None:
    """Prints a table per gate; H is the entropy over log K."""
    console = Console(file=out)
    for gate in result["gates"]:
        columns = [Column(name, no_wrap=True) for name in ("scenario", "routing")]
        columns += [Column(name, justify="right") for name in ("rows", "H(mean)", "H(rows)")]
        lines = Table(*columns, "mean weights", title=gate["gate"], title_justify="left")
        for head in gate["heads"]:
            means = [f"{name}: {mean:.2f}" for name, mean in head["mean"].items()]
            lines.add_row(_head_name(head), head["routing"], *_figures(head)[:-1], "  ".join(means))
        console.print(lines)
        console.print(_dead(gate))
        for found in gate["distances"]:
            console.print(f"{found['scenario']}: {' / '.join(found['tasks'])} are {found['distance']:.3f} apart")
    console.print(f"{result['architecture']} at step {result['step']:,}, on its last {result['rows']:,} examples")


def _head_name(head: Mapping[str, Any]) -> str:
    return f"{head['scenario']} · {head['task']}" if head["task"] else str(head["scenario"])


def _texts(head: Mapping[str, Any]) -> list[str]:
    return [head["scenario"], head["task"] or "-", head["routing"]]


def _figures(head: Mapping[str, Any]) -> list[str]:
    shares = (head["entropy_of_mean"], head["mean_entropy"], head["max_share"])
    return [f"{head['rows']:,}", *(number(share, 3) for share in shares)]


def _dead(gate: Mapping[str, Any]) -> str:
    if not gate["dead"]:
        return "No dead expert."
    names = [f"{dead['expert']} of {dead['scenario']}" if dead["scenario"] else dead["expert"] for dead in gate["dead"]]
    return f"Dead experts, with less than a tenth of an even weight everywhere: {', '.join(names)}."
