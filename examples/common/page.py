"""A report as one HTML page that contains its tables and figures and needs no other file."""

import base64
import html
from collections.abc import Iterable
from pathlib import Path

from examples.common.records import write_text

_STYLE = """
:root { color-scheme: light dark; --page: #fff; --text: #1b1f24; --faint: #59636e; --line: #d0d7de }
@media (prefers-color-scheme: dark) {
  :root { --page: #0d1117; --text: #e6edf3; --faint: #9198a1; --line: #3d444d }
}
body {
  margin: 0 auto; max-width: 72rem; padding: 1rem; overflow-wrap: anywhere;
  background: var(--page); color: var(--text); font: 1rem/1.5 system-ui, sans-serif;
}
h1 { line-height: 1.2 }
.table { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; overflow-wrap: normal }
th, td { padding: 0.3rem 0.6rem; border-bottom: 1px solid var(--line); text-align: right }
th { vertical-align: bottom }
td { white-space: nowrap }
.left { text-align: left }
figure { margin: 2rem 0 }
img { max-width: 100%; height: auto; border-radius: 0.3rem; background: #fff }
figcaption, .faint { color: var(--faint) }
"""


def write(path: Path, title: str, parts: Iterable[str]) -> None:
    """Writes a page of the parts that the functions below return. It is replaced as a whole."""
    lines = [
        "<!DOCTYPE html>",
        '<html lang="en">',
        '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<link rel="icon" href="data:,">',
        f"<title>{html.escape(title)}</title>",
        f"<style>{_STYLE}</style>",
        f"<h1>{html.escape(title)}</h1>",
        *parts,
        "</html>",
    ]
    write_text(path, "\n".join(lines) + "\n")


def heading(text: str) -> str:
    return f"<h2>{html.escape(text)}</h2>"


def paragraph(text: str, *, is_faint: bool = False) -> str:
    kind = ' class="faint"' if is_faint else ""
    return f"<p{kind}>{html.escape(text)}</p>"


def table(columns: dict[str, list[str]], *, num_left: int = 1) -> str:
    """A table of columns by their headers. The first ``num_left`` columns are aligned left."""

    def row(cells: Iterable[str], tag: str) -> str:
        left = ' class="left"'
        texts = (
            f"<{tag}{left if place < num_left else ''}>{html.escape(cell)}</{tag}>"
            for place, cell in enumerate(cells)
        )
        return f"<tr>{''.join(texts)}</tr>"

    rows = [
        row(columns, "th"),
        *(row(cells, "td") for cells in zip(*columns.values(), strict=True)),
    ]
    return "\n".join(['<div class="table"><table>', *rows, "</table></div>"])


def picture(file: Path, caption: str) -> str:
    """A PNG file, copied into the page."""
    content, text = base64.b64encode(file.read_bytes()).decode(), html.escape(caption)
    image = f'<img alt="{text}" src="data:image/png;base64,{content}">'
    return f"<figure>{image}<figcaption>{text}</figcaption></figure>"
