"""Reading files that may be damaged: the exceptions of all readers become one clear error."""

import contextlib
import lzma
import struct
import tarfile
import textwrap
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import scipy.io.matlab
from PIL import Image
from safetensors import SafetensorError

from examples.common.errors import DataError

MOST_BYTES = 2**30
"""The most bytes that a file or a member of an archive may declare or decompress to."""

DAMAGE = (
    # Python and NumPy. UnicodeDecodeError and JSONDecodeError are ValueErrors. RecursionError and
    # NotImplementedError, for an unknown compression, are RuntimeErrors. SyntaxError stands for a
    # broken PNG, TokenError for the header of a broken npy file.
    OSError,
    EOFError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    MemoryError,
    RuntimeError,
    SyntaxError,
    struct.error,
    tokenize.TokenError,
    # Archives and compression.
    lzma.LZMAError,
    tarfile.TarError,
    zipfile.BadZipFile,
    zipfile.LargeZipFile,
    zlib.error,
    # Pillow, SciPy and safetensors.
    Image.DecompressionBombError,
    scipy.io.matlab.MatReadError,
    SafetensorError,
)
"""Everything that reading a damaged, foreign or malicious file is known to raise."""


@contextlib.contextmanager
def reading(path: Path | str, what: str, remedy: str = "Download it again.") -> Iterator[None]:
    """Turn any exception of ``DAMAGE`` in the block into a ``DataError`` about the file.

    Use it around the code that opens and parses one file, and around nothing else, so that it
    does not hide errors of other code::

        with reading(path, "MPII's annotations"):
            rows = json.loads(path.read_text())

    Args:
      path: The file, or a description such as ``"data.bin in cifar.tar.gz"``.
      what: What the file should be, as a noun: "an image", "a text".
      remedy: A sentence that tells the user what to do.

    Raises:
      DataError: If the block raises an exception of ``DAMAGE``, or if the path is something that
        may never end, such as a FIFO.
    """
    if isinstance(path, Path) and path.exists() and not (path.is_file() or path.is_dir()):
        raise DataError(f"{path} is neither a file nor a folder. {remedy}")
    try:
        yield
    except DAMAGE as error:
        reason = textwrap.shorten(f"{type(error).__name__}: {error}", 200, placeholder=" ...")
        raise DataError(f"{path} cannot be read as {what} ({reason}). {remedy}") from error


def check_size(path: Path | str, num_bytes: int, most: int | None = None) -> None:
    """Raise a ``DataError`` if a file declares more than ``most`` bytes, ``MOST_BYTES`` by default.

    Call it before the bytes are allocated or decompressed.
    """
    most = MOST_BYTES if most is None else most
    if num_bytes > most:
        raise DataError(
            f"{path} declares {num_bytes:,} bytes, more than the {most:,} that are read. It is"
            " damaged or not the expected file. Download it again."
        )
