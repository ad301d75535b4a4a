"""The report: an HTML file with the verdict, every figure, every short table, and the settings.

It needs nothing beside it, but that of a published run shows the files in ``figures/``, so that git holds them once.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shlex
import struct
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path, PurePosixPath, PureWindowsPath
from string import Template
from typing import Any

import pandas as pd

from analysis.output.entries import Entry, Output
from analysis.output.text import entry, without_constants
from analysis.output.writing import write_text
from analysis.quality.main_table import QualityTable, quality_table
from analysis.records.files import ARCHIVE
from analysis.records.load import Results
from analysis.report.verdict import verdict

NAME = "report.html"
_MAIN = "fid_vs_steps"  # the table and figure that open the report
_FIRST = ("Samples", "Comparison", "Mitigations", "Norms", "Variance", "Spectra")  # sections shown, in this order
_NAMED = 4  # models in the title; more are counted
_INLINE = 40  # rows: longer tables are named only
_OPEN = 12  # rows: longer tables are folded
_LONG = 40  # characters of a text that may wrap
_NUMBER = re.compile(r"[-+]?[\d.]+(e[-+]?\d+)?")
_JOINTS = re.compile(r"([=,])")  # of --out=PATH and of name=PATH,name=PATH
_DENSITY = 0.8  # CSS pixels a pixel of a figure: 7 inches at 150 dpi fill the column
_WIDE = 750  # pixels of a figure that a narrow screen scrolls instead of shrinking


def write_report(results: Results, out: Output) -> Path:
    """Write ``report.html`` into the results folder and return its path."""
    path = results.root / NAME
    write_text(path, build_report(results, out))
    return path


def build_report(results: Results, out: Output) -> str:
    """Return the report of what analyses entered into ``out``, as HTML."""
    sections: dict[str, list[Entry]] = {name: [] for name in _FIRST}
    for item in out.entries:
        if item.name != _MAIN:
            sections.setdefault(item.section, []).append(item)
    sections = {name: items for name, items in sections.items() if items}
    main_figures = [item for item in out.entries if item.frame is None and item.name == _MAIN]
    names = {"main-table": "Main table", **{_anchor(name): name for name in sections}}
    names |= {"how-to-read": "How to read this", "made-with": "How this was made"}
    models = _unique(results, "model")
    template = Template(files("analysis.report").joinpath("report.html").read_text(encoding="utf-8"))
    return template.substitute(
        pictures="'self' file:" if _is_published(out) else "data:",  # what the page may load
        title=escape(f"Exposure bias: {', '.join(models) if len(models) <= _NAMED else f'{len(models)} models'}"),
        summary=escape(_summary(results)),
        verdict="\n".join(f"<li>{escape(sentence)}</li>" for sentence in verdict(results)),
        problems="\n".join(filter(None, (_misfits(results), _problems(results)))),
        contents="\n".join(f'<li><a href="#{anchor}">{escape(name)}</a></li>' for anchor, name in names.items()),
        main="\n".join([_main_table(results.once(quality_table)), *(_figure(item, out) for item in main_figures)]),
        sections="\n".join(_section(name, items, out) for name, items in sections.items()),
        configuration=_configuration(results.run),
    )


def _unique(results: Results, name: str) -> list[str]:
    return [str(value) for value in dict.fromkeys(record.cell[name] for record in results.cells)]


def _summary(results: Results) -> str:
    models, samplers = (", ".join(_unique(results, name)) for name in ("model", "sampler"))
    counts = ", ".join(sorted(_unique(results, "steps"), key=int))
    return f"{models}; {samplers} at {counts} steps; {results.account()}."


def _anchor(section: str) -> str:
    return "section-" + (re.sub(r"[^a-z0-9]+", "-", section.lower()).strip("-") or "other")


def _misfits(results: Results) -> str:
    """Return a box that names models whose description does not fit; nothing where all do."""
    return _box(
        "misfits", "What does not fit its description", [f"{model}: {text}" for model, text in results.misfits.items()],
        "The slope is that of the true noise on the predicted one, and 1 for every network"
        " that is rightly described. Prediction, schedule, T, rescale_timesteps or the range of the images may be"
        " another, which <code>python -m bench.models.inspect</code> tells. No comparison below has these models.",
    )  # fmt: skip


def _problems(results: Results) -> str:
    """Return a box that names what could not be read, relative to the folder; nothing where all is sound."""
    lines = [line.replace(f"{results.root}{os.sep}", "") for line in results.problems]
    return _box(
        "problems", "What was left out, and why", lines, "Everything below is drawn from the records that are sound."
    )


def _box(anchor: str, title: str, lines: Sequence[str], text: str) -> str:
    """Return a list of what is wrong, and below it a text, which may be HTML; nothing without lines."""
    items = "\n".join(f"<li>{escape(line)}</li>" for line in lines)
    return (
        (
            f'<section class="problems" aria-labelledby="{anchor}">\n<h2 id="{anchor}">{title}</h2>\n'
            f"<ul>\n{items}\n</ul>\n<p>{text}</p>\n</section>"
        )
        if lines
        else ""
    )


def _main_table(quality: QualityTable | None) -> str:
    """Return the table of Frechet distances, bold for every entry not told from the best of its column."""
    if quality is None:
        return "<p>No Frechet distance was computed.</p>"
    # Entries are numbers, or a dash: nothing in them is markup.
    rows = [[escape(model), escape(sampler), *entries] for model, sampler, *entries in quality.rows("<b>{}</b>")]
    kinds = ["", "", *("number" for _ in quality.steps)]
    table = _table("Main table", quality.header, rows, kinds, quality.feet())
    return f'<p class="caption">{escape(quality.caption)}</p>\n{table}'


def _table(
    label: str,
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    kinds: Sequence[str],
    feet: Sequence[Sequence[str]] = (),
) -> str:
    """Return a sortable table; ``rows`` hold HTML, the other texts are escaped here; ``kinds`` are columns' classes."""
    kinds = [f' class="{kind}"' if kind else "" for kind in kinds]
    head = "".join(
        f'<th scope="col" aria-sort="none"{kind}><button type="button">{escape(name)}</button></th>'
        for name, kind in zip(header, kinds, strict=True)
    )
    lines = [
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(label)}"><table class="sortable">',
        f"<thead><tr>{head}</tr></thead>",
        "<tbody>",
        *(_row(row, kinds) for row in rows),
        "</tbody>",
        *(["<tfoot>", *(_row([escape(text) for text in foot], kinds) for foot in feet), "</tfoot>"] if feet else []),
        "</table></div>",
    ]
    return "\n".join(lines)


def _row(cells: Sequence[str], kinds: Sequence[str]) -> str:
    first, *rest = zip(cells, kinds, strict=True)
    body = "".join(f"<td{kind}>{cell}</td>" for cell, kind in rest)
    return f'<tr><th scope="row"{first[1]}>{first[0]}</th>{body}</tr>'


def _section(name: str, items: Sequence[Entry], out: Output) -> str:
    """Return one section: of the first ones the leading figure, and folded the rest; the others folded whole."""
    figures = [item for item in items if item.frame is None]
    pointers = {item.caption: f"See the figure “{item.title}”." for item in figures}
    leading = figures[:1] if name in _FIRST else []
    rest = [item for item in items if not any(item is figure for figure in leading)]
    parts = [_figure(item, out) for item in leading]
    if rest:
        titles = ", ".join(dict.fromkeys(escape(item.title) for item in rest))
        folded = "\n".join(
            _figure(item, out) if item.frame is None else _tabled(item, item.frame, pointers) for item in rest
        )
        parts.append(f"<details>\n<summary>{titles}</summary>\n{folded}\n</details>")
    anchor, body = _anchor(name), "\n".join(parts)
    return f'<section aria-labelledby="{anchor}">\n<h2 id="{anchor}">{escape(name)}</h2>\n{body}\n</section>'


def _figure(item: Entry, out: Output) -> str:
    title, caption, path = escape(item.title), escape(item.caption), out.figures / f"{item.name}.png"
    try:
        content = path.read_bytes()
        width, height = struct.unpack(">II", content[16:24])  # of the PNG's first chunk
    except (OSError, struct.error):
        return f"<h3>{title}</h3>\n<p>figures/{escape(path.name)} cannot be read.</p>\n<p>{caption}</p>"
    size = f'width="{round(width * _DENSITY)}" height="{round(height * _DENSITY)}"'
    wide = ' class="wide"' if width > _WIDE else ""
    data = f"data:image/png;base64,{base64.b64encode(content).decode()}"
    source = f"figures/{path.name}" if _is_published(out) else data
    image = f'<img{wide} {size} alt="{title}" src="{escape(source)}">'
    box = f'<div class="scroll" role="region" tabindex="0" aria-label="{title}">{image}</div>'
    return f"<figure>\n<h3>{title}</h3>\n{box}\n<figcaption>{caption}</figcaption>\n</figure>"


def _is_published(out: Output) -> bool:
    return (out.root / ARCHIVE).is_file()


def _tabled(item: Entry, frame: pd.DataFrame, pointers: Mapping[str, str]) -> str:
    """Return a short table, or the name of the file that holds a long one.

    Columns without an entry are left out, and those with one entry throughout are told below the caption, in whose
    place stands the pointer to a figure that has the same.
    """
    title = f"<h3>{escape(item.title)}</h3>"
    text = f'<p class="caption">{escape(pointers.get(item.caption, item.caption))}</p>'
    if len(frame) > _INLINE:
        return f"{title}\n{text}\n<p>{len(frame)} rows, in <code>tables/{escape(item.name)}.csv</code>.</p>"
    readable, repeated = without_constants(frame)
    columns = {str(name): [entry(value) for value in readable[name]] for name in readable.columns}
    if repeated:
        text += f'\n<p class="caption">{escape(repeated)}</p>'
    rows = [[escape(cell) for cell in row] for row in zip(*columns.values(), strict=True)]
    table = _table(item.title, list(columns), rows, [_kind(cells) for cells in columns.values()])
    if len(rows) > _OPEN:
        table = f"<details>\n<summary>{len(rows)} rows</summary>\n{table}\n</details>"
    return f"{title}\n{text}\n{table}"


def _kind(column: Sequence[str]) -> str:
    """Return the class of a column: ``number`` where all entries are, ``long`` for texts that may wrap."""
    if all(text == "-" or _NUMBER.fullmatch(text) for text in column):
        return "number"
    return "long" if max(map(len, column)) > _LONG else ""


def _configuration(run: Mapping[str, Any]) -> str:
    """Return the run's settings, folded; a word on their absence where there is no ``run.json``."""
    sections = list_configuration(run)
    if not sections:
        return "<p>Not known: there is no <code>run.json</code>.</p>"
    parts = []
    for heading, rows in sections.items():
        lines = "\n".join(_row([escape(text) for text in row], ["", ""]) for row in rows)
        parts.append(f'<h3>{heading}</h3>\n<table class="settings"><tbody>\n{lines}\n</tbody></table>')
    return "<details>\n<summary>Full configuration and environment</summary>\n" + "\n".join(parts) + "\n</details>"


def list_configuration(run: Mapping[str, Any]) -> dict[str, list[tuple[str, str]]]:
    """Return names and values of the command, the configuration and the environment of ``run.json``, without paths."""
    record = _scrubbed(dict(run))
    words, configuration = record.pop("command", None), record.pop("configuration", None)
    command = shlex.join(str(word) for word in words) if words else None
    parts = {"Configuration": configuration, "Environment": {"command": command, **record}}
    sections = {heading: list(_flat("", content)) for heading, content in parts.items()}
    return {heading: rows for heading, rows in sections.items() if rows}


def without_paths(text: str) -> str:
    """Return text with absolute paths, also those after ``=`` and ``,``, cut to their last part."""

    def last(part: str) -> str:
        paths = (PurePosixPath(part), PureWindowsPath(part))
        return next((path.name for path in paths if path.is_absolute() or part.startswith("~")), part)

    return "".join(map(last, _JOINTS.split(text)))


def _scrubbed(value: Any) -> Any:
    """Return a value of ``run.json`` with absolute paths cut to their last part."""
    if isinstance(value, dict):
        return {without_paths(name): _scrubbed(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_scrubbed(inner) for inner in value]
    return without_paths(value) if isinstance(value, str) else value


def _flat(prefix: str, value: Any) -> Iterator[tuple[str, str]]:
    """Yield the entries of nested dictionaries with dotted names; lists stay on one line."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _flat(f"{prefix}.{name}" if prefix else name, inner)
    elif value is not None:
        yield prefix, value if isinstance(value, str) else json.dumps(value)
