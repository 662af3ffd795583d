"""Two texts as bytes: English prose and Python code that come with Python, or your own files."""

import pydoc_data.topics
import sysconfig
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from examples.common.errors import DataError
from examples.common.reading import reading

_BLOCK = 4096  # bytes that are in the same part of a text
_MOST_CODE = 1_000_000


class Batch(NamedTuple):
    """Windows (n, length + 1) of bytes, and indices (n,) in int32."""

    windows: Any
    index: Any


def read(file: Path | None, what: str) -> bytes:
    """Read your own text, or one that comes with Python.

    Args:
      file: A text file in any encoding, or None for a text of Python.
      what: The text of Python: ``"prose"``, its language reference as ``help()`` shows it, about
        700 kB, or ``"code"``, the first MB of the modules of its standard library in alphabetical
        order. Both depend on the version of Python.

    Raises:
      DataError: If the file cannot be read.
    """
    if file is not None:
        with reading(file, "a text", "Name another file."):
            return file.read_bytes()
    if what == "prose":
        topics = pydoc_data.topics.topics
        return "\n\n".join(topics[name] for name in sorted(topics)).encode()
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    return b"\n".join(path.read_bytes() for path in files)[:_MOST_CODE]


def windows(text: bytes, length: int) -> dict[str, np.ndarray]:
    """Split a text into windows (n, length + 1) of bytes for training, validation and testing.

    The first ``length`` bytes of a window are the input, and the last ``length`` the targets. Of
    ten blocks of 4 kB, the ninth is for validation and the tenth for testing, so that all parts
    have text of the same kinds.

    Raises:
      DataError: If the text is too short.
    """
    blocks = np.frombuffer(text, np.uint8)
    blocks = blocks[: len(blocks) // _BLOCK * _BLOCK].reshape(-1, _BLOCK)
    places = np.arange(len(blocks)) % 10
    if not (places == 9).any() or length + 1 > _BLOCK:
        raise DataError(
            f"A text of {len(text):,} bytes is too short for windows of {length}. At least"
            f" {10 * _BLOCK:,} bytes are needed, and --length must be less than {_BLOCK:,}."
        )
    starts = np.arange(0, _BLOCK - length, length)
    split = np.stack([blocks[:, start : start + length + 1] for start in starts], 1)
    chosen = {"train": places < 8, "validation": places == 8, "test": places == 9}
    return {name: split[here].reshape(-1, length + 1) for name, here in chosen.items()}
