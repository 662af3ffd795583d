"""Every program of the benchmarks runs: the same commands as in their README, with --smoke."""

import os
import subprocess
import sys

import pytest

from benchmarks import table

PROGRAMS = {
    "accuracy": ("accuracy",),
    "cost": ("cost",),
    "accelerator": ("cost", "--accelerator"),
    "paper": ("paper",),
    "language": ("language", "--arms", "sam"),
}


def run(folder, *arguments):
    """In another folder, with the code of this one."""
    root = str(table.RESULTS.parents[1])
    command = [sys.executable, "-m", *arguments, "--smoke"]
    environment = os.environ | {"PYTHONPATH": root}
    return subprocess.run(command, cwd=folder, env=environment, check=True)


@pytest.mark.long
@pytest.mark.parametrize("name", PROGRAMS)
def test_smoke(name, tmp_path):
    module, *options = PROGRAMS[name]
    run(tmp_path, f"benchmarks.{module}", *options)
    folder = tmp_path / "runs" / "benchmarks" / "smoke"
    assert table.read(folder / f"{name}.csv")
    assert (folder / f"{name}.md").read_text().startswith("# ")
    assert (folder / f"{name}.png").exists()


@pytest.mark.long
def test_the_other_tables_of_the_paper_run_through_the_examples(tmp_path):
    csv = tmp_path / "applications.csv"
    run(tmp_path, "benchmarks.paper.applications", "language", "--csv", str(csv), "--seeds", "0")
    rows = table.read(csv)
    assert {row["measure"] for row in rows} >= {"loss"}
    assert {row["method"] for row in rows} == {"sam"}
