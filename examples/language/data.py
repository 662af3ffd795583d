"""Two texts as bytes: English prose and program code that every Python ships, or your own files."""

import pydoc_data.topics
import sysconfig
from pathlib import Path

import numpy as np

from examples.common.errors import DataError

_BLOCK = 4096  # bytes that stay together when a text is split
_MOST_CODE = 1_000_000


def read(file: Path | None, what: str) -> bytes:
    """A text of one's own, or the one that Python ships.

    Args:
      file: a text file in any encoding; None for the shipped one.
      what: which: ``prose``, the language reference as ``help()`` shows it, about 700 kB; or
        ``code``, modules of the standard library in the order of their names, the first MB. Both
        depend on the version of Python.

    Raises:
      DataError: if the file cannot be read.
    """
    if file is not None:
        try:
            return file.read_bytes()
        except OSError as error:
            raise DataError(f"{file} cannot be read: {error}") from error
    if what == "prose":
        topics = pydoc_data.topics.topics
        return "\n\n".join(topics[name] for name in sorted(topics)).encode()
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    return b"\n".join(path.read_bytes() for path in files)[:_MOST_CODE]


def windows(text: bytes, length: int) -> dict[str, np.ndarray]:
    """The parts of a text, each as (n, length + 1) bytes: inputs, and shifted by one the targets.

    Of ten blocks of 4 kB the ninth is for validation, the tenth for testing: what is tested was
    never trained on, and is of the same kinds.

    Raises:
      DataError: if the text is too short for that.
    """
    blocks = np.frombuffer(text, np.uint8)
    blocks = blocks[: len(blocks) // _BLOCK * _BLOCK].reshape(-1, _BLOCK)
    places = np.arange(len(blocks)) % 10
    if not (places == 9).any() or length + 1 > _BLOCK:
        raise DataError(
            f"A text of {len(text):,} bytes is too short for windows of {length}: it takes"
            f" {10 * _BLOCK:,} bytes, and windows shorter than {_BLOCK:,}."
        )
    starts = np.arange(0, _BLOCK - length, length)
    cut = np.stack([blocks[:, start : start + length + 1] for start in starts], 1)
    chosen = {"train": places < 8, "validation": places == 8, "test": places == 9}
    return {name: cut[here].reshape(-1, length + 1) for name, here in chosen.items()}
