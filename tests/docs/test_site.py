"""Every public symbol is on an API page with an example, and no link is dead."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
DOCS = ROOT / "docs"
SOURCES = [page for page in sorted(DOCS.rglob("*.md")) if DOCS / "_build" not in page.parents]
READMES = [*sorted(ROOT.glob("examples/**/README.md")), ROOT / "benchmarks/README.md"]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *READMES, *SOURCES]
FIGURES = re.findall(r'^    "(\w+)": \w+_figure,$', (DOCS / "figures.py").read_text(), re.MULTILINE)
API = sorted((DOCS / "api").glob("*.md"))
MODULES = [path for path in sorted((ROOT / "arsam_jax").glob("*.py")) if path.stem[0] != "_"]
# Public by their names, and used by other modules of the library alone.
INNER: set[str] = set()


def public_names(module):
    """What a module defines and does not underscore, read from its source."""
    for node in ast.parse(module.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names = [node.name]
        elif isinstance(node, ast.Assign):
            names = [target.id for target in node.targets if isinstance(target, ast.Name)]
        else:
            names = []
        yield from (name for name in names if name[0] != "_")


def documented():
    """The full names of what the API pages document."""
    found = set()
    for page in API:
        module = ""
        for kind, name in re.findall(r"^\.\. ([\w:]+):: ([\w.]+)$", page.read_text(), re.MULTILINE):
            if kind == "currentmodule":
                module = name
            elif kind != "automodule":
                found.add(name if name.startswith("arsam_jax.") else f"{module}.{name}")
    return found


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.stem)
def test_every_public_symbol_is_on_an_api_page(module):
    pages = documented()
    missing = [
        name
        for name in public_names(module)
        if not {f"arsam_jax.{name}", f"arsam_jax.{module.stem}.{name}"} & pages
        and f"{module.stem}.{name}" not in INNER
    ]
    assert missing == []


def without_example(text):
    """What an API page documents and the next block of examples below does not use.

    Constants may go without. States share one, that of their section, which need not name them.
    """
    section = module = ""
    for found in re.finditer(r"^(?:\.\. (\w+)::|##) (.*)$", text, re.MULTILINE):
        kind, name = found.groups()
        if kind is None:
            section = name
        elif kind == "currentmodule":
            module = name.rpartition(".")[2]
        elif kind in ("autofunction", "autoclass"):
            block = re.search(r"^```python\n(.*?)^```$", text[found.end() :], re.M | re.S)
            lines = re.findall(r"^(?:>>>|\.\.\.) ([^#\n]*)", block[1] if block else "", re.M)
            is_state = kind == "autoclass" and section in ("State", "States")
            used = "" if is_state else rf"\b{module}\.{name}\b"
            if not (lines and re.search(used, "\n".join(lines))):
                yield name


@pytest.mark.parametrize("page", API, ids=lambda path: path.stem)
def test_every_function_and_class_has_an_example(page):
    assert list(without_example(page.read_text())) == []


def test_a_missing_example_is_seen():
    text = (DOCS / "api/correction.md").read_text()
    for name in ("replace", "reuse_psf", "subtract_orthogonal", "Correction"):
        before, used, after = text.partition(f"correction.{name}(")
        block = before.rindex("```python"), len(before + used) + after.index("```")
        assert [*without_example(text[: block[0]] + text[block[1] :])] == [name]


def prose(text):
    return re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors(page):
    """Of the headings of a page, as GitHub and the site make them; of included files, too."""
    text = page.read_text()
    found = set()
    for name in re.findall(r"^```\{include\} (\S+)$", text, re.MULTILINE):
        found |= anchors((page.parent / name).resolve())
    for heading in re.findall(r"^#+ (.*)$", prose(text), re.MULTILINE):
        plain = re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower())
        found.add(plain.strip().replace(" ", "-"))
    return found


def dead_links(page, text):
    links = re.findall(r"\]\((?!\w+:)([^()\s#]*)(?:#([^()\s]*))?\)", prose(text))
    for name, anchor in links:
        target = (page.parent / name).resolve() if name else page
        if target.parent == DOCS / "_generated":
            if target.stem not in FIGURES:
                yield name
        elif not target.exists() or (anchor and anchor not in anchors(target)):
            yield f"{name}#{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    assert list(dead_links(page, page.read_text())) == []


def test_a_dead_link_is_seen():
    text = "[a](methods.md#no-such) [b](no_such.md) ![c](_generated/no_such.svg) [d](#concepts)"
    dead = list(dead_links(DOCS / "concepts.md", text))
    assert dead == ["methods.md#no-such", "no_such.md#", "_generated/no_such.svg"]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_shown_files_are_there(page):
    names = re.findall(r"^```\{(?:literal)?include\} (\S+)", page.read_text(), re.MULTILINE)
    assert [name for name in names if not (page.parent / name).exists()] == []


def test_every_page_is_in_a_table_of_contents():
    listed = {"index"}
    for page in SOURCES:
        for tree in re.findall(r"^```\{toctree\}\n(.*?)^```$", page.read_text(), re.M | re.S):
            names = [line for line in tree.split() if line[0] != ":"]
            folder = page.parent.relative_to(DOCS)
            listed |= {str(folder / name) for name in names}
    pages = {str(page.relative_to(DOCS).with_suffix("")) for page in SOURCES}
    assert pages - listed == set()
