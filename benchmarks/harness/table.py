"""The CSV files of the studies: one writer, one reader, and where a row is from."""

import csv
import fcntl
import functools
import io
import os
import platform
import subprocess
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "results"
PROVENANCE = ("date", "commit", "device", "versions")  # columns that every file has


def provenance(**others: Any) -> dict[str, Any]:
    """The columns that say where a row is from; `others` take the place of what they name."""
    import jax

    import arsam_jax

    return {
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit(),
        "device": jax.devices()[0].device_kind,
        "versions": f"jax {jax.__version__}, arsam_jax {arsam_jax.__version__}, python"
        f" {platform.python_version()}",  # whose texts some workloads read
    } | others


@functools.cache
def commit() -> str:
    """The commit this process runs, and "+" where files other than results differ from it."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        command = ("git", "-C", str(folder), *arguments)
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        top = git("rev-parse", "--show-toplevel")
        changes = git("status", "--porcelain", "--", top, f":(exclude,top){_inside(top)}")
        return git("rev-parse", "--short", "HEAD") + "+" * bool(changes)
    except (OSError, subprocess.CalledProcessError) as error:
        raise SystemExit(f"A row records its commit: run in a git checkout. {error}") from None


def _inside(top: str) -> str:
    return RESULTS.resolve().relative_to(top).as_posix()


def append_row(path: Path, row: dict[str, Any]) -> None:
    """Adds one whole line, on disk when this returns; removes a last line that was cut off.

    Floats have seven digits. The first row of a file gives its columns.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        content = file.read()
        whole = content.rfind(b"\n") + 1
        file.truncate(whole)
        header = next(csv.reader(io.StringIO(content[:whole].decode())), list(row))
        if set(header) != set(row) or not set(PROVENANCE) <= set(row):
            columns = ", ".join(sorted({*header, *PROVENANCE} ^ set(row)))
            raise ValueError(f"{path}: the row and the file differ in the columns {columns}")
        line = io.StringIO()
        writer = csv.DictWriter(line, header, lineterminator="\n")
        if not whole:
            writer.writeheader()
        writer.writerow(
            {k: float(f"{v:.7g}") if isinstance(v, float) else v for k, v in row.items()}
        )
        file.write(line.getvalue().encode())
        file.flush()
        os.fsync(file.fileno())


def read_table(path: Path, words: Collection[str] = ()) -> list[dict[str, Any]]:
    """The rows of a CSV file; what are neither words nor provenance are numbers.

    A last line that was cut off is dropped, and there are no rows where there is no file.
    """
    text = path.read_text() if path.exists() else ""
    words = {*words, *PROVENANCE}
    return [
        {name: value if name in words else _number(value) for name, value in line.items()}
        for line in csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1]))
    ]


def _number(text: str) -> float:
    return int(text) if text.lstrip("-").isdecimal() else float(text)
