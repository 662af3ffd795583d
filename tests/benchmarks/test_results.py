"""The committed results: every table is what its CSV file gives, and every row has a source."""

import re

import pytest

from benchmarks import table
from benchmarks.accuracy import report as accuracy
from benchmarks.cost import report as cost
from benchmarks.language import report as language
from benchmarks.paper import report as paper

REPORTS = {"accuracy": accuracy, "cost": cost, "paper": paper, "language": language}
FILES = sorted(table.RESULTS.glob("*.csv"))


@pytest.mark.parametrize("name", REPORTS)
def test_tables_are_those_of_the_csv_files(name, tmp_path, monkeypatch):
    monkeypatch.setattr(REPORTS[name], "plot", lambda *arguments: None)
    for file in FILES:
        (tmp_path / file.name).write_bytes(file.read_bytes())
    text, figure = REPORTS[name].write(tmp_path / f"{name}.csv")
    committed = table.RESULTS / text.name
    assert committed.read_text() == text.read_text()
    assert (table.RESULTS / figure.name).exists()
    assert f"({figure.name})" in committed.read_text()


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_every_row_has_its_commit(file):
    rows = table.read(file)
    assert rows
    for row in rows:
        assert re.fullmatch("[0-9a-f]{7}", row["commit"]), row
    if file.name not in ("paper_in_small.csv",):  # older rows without the other columns
        assert all(row[name] for row in rows for name in table.PROVENANCE)


def test_nothing_else_lies_among_the_results():
    stems = {file.name.partition(".")[0] for file in table.RESULTS.iterdir()}
    named = {file.stem for file in FILES} | set(REPORTS)
    assert stems == named
