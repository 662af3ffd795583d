"""The CSV files: whole lines, one set of columns, and where each row is from."""

import csv
import platform

import pytest

from benchmarks.harness import table
from tests.benchmarks.fakes import PROVENANCE


def a_row(**values):
    return {"name": "a", "x": 1.0} | values | PROVENANCE


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "deep" / "rows.csv"
    assert table.read_table(path) == []
    rows = [a_row(), a_row(name="b, c", x=-2), a_row(x=float("nan"), commit="12e3456")]
    for row in rows:
        table.append_row(path, row)
    found = table.read_table(path, ("name",))
    assert found[:2] == rows[:2]
    assert found[2]["x"] != found[2]["x"]
    assert found[2]["commit"] == PROVENANCE["commit"]
    assert isinstance(found[1]["x"], int)


def test_floats_have_seven_digits(tmp_path):
    table.append_row(tmp_path / "rows.csv", a_row(x=1 / 3))
    assert table.read_table(tmp_path / "rows.csv", ("name",))[0]["x"] == 0.3333333


def test_a_line_that_was_cut_off_is_dropped(tmp_path):
    path = tmp_path / "rows.csv"
    table.append_row(path, a_row())
    whole = path.read_bytes()
    table.append_row(path, a_row(name="b"))
    path.write_bytes(path.read_bytes()[:-9])
    assert [row["name"] for row in table.read_table(path, ("name",))] == ["a"]
    table.append_row(path, a_row(name="b"))
    assert [row["name"] for row in table.read_table(path, ("name",))] == ["a", "b"]
    assert path.read_bytes().startswith(whole)


def test_a_row_has_the_columns_of_its_file_and_says_where_it_is_from(tmp_path):
    path = tmp_path / "rows.csv"
    with pytest.raises(ValueError, match="differ in the columns commit"):
        table.append_row(path, {k: v for k, v in a_row().items() if k != "commit"})
    table.append_row(path, a_row())
    with pytest.raises(ValueError, match=r"rows\.csv.* differ in the columns y"):
        table.append_row(path, a_row(y=1))
    assert len(table.read_table(path, ("name",))) == 1


def test_provenance():
    found = table.provenance(device="abacus")
    assert tuple(found) == table.PROVENANCE
    assert found["device"] == "abacus"
    assert found["versions"].startswith("jax ")
    assert platform.python_version() in found["versions"]


def git(folder, *arguments):
    options = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    return table.subprocess.run(
        ("git", "-C", str(folder), *options, *arguments), check=True, capture_output=True, text=True
    ).stdout.strip()


def test_the_commit_has_a_plus_where_code_differs_but_not_for_results(tmp_path, monkeypatch):
    module = tmp_path / "benchmarks" / "harness" / "table.py"
    results = tmp_path / "benchmarks" / "results"
    for file in (module, results / "x.csv"):
        file.parent.mkdir(parents=True)
        file.write_text("1")
    git(tmp_path, "init")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "first")
    monkeypatch.setattr(table, "__file__", str(module))
    monkeypatch.setattr(table, "RESULTS", results)
    commit = table.commit.__wrapped__
    (results / "x.csv").write_text("2")
    assert commit() == git(tmp_path, "rev-parse", "--short", "HEAD")
    module.write_text("2")
    assert commit() == git(tmp_path, "rev-parse", "--short", "HEAD") + "+"
    monkeypatch.setattr(table, "__file__", "/")
    with pytest.raises(SystemExit, match="run in a git checkout"):
        commit()


@pytest.mark.parametrize("path", sorted(table.RESULTS.glob("*/*.csv")), ids=lambda path: path.stem)
def test_committed_rows_say_where_they_are_from(path):
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows
    assert all(row[name] for row in rows for name in table.PROVENANCE)
