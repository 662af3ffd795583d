"""Programs whose packages are not installed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PROGRAMS = sorted(
    ".".join(file.parent.relative_to(ROOT).parts)
    for folder in ("examples", "benchmarks")
    for file in (ROOT / folder).glob("*/__main__.py")
)
HIDES = """
import sys

class Hidden:
    def find_spec(name, path=None, target=None):
        if name.split(".")[0] in {names}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Hidden)
"""
OF_THE_EXTRA = ("flax", "matplotlib", "orbax", "PIL", "rich", "sklearn", "tyro")


def run(folder, hidden, *arguments):
    """The program's error, with these modules hidden; site imports the first sitecustomize."""
    (folder / "sitecustomize.py").write_text(HIDES.format(names=set(hidden)))
    path = os.pathsep.join([str(folder), str(ROOT)])
    environment = os.environ | {"PYTHONPATH": path, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(
    "program",
    [
        "examples.classification",
        "examples.quickstart.linen",
        *(
            pytest.param(program, marks=pytest.mark.long)
            for program in PROGRAMS
            if program != "examples.classification"
        ),
    ],
)
def test_a_program_without_its_packages_names_the_extra(program, tmp_path):
    ended = run(tmp_path, OF_THE_EXTRA, "-m", program)
    assert ended.returncode == 1
    extra = program.split(".")[0]
    assert ended.stderr.count("\n") == 1, ended.stderr
    assert ended.stderr.startswith("error: there is no module ")
    assert ended.stderr.endswith(f": pip install '.[{extra}]'\n")


def test_other_errors_keep_their_traceback(tmp_path):
    ended = run(tmp_path, (), "-c", "import examples, nothing_of_this_name")
    assert "Traceback" in ended.stderr
    assert "nothing_of_this_name" in ended.stderr
    (tmp_path / "own.py").write_text("import examples\nimport nothing_of_this_name\n")
    assert "Traceback" in run(tmp_path, (), "-m", "own").stderr
