"""Every program of the quickstart trains, stands alone and stays short."""

import ast
import re
import runpy
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[3] / "examples" / "quickstart"
PROGRAMS = [path for path in sorted(FOLDER.glob("*.py")) if path.stem != "__init__"]
FAST = ("linen", "nnx", "plain_jax")
ECOSYSTEM = {
    *("arsam_jax", "equinox", "flax", "jax", "keras", "numpy", "optax", "orbax", "sklearn"),
    "tensorboardX",
}


@pytest.fixture(params=PROGRAMS, ids=lambda path: path.stem)
def program(request):
    return request.param


@pytest.mark.parametrize(
    "program",
    [
        pytest.param(path, marks=() if path.stem in FAST else pytest.mark.long, id=path.stem)
        for path in PROGRAMS
        if path.stem != "does_sam_help"
    ],
)
@pytest.mark.usefixtures("standard_promotion")
def test_it_trains(program, capsys):
    code = 0
    try:
        runpy.run_path(str(program), run_name="__main__")
    except SystemExit as end:
        code = end.code
    assert code == 0
    printed = capsys.readouterr().out
    accuracy = re.findall(r"accuracy\D* ([\d.]+) %", printed)
    sampled = re.findall(r"%SAM ([\d.]+)", printed)
    assert float(accuracy[-1]) > 90, printed
    assert all(0 < float(share) < 100 for share in sampled), printed
    assert sampled, printed


def test_it_stands_alone(program):
    tree = ast.parse(program.read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    assert not any(node.level for node in imports if isinstance(node, ast.ImportFrom))
    modules = {
        name.split(".")[0]
        for node in imports
        for name in (
            [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else [alias.name for alias in node.names]
        )
    }
    assert modules - sys.stdlib_module_names <= ECOSYSTEM


@pytest.mark.long
@pytest.mark.usefixtures("standard_promotion")
def test_sam_helps_on_digits_with_noisy_labels(capsys):
    runpy.run_path(str(FOLDER / "does_sam_help.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert printed.count("rho = ") == 5
    assert "SAM helps: rho = " in printed


def test_it_hides_no_module_where_it_is_run(program):
    assert program.stem not in ECOSYSTEM | sys.stdlib_module_names


def test_it_fits_a_screen(program):
    assert len(program.read_text().splitlines()) <= 80


def test_it_checks_its_wiring(program):
    if program.stem == "does_sam_help":
        pytest.skip("it shows how to compare runs, and its whole run is one jitted function")
    assert program.read_text().count("arsam_jax.check_wiring(") == 1
