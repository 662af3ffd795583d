"""Configuration of the site, which `make docs` builds into docs/_build/html."""

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
import nbformat  # noqa: E402  # pyright: ignore  # only in the environment of the site
import optax  # noqa: E402
from docutils import nodes  # noqa: E402  # pyright: ignore
from myst_nb.core.read import read_myst_markdown_notebook  # noqa: E402  # pyright: ignore

import arsam_jax  # noqa: E402

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

project = "arsam_jax"
author = copyright = PROJECT["authors"][0]["name"]
version = release = arsam_jax.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
exclude_patterns = ["_build", "_generated"]

myst_enable_extensions = ["attrs_inline", "colon_fence", "dollarmath", "deflist"]
myst_heading_anchors = 4
myst_html_meta = {"description": PROJECT["description"]}

# Every build runs the notebooks. Whatever they write to stderr is an error, warnings included.
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
# The signatures show these unions under their names, which are shorter than their members.
TYPES = {
    chex.Array: "Array",
    chex.Numeric: "Numeric",
    optax.ScalarOrSchedule: "ScalarOrSchedule",
    arsam_jax.radius.RadiusLike: "RadiusLike",
    arsam_jax.sampling.ParamsMask: "ParamsMask",
}
autodoc_type_aliases = {
    "Array": "chex.Array",
    "Numeric": "chex.Numeric",
    "ScalarOrSchedule": "optax.ScalarOrSchedule",
    "RadiusLike": "arsam_jax.radius.RadiusLike",
    "ParamsMask": "arsam_jax.sampling.ParamsMask",
}

copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

html_theme = "furo"
html_title = "arsam_jax"
html_favicon = "_static/favicon.svg"
html_copy_source = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"  # browsers draw MathML without a script from another server

NOTEBOOKS = {f"notebooks/{page.stem}" for page in (DOCS / "notebooks").glob("*.md")}


def offer_notebook(app: Any, docname: str, source: list[str]) -> None:
    """Write a notebook as a Jupyter file and link to it below the title of its page."""
    if docname not in NOTEBOOKS:
        return
    notebook: Any = read_myst_markdown_notebook(source[0], config=app.env.myst_config)
    file = DOCS / "_generated" / f"{Path(docname).name}.ipynb"
    nbformat.write(notebook, file)
    download = f"\n\n{{download}}`Download this notebook <../_generated/{file.name}>`\n"
    source[0] = re.sub(r"^# .*$", lambda title: title[0] + download, source[0], count=1, flags=re.M)


def name_types(app: Any, obj: Any, bound_method: bool) -> None:
    """Replace the long unions among the types of a function by their names."""
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
    """Turn ``name`` in a docstring into a link if an API page documents the name."""
    del app, what, options

    def linked(match):
        for prefix in (getattr(obj, "__module__", name), "arsam_jax"):
            target = f"{prefix}.{match[1].removeprefix('arsam_jax.')}"
            if target in DOCUMENTED and target != name:
                return f":py:obj:`{match[1]} <{target}>`"
        return match[0]

    lines[:] = [re.sub(r"``([\w.]+)``", linked, line) for line in lines]


def strip_code(app: Any, document: Any) -> None:
    """Remove the empty line at the end of a doctest, which the Markdown source needs there."""
    del app
    for block in document.findall(nodes.literal_block):
        block.rawsource = block.astext().rstrip()
        block.children[:] = [nodes.Text(block.rawsource)]


def write_math(display: str) -> tuple[Any, None]:
    """Return the visitors that write a formula as MathML."""

    def visit(translator, node):
        translator.body.append(latex2mathml.converter.convert(node.astext(), display=display))
        raise nodes.SkipNode

    return visit, None


def setup(app: Any) -> None:
    app.add_html_math_renderer("mathml", write_math("inline"), write_math("block"))
    app.connect("doctree-read", strip_code)
    app.connect("source-read", offer_notebook)
    app.connect("autodoc-before-process-signature", name_types)
    app.connect("autodoc-process-docstring", link_names)
    figures.draw(DOCS / "_generated")
