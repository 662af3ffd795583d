"""Records of a run: what is read back is what was written, and a failed write loses nothing."""

import os

import numpy as np
import pytest

from examples.common import records


def test_a_table_reads_back_what_it_wrote(tmp_path):
    table = records.Table(tmp_path / "table.csv", ("step", "value"))
    values = [0.1, float(np.float32(1) / 3), 1e-30, float("inf"), 7]
    for step, value in enumerate(values, 1):
        table.append(step=step, value=value)
    table.save()
    again = records.Table(table.path, table.columns)
    again.load()
    assert again.rows == table.rows
    again.load(until=2)
    assert again.column("step") == [1, 2]


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file.txt"
    records.write_text(path, "old")

    def fail(descriptor):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        records.write_text(path, "new")
    assert path.read_text() == "old"
