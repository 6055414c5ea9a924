"""`report.html`: one file that shows a run, for a phone or a wide screen, light or dark, on paper, without a network.

A report is plain data. It has sections, and a section has blocks: a `str` is a paragraph (an empty line begins
another), the others are the tuples below. All text is escaped. Nothing here knows of a task: every experiment uses it.

    write_report(
        "runs/mnist/report.html",
        title="SimpleCNN on mnist_10k",
        summary=["Trained for 12 epochs on one CPU.", Cards([("Test accuracy", "98.1 %", "2,000 digits")])],
        sections=[Section("Training", [Figure("runs/mnist/figures/curves.png", "Loss and accuracy.")])],
    )
"""

import base64
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

from cnn_jax.files import write_atomically

from .formats import format_column, format_number, is_number


class Cards(NamedTuple):
    """Key figures. cards: (label, value, note) or (label, value) each; a value is text or a number."""

    cards: Sequence[tuple]


class Table(NamedTuple):
    """A table of text and numbers. The first cell of a row names it; columns of numbers are set flush right."""

    header: Sequence[str]
    rows: Sequence[Sequence]
    caption: str = ""


class Figure(NamedTuple):
    """A PNG file, put into the report. Figures that follow each other stand side by side where there is room.

    alt: what it shows, for whom cannot see it; the caption if left out.
    """

    path: str | Path
    caption: str
    alt: str = ""


class Code(NamedTuple):
    """A command or a piece of code, in lines as they are."""

    text: str


class Details(NamedTuple):
    """Blocks that are folded away under a line of text, until it is pressed."""

    summary: str
    blocks: Sequence


class Section(NamedTuple):
    """A heading with its blocks.

    short: what the link at the top of the page says; the title if left out.
    """

    title: str
    blocks: Sequence
    short: str = ""


Block = str | Cards | Table | Figure | Code | Details


def write_report(path, *, title: str, summary: Sequence[Block], sections: Sequence[Section], footer: str = "") -> Path:
    """Writes the report atomically and returns its path. The same data give the same bytes.

    summary: blocks under the title; footer: a line at the end, for instance versions and date.
    Raises `TypeError` for a block of another type, `ValueError` for a figure that is no PNG, `OSError` for one that
    cannot be read; a report that exists is left as it is then.
    """
    names = _anchors([section.title for section in sections])
    links = "".join(
        f'<li><a href="#{name}">{escape(section.short or section.title)}</a></li>'
        for name, section in zip(names, sections, strict=True)
    )
    parts = [f"<header>\n<h1>{escape(title)}</h1>\n{_blocks(summary)}</header>\n"]
    if len(sections) > 2:
        parts.append(f'<nav aria-label="Sections"><ul>{links}</ul></nav>\n')
    parts.append("<main>\n")
    for name, section in zip(names, sections, strict=True):
        heading = f'<h2 id="{name}">{escape(section.title)}</h2>'
        parts.append(f'<section aria-labelledby="{name}">\n{heading}\n{_blocks(section.blocks)}</section>\n')
    parts.append("</main>\n")
    if footer:
        parts.append(f"<footer><p>{escape(footer)}</p></footer>\n")
    return write_atomically(path, _PAGE.format(title=escape(title), style=_STYLE, body="".join(parts)))


def _blocks(blocks: Sequence[Block]) -> str:
    if isinstance(blocks, str):
        raise TypeError(f"expected a list of blocks, got the text {blocks[:40]!r}: write [text]")
    html, figures = [], []
    for block in [*blocks, None]:  # the end closes a row of figures too
        if isinstance(block, Figure):
            figures.append(block)
            continue
        if figures:
            html.append(_figures(figures))
            figures = []
        if block is not None:
            html.append(_block(block))
    return "".join(html)


def _block(block: Block) -> str:
    match block:
        case str():
            return "".join(f"<p>{escape(part.strip())}</p>\n" for part in re.split(r"\n\s*\n", block) if part.strip())
        case Cards():
            return f'<dl class="cards">\n{"".join(_card(*card) for card in block.cards)}</dl>\n'
        case Table():
            return _table(block)
        case Code():
            # A flag is never parted at its hyphens.
            code = re.sub(r"(?<!\S)(--?[\w-]+)", r"<span>\1</span>", escape(block.text))
            return f"<pre><code>{code}</code></pre>\n"
        case Details():
            return f"<details>\n<summary>{escape(block.summary)}</summary>\n{_blocks(block.blocks)}</details>\n"
    raise TypeError(f"expected a text, Cards, Table, Figure, Code or Details, got {type(block).__name__}")


def _card(label: str, value, note: str = "") -> str:
    text = format_number(value) if value is None or is_number(value) else str(value)
    note = f'<dd class="note">{escape(note)}</dd>' if note else ""
    return f"<div><dt>{escape(label)}</dt><dd>{escape(text)}</dd>{note}</div>\n"


def _table(table: Table) -> str:
    if any(len(row) != len(table.header) for row in table.rows):
        raise ValueError(f"table: every row needs {len(table.header)} cells, as the header {list(table.header)} has")
    columns = [format_column([row[i] for row in table.rows]) for i in range(len(table.header))]
    align = [
        ' class="number"' if numeric else ' class="short"' if max(map(len, texts), default=0) <= 24 else ""
        for texts, numeric in columns
    ]
    head = "".join(f'<th scope="col"{a}>{escape(str(name))}</th>' for name, a in zip(table.header, align, strict=True))
    body = []
    for row in zip(*(texts for texts, _ in columns), strict=True):
        first = f'<th scope="row"{align[0]}>{escape(row[0])}</th>'
        rest = "".join(f"<td{a}>{escape(cell)}</td>" for cell, a in zip(row[1:], align[1:], strict=True))
        body.append(f"<tr>{first}{rest}</tr>\n")
    caption = f"<caption>{escape(table.caption)}</caption>\n" if table.caption else ""
    label = escape(table.caption or "Table of " + ", ".join(map(str, table.header)))
    # A table wider than a phone scrolls by itself, by keyboard too, and the page does not.
    return (
        f'<div class="table" role="region" aria-label="{label}" tabindex="0"><table>\n{caption}'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{''.join(body)}</tbody>\n</table></div>\n"
    )


def _figures(figures: Sequence[Figure]) -> str:
    """Row by row where all are of one size; others lie column by column, where they leave fewer gaps."""
    drawn, sizes = zip(*map(_figure, figures), strict=True)
    rows = " rows" if len(set(sizes)) == 1 else ""
    return f'<div class="figures{rows}">\n{"".join(drawn)}</div>\n'


def _figure(figure: Figure) -> tuple[str, tuple[int, int]]:
    """Its HTML, and its width and height in the page's pixels."""
    png = Path(figure.path).read_bytes()
    width, height = _png_size(png, figure.path)
    kind = ' class="wide"' if width > 500 else ""  # than a column is
    html = (
        f'<figure{kind} style="width:{width}px"><img src="data:image/png;base64,{base64.b64encode(png).decode()}" '
        f'width="{width}" height="{height}" '
        f'alt="{escape(figure.alt or figure.caption)}"><figcaption>{escape(figure.caption)}</figcaption></figure>\n'
    )
    return html, (width, height)


def _png_size(png: bytes, path) -> tuple[int, int]:
    """Width and height in the page's pixels, 96 an inch: those of the file, by its own statement of density."""
    if png[:8] != b"\x89PNG\r\n\x1a\n":
        raise ValueError(f"figure: {path} is not a PNG file")
    width, height = int.from_bytes(png[16:20]), int.from_bytes(png[20:24])
    density = png.find(b"pHYs", 0, 200)
    metre = int.from_bytes(png[density + 4 : density + 8]) if density > 0 else 0
    scale = 96 / (metre * 0.0254) if metre else 1
    return max(1, round(width * scale)), max(1, round(height * scale))


def _anchors(titles: Sequence[str]) -> list[str]:
    names: list[str] = []
    for title in titles:
        name = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "section"
        names.append(name if name not in names else f"{name}-{len(names) + 1}")
    return names


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
{body}</body>
</html>
"""

_STYLE = """\
:root {
  color-scheme: light dark;
  --page: #f6f8fa; --card: #ffffff; --ink: #1f2328; --muted: #59636e; --line: #d1d9e0; --accent: #0b62a8;
}
@media (prefers-color-scheme: dark) {
  :root { --page: #0f1318; --card: #181d24; --ink: #e6e9ed; --muted: #a3adb8; --line: #333c47; --accent: #79b8f0; }
  figure img { filter: brightness(.9); }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; max-width: 1006px; padding: 1.5rem clamp(.75rem, 3vw, 2rem) 3rem;
  background: var(--page); color: var(--ink); overflow-wrap: break-word;
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif;
}
h1 { margin: .5rem 0 1rem; font-size: clamp(1.5rem, 5vw, 2.1rem); line-height: 1.2; }
h2 { margin: 0 0 1rem; font-size: 1.35rem; line-height: 1.25; scroll-margin-top: 1rem; }
p { margin: 0 0 1rem; max-width: 44rem; }
a { color: var(--accent); }
section { margin-top: 2.75rem; padding-top: 1.5rem; border-top: 1px solid var(--line); }
nav ul { display: flex; flex-wrap: wrap; gap: .5rem; margin: 1.5rem 0 0; padding: 0; list-style: none; }
nav a {
  display: block; padding: .4rem .8rem; border: 1px solid var(--line); border-radius: 1rem;
  background: var(--card); font-size: .9rem; text-decoration: none;
}
nav a:hover { border-color: var(--accent); }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
.cards {
  display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 8.7rem), 1fr)); gap: .75rem;
  margin: 0 0 1.25rem;
}
.cards > div { padding: .8rem 1rem; border: 1px solid var(--line); border-radius: .6rem; background: var(--card); }
.cards > div:only-child { grid-column: 1 / -1; width: fit-content; }
.cards dt { color: var(--muted); font-size: .85rem; line-height: 1.3; }
.cards dd { margin: .15rem 0 0; font-size: 1.4rem; font-weight: 600; line-height: 1.25; }
.cards dd.note { color: var(--muted); font-size: .8rem; font-weight: 400; }
.table {
  width: fit-content; max-width: 100%; margin: 0 0 1.25rem; overflow-x: auto;
  border: 1px solid var(--line); border-radius: .6rem; background: var(--card);
}
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }
caption { padding: .7rem .9rem .3rem; color: var(--muted); font-size: .88rem; text-align: left; }
th, td { padding: .4rem .9rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: baseline; }
th[scope=row] { font-weight: 500; }
td:not([class]), th[scope=row]:not([class]) { min-width: 9rem; overflow-wrap: anywhere; }
thead th { color: var(--muted); font-size: .85rem; font-weight: 600; white-space: nowrap; }
tbody tr:last-child > * { border-bottom: 0; }
.number { text-align: right; }
.number, .short { white-space: nowrap; }
.figures { columns: 2 400px; column-gap: 1rem; margin: 0 0 .25rem; }
.figures.rows { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 400px), 1fr)); }
figure { margin: 0 0 1rem; max-width: 100%; break-inside: avoid; }
figure.wide { column-span: all; grid-column: 1 / -1; }
figure img {
  display: block; max-width: 100%; height: auto; border: 1px solid var(--line); border-radius: .6rem; background: #fff;
}
figcaption { margin: .5rem .2rem 0; color: var(--muted); font-size: .88rem; line-height: 1.45; }
pre {
  margin: 0 0 1.25rem; padding: .8rem 1rem; white-space: pre-wrap; overflow-wrap: anywhere;
  border: 1px solid var(--line); border-radius: .6rem;
  background: var(--card); font: .87rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace;
}
code span { white-space: nowrap; }
details { margin: 0 0 1.25rem; }
summary { padding: .35rem 0; color: var(--accent); cursor: pointer; }
details[open] > summary { margin-bottom: .6rem; }
footer { margin-top: 3rem; color: var(--muted); font-size: .85rem; }
@media (max-width: 540px) {
  .cards { grid-template-columns: 1fr 1fr; gap: .5rem; }
  .cards > div { padding: .6rem .75rem; }
  .cards dd { font-size: 1.25rem; }
  table { font-size: .82rem; }
  th, td { padding: .4rem .45rem; }
  thead th { font-size: .8rem; }
  figure { width: 100% !important; }
  figure img { width: 100%; }
}
@media print {
  :root { --page: #fff; --card: #fff; --ink: #000; --muted: #444; --line: #bbb; --accent: #000; }
  body { max-width: none; padding: 0; font-size: 10.5pt; }
  nav { display: none; }
  figure, tr, .cards > div, pre { break-inside: avoid; }
  h2, summary { break-after: avoid; }
  .table { overflow: visible; }
  .figures { columns: 2 7cm; }
  .figures.rows { grid-template-columns: 1fr 1fr; }
  figure img { filter: none; max-height: 22cm; width: auto; }
  details::details-content { content-visibility: visible; }
}
"""
