"""The page that `demo.py` writes: one HTML file with its styles and pictures inside, for light and dark screens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from modeling_cllm4rec.evaluation.report import EvaluationReport
from modeling_cllm4rec.evaluation.verdicts import short

Curve = Sequence[tuple[int, float]]
"""(epoch from 1, value) of each validation."""


@dataclass(frozen=True)
class Shown:
    """An item in a list of the page.

    Attributes:
        title: its title; item: its id.
        score: of the model that recommends it, None in a history.
        held_out: whether it is one of the user's test interactions, which no model has seen.
    """

    title: str
    item: str
    score: float | None = None
    held_out: bool = False


@dataclass(frozen=True)
class ShownUser:
    """A user of the page: last items of the training history, oldest first, and the list of each model."""

    user: str
    history: Sequence[Shown]
    lists: Mapping[str, Sequence[Shown]]


@dataclass(frozen=True)
class Found:
    """A query in words, and the items that a model found for it."""

    query: str
    items: Sequence[Shown]


@dataclass(frozen=True)
class DemoPage:
    """The content of the page.

    Attributes:
        counts: what -> how many, of the data.
        steps: (what was done, seconds).
        reports: row of the table -> its evaluation; the rows have the same metrics.
        models: names of the rows that are models; all others are baselines.
        about: row of the table -> description in a few words.
        verdicts: comparisons in sentences.
        metric: the metric that is drawn, and that orders the table.
        curves: model -> its validations; curves_metric: model -> the metric of its curve.
        users, found: recommendations and searches.
        folders: (path, what it holds).
        commands: (what for, command line).
    """

    counts: Mapping[str, int]
    steps: Sequence[tuple[str, float]]
    reports: Mapping[str, EvaluationReport]
    models: Sequence[str]
    about: Mapping[str, str]
    verdicts: Sequence[str]
    metric: str
    curves: Mapping[str, Curve]
    curves_metric: Mapping[str, str]
    users: Sequence[ShownUser]
    found: Sequence[Found]
    folders: Sequence[tuple[str, str]]
    commands: Sequence[tuple[str, str]]


STYLE = """
:root { color-scheme: light dark; --ink: #1c1917; --soft: #57534e; --line: #e2ddd8; --paper: #faf8f5; --card: #ffffff;
  --accent: #0f766e; --tint: #e6f2f0; --grey: #8a837c; }
@media (prefers-color-scheme: dark) { :root { --ink: #f5f3f0; --soft: #b5aea7; --line: #3a3632; --paper: #171513;
  --card: #211e1b; --accent: #5eead4; --tint: #16302d; --grey: #9a938c; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.8rem; line-height: 1.2; margin: 0 0 .5rem; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .5rem; }
h3 { font-size: 1rem; margin: 0 0 .4rem; overflow-wrap: anywhere; }
p { margin: .5rem 0; max-width: 46rem; }
.soft, .id, figcaption { color: var(--soft); }
.id { font-size: .82rem; overflow-wrap: anywhere; }
.facts { display: flex; flex-wrap: wrap; gap: .6rem; margin: 1rem 0; padding: 0; list-style: none; }
.facts li { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .5rem .9rem; }
.facts b { display: block; font-size: 1.15rem; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .92rem; }
th, td { text-align: right; padding: .45rem .6rem; border-bottom: 1px solid var(--line); vertical-align: top; }
th:first-child, td:first-child { text-align: left; }
td small { display: block; color: var(--soft); white-space: nowrap; }
td:first-child small { white-space: normal; }
tr.model td { background: var(--tint); }
tr.model td:first-child { font-weight: 700; color: var(--accent); }
tr.model td small { font-weight: 400; }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 17rem), 1fr)); gap: 1rem; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: .9rem 1rem; min-width: 0; }
.user { margin: 1rem 0 2rem; }
ol, ul.plain { margin: 0; padding-left: 1.3rem; }
ul.plain { list-style: none; padding: 0; }
ol li, ul.plain li { margin: .3rem 0; overflow-wrap: anywhere; }
.hit { display: inline-block; background: var(--tint); color: var(--accent); border-radius: 99px; padding: 0 .5rem;
  font-size: .78rem; }
figure { margin: 1rem 0; }
svg { display: block; width: 100%; height: auto; max-width: 46rem; }
svg text { fill: var(--ink); font: 13px system-ui, sans-serif; }
svg .soft { fill: var(--soft); }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .7rem .9rem; margin: .3rem 0 1rem;
  white-space: pre-wrap; overflow-wrap: anywhere; font: .86rem/1.5 ui-monospace, monospace; }
code { font: .88em ui-monospace, monospace; overflow-wrap: anywhere; }
"""


def render(page: DemoPage) -> str:
    """Return the page as HTML. Every text of the data is escaped, and nothing is loaded from elsewhere."""
    facts = "".join(f"<li><b>{number:,}</b>{escape(what)}</li>" for what, number in page.counts.items())
    seconds = sum(spent for _, spent in page.steps)
    parts = [
        "<h1>Both recommenders, end to end</h1>",
        "<p>A data set was generated, a small language model was trained on its texts, and CLLM4Rec and LC-Rec were trained on "
        f"top of it, without any download, in {_duration(seconds)}. Users, items and reviews are made up: the numbers show that "
        "everything works, not how good the systems are on real data.</p>",
        f'<ul class="facts">{facts}</ul>',
        "<h2>Accuracy on held-out interactions</h2>",
        f"<p>{escape(next(iter(page.reports.values())).protocol_line)}. Below a mean is its 95% interval over users.</p>",
        _bars(page),
        f'<div class="wide">{_table(page)}</div>',
        *(f"<p>{escape(sentence)}</p>" for sentence in page.verdicts),
        "<h2>Recommendations</h2>",
        "<p>The last items of a user’s training history, and the best items of each model. "
        '<span class="hit">held out</span> marks an item that the user did choose, in the test split that no model has seen.</p>',
        *(_user(one) for one in page.users),
        "<h2>Search in words</h2>",
        "<p>LC-Rec answers a query without any history. It knows only the words of this small world.</p>",
        f'<div class="columns">{"".join(_found(one) for one in page.found)}</div>',
        "<h2>Training</h2>",
        _curves(page),
        f'<div class="wide">{_steps(page.steps)}</div>',
        "<h2>What is on the disk</h2>",
        '<ul class="plain">',
        *(f"<li><code>{escape(path)}</code> {escape(what)}</li>" for path, what in page.folders),
        "</ul>",
        "<h2>Go on</h2>",
        *(f"<p>{escape(purpose)}</p><pre>{escape(command)}</pre>" for purpose, command in page.commands),
    ]
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>cllm4rec: the demo’s report</title><style>{STYLE}</style>"
    )
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body><main>\n' + "\n".join(parts) + "\n</main></body></html>\n"
    )


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} seconds" if seconds < 120 else f"{seconds / 60:.1f} minutes"


def _ordered(page: DemoPage) -> list[tuple[str, EvaluationReport]]:
    return sorted(page.reports.items(), key=lambda row: row[1].metrics[page.metric])


def _table(page: DemoPage) -> str:
    """Return the table of metrics, the best row last, models marked."""
    metrics = list(next(iter(page.reports.values())).metrics)
    rows = ["<tr><th>model</th>" + "".join(f"<th>{escape(metric)}</th>" for metric in metrics) + "</tr>"]
    for name, report in _ordered(page):
        cells = [f"{escape(name)}<small>{escape(page.about.get(name, ''))}</small>"]
        for metric in metrics:
            ends = report.intervals.get(metric)
            interval = f"<small>{short(ends[0])} to {short(ends[1])}</small>" if ends else ""
            cells.append(short(report.metrics[metric]) + interval)
        kind = ' class="model"' if name in page.models else ""
        rows.append(f"<tr{kind}>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    return f"<table>{''.join(rows)}</table>"


def _bars(page: DemoPage) -> str:
    """Draw a metric of all rows as bars, with intervals."""
    rows = _ordered(page)[::-1]
    left, width, height = 190, 640, 30
    most = max(max(report.metrics[page.metric], *report.intervals.get(page.metric, (0, 0))) for _, report in rows) or 1.0
    scale = (width - left - 60) / most
    marks = []
    for number, (name, report) in enumerate(rows):
        middle, value = number * height + height / 2, report.metrics[page.metric]
        colour = "var(--accent)" if name in page.models else "var(--grey)"
        marks.append(f'<text x="{left - 10}" y="{middle + 4:.0f}" text-anchor="end">{escape(name)}</text>')
        marks.append(
            f'<rect x="{left}" y="{middle - 9:.0f}" width="{value * scale:.1f}" height="18" rx="3" style="fill: {colour}"/>'
        )
        end = value
        if page.metric in report.intervals:
            low, end = report.intervals[page.metric]
            ends = f'x1="{left + low * scale:.1f}" x2="{left + end * scale:.1f}"'
            marks.append(f'<line {ends} y1="{middle:.0f}" y2="{middle:.0f}" style="stroke: var(--ink); stroke-width: 1.5"/>')
        marks.append(f'<text x="{left + max(value, end) * scale + 6:.1f}" y="{middle + 4:.0f}">{short(value)}</text>')
    label = f"{escape(page.metric)} of all rows of the table"
    picture = f'<svg viewBox="0 0 {width} {len(rows) * height}" role="img" aria-label="{label}">'
    caption = f"<figcaption>{escape(page.metric)}, with 95% intervals; models in colour, baselines in grey</figcaption>"
    return f"<figure>{picture}{''.join(marks)}</svg>{caption}</figure>"


def _user(one: ShownUser) -> str:
    cards = [f'<div class="card"><h3>chose before</h3><ul class="plain">{_items(one.history)}</ul></div>']
    cards += [f'<div class="card"><h3>{escape(name)}</h3><ol>{_items(items)}</ol></div>' for name, items in one.lists.items()]
    return f'<div class="user"><h3>User <code>{escape(one.user)}</code></h3><div class="columns">{"".join(cards)}</div></div>'


def _found(one: Found) -> str:
    return f'<div class="card"><h3>“{escape(one.query)}”</h3><ol>{_items(one.items)}</ol></div>'


def _items(items: Sequence[Shown]) -> str:
    lines = []
    for one in items:
        score = "" if one.score is None else f", {one.score:.2f}"
        hit = ' <span class="hit">held out</span>' if one.held_out else ""
        lines.append(f'<li>{escape(one.title)}{hit} <span class="id">{escape(one.item)}{score}</span></li>')
    return "".join(lines)


def _curves(page: DemoPage) -> str:
    """Draw the validation metric of each model by epoch."""
    drawn = {name: curve for name, curve in page.curves.items() if curve}
    if not drawn:
        return ""
    left, top, width, height = 46, 12, 640, 250
    last = max(epoch for curve in drawn.values() for epoch, _ in curve)
    most = max(value for curve in drawn.values() for _, value in curve) or 1.0
    right, bottom = width - 24, height - 44

    def place(epoch: float, value: float) -> tuple[float, float]:
        return left + (right - left) * epoch / last, bottom - (bottom - top) * value / most

    marks = []
    for part in (0.0, 0.5, 1.0):
        _, y = place(0, most * part)
        marks.append(f'<line x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" style="stroke: var(--line)"/>')
        marks.append(f'<text class="soft" x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{most * part:.2f}</text>')
    for epoch in sorted({1, last, *(epoch for curve in drawn.values() for epoch, _ in curve)}):
        marks.append(f'<text class="soft" x="{place(epoch, 0)[0]:.1f}" y="{bottom + 18}" text-anchor="middle">{epoch}</text>')
    marks.append(f'<text class="soft" x="{(left + right) / 2:.0f}" y="{height - 6}" text-anchor="middle">epoch</text>')
    for (name, curve), dashes in zip(drawn.items(), ("none", "6 4", "2 3"), strict=False):
        points = [place(*point) for point in curve]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        style = f"fill: none; stroke: var(--accent); stroke-width: 2.5; stroke-dasharray: {dashes}"
        marks.append(f'<polyline points="{line}" style="{style}"/>')
        marks += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" style="fill: var(--accent)"/>' for x, y in points]
        x, y = points[-1]
        label = escape(f"{name}, {page.curves_metric[name]}")
        label_y = y + 24 if y < top + 30 else y - 10
        marks.append(f'<text x="{min(x, right):.1f}" y="{label_y:.1f}" text-anchor="end">{label}</text>')
    picture = f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="Validation metrics by epoch">'
    return f"<figure>{picture}{''.join(marks)}</svg><figcaption>Validation by epoch; the best epoch is kept</figcaption></figure>"


def _steps(steps: Sequence[tuple[str, float]]) -> str:
    rows = ["<tr><th>step</th><th>seconds</th></tr>"]
    rows += [f"<tr><td>{escape(what)}</td><td>{seconds:.0f}</td></tr>" for what, seconds in steps]
    return f"<table>{''.join(rows)}</table>"
