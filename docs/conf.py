"""The site: `make docs` builds it into docs/_build/html."""

import logging
import os
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
ROOT = DOCS.parent
sys.path[:0] = [str(ROOT), str(DOCS)]

import chex  # noqa: E402
import figures  # noqa: E402
import latex2mathml.converter  # noqa: E402  # pyright: ignore
import nbformat  # noqa: E402  # pyright: ignore  # in the site's environment alone
import optax  # noqa: E402
from docutils import nodes  # noqa: E402  # pyright: ignore
from myst_nb.core.read import read_myst_markdown_notebook  # noqa: E402  # pyright: ignore

import arsam_jax  # noqa: E402

log = logging.getLogger("sphinx.arsam_jax")  # whose warnings Sphinx counts
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REPOSITORY = PROJECT["urls"].get("Repository")

project = "arsam_jax"
author = copyright = PROJECT["authors"][0]["name"]
version = release = arsam_jax.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
exclude_patterns = ["_build", "_generated"]

myst_enable_extensions = ["attrs_inline", "colon_fence", "dollarmath", "deflist"]
myst_heading_anchors = 4

# Notebooks run whenever the site is built. What they write to stderr, a warning too, is an error.
os.environ["PYTHONPATH"] = str(ROOT)
os.environ["PYTHONWARNINGS"] = "default"
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_output_stderr = "warn"
nb_merge_streams = True

autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_preserve_defaults = True
autodoc_mock_imports = ["equinox", "keras"]
napoleon_attr_annotations = False
napoleon_numpy_docstring = False
# By name, not by what they stand for, which takes three lines.
TYPES = {
    chex.Array: "Array",
    chex.Numeric: "Numeric",
    optax.ScalarOrSchedule: "ScalarOrSchedule",
    arsam_jax.radius.RadiusLike: "Radius",
    arsam_jax.sampling.ParamsMask: "ParamsMask",
}
autodoc_type_aliases = {
    "Array": "chex.Array",
    "Numeric": "chex.Numeric",
    "ScalarOrSchedule": "optax.ScalarOrSchedule",
    "Radius": "arsam_jax.radius.RadiusLike",
    "ParamsMask": "arsam_jax.sampling.ParamsMask",
}

copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

html_theme = "sphinx_book_theme"
html_title = "arsam_jax"
html_copy_source = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"  # which browsers draw by themselves, without a script from elsewhere
html_theme_options = {
    "navbar_persistent": [],  # the search field is in the sidebar
    "navigation_with_keys": False,
    "path_to_docs": "docs",
    "repository_branch": "main",
    "show_toc_level": 2,
    "use_download_button": False,
    "use_fullscreen_button": False,
}
if REPOSITORY:
    html_theme_options |= {"repository_url": REPOSITORY, "use_repository_button": True}

NOTEBOOKS = {f"notebooks/{page.stem}" for page in (DOCS / "notebooks").glob("*.md")} - {
    "notebooks/index"
}
INCLUDE = re.compile(r"^```\{include\} (\S+)\n```$", re.MULTILINE)
SHOWN = re.compile(r"^```\{(?:include\} |literalinclude\} (?=\S*/quickstart/))(\S+)", re.MULTILINE)
FENCE = re.compile(r"(^```.*?^```$)", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\((?!\w+:)([^()\s#]+)(#[^()\s]*)?\)")


def page_of_file() -> dict[Path, str]:
    """The pages by the files of the repository that they show."""
    return {
        (page.parent / name).resolve(): str(page.relative_to(DOCS))
        for page in DOCS.rglob("*.md")
        if DOCS / "_build" not in page.parents
        for name in SHOWN.findall(page.read_text())
    }


def read_page(app: Any, docname: str, source: list[str]) -> None:
    """Puts in the files that a page includes, and lets links lead on from where they are now."""
    page = DOCS / f"{docname}.md"
    pages = page_of_file()

    def included(match):
        file = (page.parent / match[1]).resolve()
        app.env.note_dependency(str(file))
        return with_links(file.read_text(), file)

    def with_links(text, file):
        def moved(match):
            return link(match, file)

        parts = FENCE.split(text)
        return "".join(x if i % 2 else LINK.sub(moved, x) for i, x in enumerate(parts))

    def link(match, file):
        mark, text, name, anchor = match.groups(default="")
        target = Path(os.path.normpath(file.parent / name))
        if target.is_dir() and target / "README.md" in pages:
            target /= "README.md"
        elif target == ROOT / "examples" / "quickstart":
            target, anchor = DOCS / "programs.md", ""
        if target == ROOT / "README.md":
            target = DOCS / "index.md"
        if target in pages and not mark:
            # A program is a section of its page, headed by its name.
            section = "" if target.suffix == ".md" else f"#{target.name.replace('.', '')}"
            target, anchor = DOCS / pages[target], anchor or section
        if not (target.exists() or target.parent == DOCS / "_generated"):
            log.warning("%s: %s is not there", file.relative_to(ROOT), name)
            return text
        is_outside = DOCS not in target.parents and not mark
        if is_outside and REPOSITORY:
            kind = "tree" if target.is_dir() else "blob"
            return f"[{text}]({REPOSITORY}/{kind}/main/{target.relative_to(ROOT)}{anchor})"
        if is_outside and target.is_dir():
            return text  # of which no copy can be kept, as of a file
        return f"{mark}[{text}]({os.path.relpath(target, page.parent)}{anchor})"

    source[0] = INCLUDE.sub(included, with_links(source[0], page))


def offer_notebook(app: Any, docname: str, source: list[str]) -> None:
    """Writes a notebook as Jupyter has them, and ends its page with a link to it."""
    if docname not in NOTEBOOKS:
        return
    notebook: Any = read_myst_markdown_notebook(source[0], config=app.env.myst_config)
    file = DOCS / "_generated" / f"{Path(docname).name}.ipynb"
    nbformat.write(notebook, file)
    source[0] += f"\n\n{{download}}`Download this notebook <../_generated/{file.name}>`\n"


def name_types(app: Any, obj: Any, bound_method: bool) -> None:
    """Gives the long unions among the types of a function their names."""
    del app, bound_method
    types = getattr(obj, "__annotations__", {})
    for argument, kind in types.items():
        for known, name in TYPES.items():
            if kind == known:
                types[argument] = name


def documented_names() -> set[str]:
    found = set()
    for page in (DOCS / "api").glob("*.md"):
        module = ""
        for kind, name in re.findall(r"^\.\. ([\w:]+):: ([\w.]+)$", page.read_text(), re.MULTILINE):
            if kind == "currentmodule":
                module = name
            else:
                found |= {name, f"{module}.{name}"}
    return found


DOCUMENTED = documented_names()


def link_names(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Makes a link of ``name`` in a docstring, where that is on a page, too."""
    del app, what, options

    def linked(match):
        for prefix in (getattr(obj, "__module__", name), "arsam_jax"):
            target = f"{prefix}.{match[1].removeprefix('arsam_jax.')}"
            if target in DOCUMENTED and target != name:
                return f":py:obj:`{match[1]} <{target}>`"
        return match[0]

    lines[:] = [re.sub(r"``([\w.]+)``", linked, line) for line in lines]


def strip_code(app: Any, document: Any) -> None:
    """Takes the empty line from the end of a doctest, which its page needs there."""
    del app
    for block in document.findall(nodes.literal_block):
        block.rawsource = block.astext().rstrip()
        block.children[:] = [nodes.Text(block.rawsource)]


def write_math(display: str) -> tuple[Any, None]:
    """Writes formulas as MathML."""

    def visit(translator, node):
        translator.body.append(latex2mathml.converter.convert(node.astext(), display=display))
        raise nodes.SkipNode

    return visit, None


def setup(app: Any) -> None:
    app.add_html_math_renderer("mathml", write_math("inline"), write_math("block"))
    app.connect("doctree-read", strip_code)
    app.connect("source-read", read_page)
    app.connect("source-read", offer_notebook)
    app.connect("autodoc-before-process-signature", name_types)
    app.connect("autodoc-process-docstring", link_names)
    figures.draw(DOCS / "_generated")
