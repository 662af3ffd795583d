"""CSV files of results: one writer, one reader, and the provenance of each row."""

import csv
import fcntl
import functools
import io
import os
import platform
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
PROVENANCE = ("date", "commit", "device", "versions")  # read as text, whatever they look like


def provenance() -> dict[str, str]:
    """The columns that say when, by which code and on which machine a row was measured."""
    import jax

    return {
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit(),
        "device": jax.devices()[0].device_kind,
        "versions": f"jax {jax.__version__}, python {platform.python_version()}",
    }


@functools.cache
def commit() -> str:
    """The commit of the running code, with "+" if files other than results differ from it."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        command = ("git", "-C", str(folder), *arguments)
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        top = git("rev-parse", "--show-toplevel")
        results = RESULTS.resolve().relative_to(top).as_posix()
        changes = git("status", "--porcelain", "--", top, f":(exclude,top){results}")
        return git("rev-parse", "--short=7", "HEAD") + "+" * bool(changes)
    except (OSError, subprocess.CalledProcessError) as error:
        raise SystemExit(f"Each row records its commit: run in a git checkout. {error}") from None


def append(path: Path, *rows: dict[str, Any]) -> None:
    """Adds rows to a CSV file. They are on disk when this returns.

    The first row of a file gives its columns. Floats are written with seven digits. A last line
    that was cut off by an interruption is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        content = file.read()
        whole = content.rfind(b"\n") + 1
        file.truncate(whole)
        header = next(csv.reader(io.StringIO(content[:whole].decode())), list(rows[0]))
        text = io.StringIO()
        writer = csv.DictWriter(text, header, lineterminator="\n")
        if not whole:
            writer.writeheader()
        for row in rows:
            if set(header) != set(row):
                columns = ", ".join(sorted(set(header) ^ set(row)))
                raise ValueError(f"{path}: the row and the file differ in the columns {columns}")
            writer.writerow(
                {k: float(f"{v:.7g}") if isinstance(v, float) else v for k, v in row.items()}
            )
        file.write(text.getvalue().encode())
        file.flush()
        os.fsync(file.fileno())


def read(path: Path) -> list[dict[str, Any]]:
    """Returns the rows of a CSV file, with numbers where the text is one.

    A last line that was cut off is dropped. A file that does not exist has no rows.
    """
    text = path.read_text() if path.exists() else ""
    lines = csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1]))
    return [
        {name: value if name in PROVENANCE else _number(value) for name, value in line.items()}
        for line in lines
    ]


def _number(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def markdown(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose first column is text and whose other columns are numbers."""
    rows = [header, ["---"] + ["---:"] * (len(header) - 1), *body]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


def counted_commits(rows: Sequence[dict[str, Any]]) -> str:
    """The commits of these rows with the number of rows measured at each, as a phrase."""
    counts: dict[str, int] = {}
    for row in rows:
        counts[row["commit"]] = counts.get(row["commit"], 0) + 1
    return ", ".join(f"{name} ({count:,} rows)" for name, count in sorted(counts.items()))
