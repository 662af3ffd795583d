"""Records of a run: CSV tables and JSON files, replaced as a whole, and TensorBoard events."""

import csv
import io
import json
import math
import os
from pathlib import Path
from typing import Any


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file so that a reader sees the old or the new content, even after a crash."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    os.replace(temporary, path)


def write_text(path: Path, text: str) -> None:
    """Writes a text as UTF-8, see ``write_bytes``."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, default=str) + "\n")


class Table:
    """Rows of numbers in memory, which ``save`` writes to a CSV file.

    NaN, an empty cell in the file, stands for a value that a row does not have. Numbers are
    written in the shortest form that reads back as the same number.
    """

    def __init__(self, path: Path, columns: tuple[str, ...]):
        self.path = path
        self.columns = columns
        self.rows: list[dict[str, float]] = []

    def load(self, *, until: float = math.inf) -> None:
        """Reads the file without the rows whose first column is greater than ``until``."""
        with self.path.open(newline="", encoding="utf-8") as file:
            rows = [{k: _number(v) for k, v in row.items()} for row in csv.DictReader(file)]
        self.rows = [row for row in rows if row[self.columns[0]] <= until]

    def append(self, **values: float) -> None:
        self.rows.append({name: values[name] for name in self.columns})

    def save(self) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(
            {k: "" if math.isnan(v) else v for k, v in row.items()} for row in self.rows
        )
        write_text(self.path, text.getvalue())

    def column(self, name: str) -> list[float]:
        return [row[name] for row in self.rows]


def _number(text: str) -> float:
    if not text:
        return math.nan
    try:
        return int(text)
    except ValueError:
        return float(text)


class Events:
    """TensorBoard event files of a run: ``tensorboard --logdir FOLDER``.

    Args:
      first_step: TensorBoard ignores what earlier files of this run hold from this step on.
    """

    def __init__(self, folder: Path, *, first_step: int):
        from tensorboardX import SummaryWriter  # slow to import

        # The suffix separates two writers that start in the same second.
        suffix = f".from{first_step}"
        self._writer = SummaryWriter(str(folder), purge_step=first_step, filename_suffix=suffix)

    def add(self, group: str, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            if not math.isnan(value):
                self._writer.add_scalar(f"{group}/{name}", value, step)

    def flush(self) -> None:
        self._writer.flush()

    def __enter__(self) -> "Events":
        return self

    def __exit__(self, *exception: object) -> None:
        self._writer.close()
