"""The HTML page of a replay, and what pages are made of: one file, no outside assets. Pure: figures in, text out."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from freshrank.charts import Reference, line_chart
from freshrank.field_docs import field_texts
from stream.emission import JoinCounters

_STYLE = """
:root { color-scheme: light; }
body { margin: 0; background: #f7f8fa; color: #1f2933;
       font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 32px 24px 64px; }
h1 { font-size: 26px; margin: 0 0 4px; } h2 { font-size: 19px; margin: 40px 0 12px; }
h3 { font-size: 14px; margin: 0 0 2px; } p { margin: 0 0 12px; } .quiet { color: #52606d; }
.cards { display: flex; flex-wrap: wrap; gap: 12px; margin-top: 20px; }
.card { background: #fff; border: 1px solid #e4e7eb; border-radius: 8px; padding: 12px 18px; min-width: 120px; }
.card b { display: block; font-size: 22px; font-variant-numeric: tabular-nums; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(440px, 1fr)); gap: 12px; }
.charts figure { margin: 0; background: #fff; border: 1px solid #e4e7eb; border-radius: 8px; padding: 14px 16px 6px; }
svg { width: 100%; height: auto; }
table { border-collapse: collapse; background: #fff; border: 1px solid #e4e7eb; border-radius: 8px; width: 100%; }
th, td { padding: 6px 14px; text-align: left; border-top: 1px solid #eef0f3; vertical-align: top; }
th { font-weight: 600; color: #52606d; border-top: 0; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
tr.whole td { font-weight: 600; } tr.zero td { color: #9aa5b1; }
code { font-family: ui-monospace, SFMono-Regular, Menlo, monospace; font-size: 13px; }
@media (max-width: 560px) {
  main { padding: 20px 12px 40px; } .charts { grid-template-columns: minmax(0, 1fr); }
  table, pre { display: block; overflow-x: auto; } th, td { padding: 6px 8px; }
}
"""
_FIGURES = (("auc", "AUC", 4), ("ne", "NE", 4), ("calibration", "calibration", 3))


def replay_page(result: Mapping[str, Any]) -> str:
    """Returns the page of what `freshrank.replay.replay_folder` returned."""
    tasks: Mapping[str, Mapping[str, Any]] = result["tasks"]
    body = [
        "<h1>Replay</h1>",
        f'<p class="quiet"><code>{escape(result["folder"])}</code> in {escape(result["order"])} order · '
        f"configuration <code>{escape(result['config_hash'] or '-')}</code> · "
        f"schema <code>{escape(result['schema_hash'])}</code> · {result['timing']['wall_s']:,.1f} s</p>",
        _cards(result),
        "<h2>Progressive validation</h2>",
        '<p class="quiet">Every slate is scored by the snapshot that is live when it is shown; its labels are learned '
        "afterwards. NE below 1 beats knowing the mean rate; calibration is predicted over observed positives, 1 is "
        "right.</p>",
        _quality_table(tasks),
    ]
    for task in tasks:
        body += [f"<h2>{escape(task)}: over the course of the log</h2>", _charts(task, result["curve"])]
    body += ["<h2>Join</h2>", _join_table(result["join"]), "<h2>Training</h2>", _training_table(result)]
    if result["unknown_fields"]:
        body += ["<h2>Fields that the schema does not know</h2>", _unknown_table(result["unknown_fields"])]
    return page("freshrank replay", body)


def page(title: str, body: Iterable[str]) -> str:
    """Returns an HTML page of some parts, which are markup already."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style></head><body><main>\n" + "\n".join(body) + "\n</main></body></html>\n"
    )


def _cards(result: Mapping[str, Any]) -> str:
    cards = [(f"{result['examples']:,}", "examples"), (f"{result['join']['slates']:,}", "slates")]
    for task, scenarios in result["tasks"].items():
        cards.append((number(scenarios["all"]["auc"], 4), f"AUC {task}"))
        cards.append((number(scenarios["all"]["ne"], 4), f"NE {task}"))
    cards += [(f"{result['steps']:,}", "steps"), (f"{result['snapshots']:,}", "snapshots")]
    cells = (
        f'<div class="card"><b>{escape(value)}</b><span class="quiet">{escape(name)}</span></div>'
        for value, name in cards
    )
    return f'<div class="cards">{"".join(cells)}</div>'


def _quality_table(tasks: Mapping[str, Mapping[str, Any]]) -> str:
    rows = []
    for task, scenarios in tasks.items():
        for scenario, figures in scenarios.items():
            rate = figures["positives"] / figures["n"] if figures["n"] else None
            cells = [f"{figures['n']:,}", f"{figures['positives']:,}", number(rate, 4)]
            cells += [number(figures[name], digits) for name, _, digits in _FIGURES]
            rows.append(("whole" if scenario == "all" else "", [task, scenario], cells))
    names = ("labels", "positives", "rate", *(title for _, title, _ in _FIGURES))
    return table(("task", "scenario"), names, rows)


def _charts(task: str, curve: Sequence[Mapping[str, Any]]) -> str:
    if not curve:
        return '<p class="quiet">No label was learned.</p>'
    x = [point["examples"] for point in curve]
    references = {
        "auc": Reference(y=0.5, text="chance"),
        "ne": Reference(y=1.0, text="the mean rate"),
        "calibration": Reference(y=1.0, text="right"),
    }
    figures = []
    for name, title, _ in _FIGURES:
        series = {
            scenario: [point["tasks"][task].get(scenario, {}).get(name) for point in curve]  # None before it was added
            for scenario in curve[-1]["tasks"][task]
        }
        chart = line_chart(x, series, x_label="examples learned", reference=references[name])
        figures.append(f"<figure><h3>{escape(title)}, sliding window</h3>{chart}</figure>")
    return f'<div class="charts">{"".join(figures)}</div>'


def _join_table(counters: Mapping[str, int]) -> str:
    texts = field_texts(JoinCounters)
    rows = [
        ("" if count else "zero", [f"<code>{escape(name)}</code>", escape(texts.get(name, ""))], [f"{count:,}"])
        for name, count in counters.items()
    ]
    return table(("counter", "what it counts"), ("events",), rows, is_markup=True)


def _training_table(result: Mapping[str, Any]) -> str:
    versions, skew = result["versions"], result["skew"]
    rows = [
        ("steps", f"{result['steps']:,}"),
        ("steps skipped because they were not finite", f"{result['skipped_steps']:,}"),
        *((f"snapshots: {name}", f"{count:,}") for name, count in versions.items()),
        ("mean distance of served and pre-step score", number(skew["mean"], 4)),
        ("examples per second", f"{result['timing']['examples_per_s']:,.0f}"),
    ]
    return table(("what",), ("figure",), [("", [name], [value]) for name, value in rows])


def _unknown_table(fields: Mapping[str, int]) -> str:
    return table(("field",), ("events",), [("", [name], [f"{count:,}"]) for name, count in fields.items()])


def table(
    texts: Sequence[str],
    numbers: Sequence[str],
    rows: Iterable[tuple[str, list[str], list[str]]],
    *,
    is_markup: bool = False,
) -> str:
    """Returns a table: text columns, then right-aligned ones; a row is (class, texts, numbers)."""
    show = str if is_markup else escape
    head = [f"<th>{escape(name)}</th>" for name in texts] + [f'<th class="n">{escape(name)}</th>' for name in numbers]
    lines = []
    for kind, left, right in rows:
        cells = [f"<td>{show(cell)}</td>" for cell in left] + [f'<td class="n">{escape(cell)}</td>' for cell in right]
        lines.append(f'<tr class="{kind}">{"".join(cells)}</tr>')
    return f"<table><thead><tr>{''.join(head)}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def number(value: float | None, digits: int) -> str:
    """Returns a figure as text; a dash where there is none."""
    return "-" if value is None else f"{value:.{digits}f}"
