"""Damaged, foreign and malicious files end in a DataError that names the file."""

import gzip
import io
import itertools
import struct
import tarfile

import numpy as np
import pytest

from examples.common import image_sets, reading, weights
from examples.common.errors import DataError

CIFAR_TEST = "cifar-10-batches-bin/test_batch.bin"


@pytest.mark.parametrize("error", reading.DAMAGE)
def test_every_exception_of_a_reader_becomes_a_data_error(error):
    with (
        pytest.raises(DataError, match=r"a\.bin cannot be read as an image .* Save it again\."),
        reading.reading("a.bin", "an image", "Save it again."),
    ):
        raise error.__new__(error)


def test_other_exceptions_pass():
    for error in (DataError("as it is"), KeyboardInterrupt(), NameError("a programming error")):
        with pytest.raises(type(error)) as caught, reading.reading("a.bin", "an image"):
            raise error
        assert caught.value is error


def idx(*sizes, content=b""):
    return bytes([0, 0, 8, len(sizes)]) + struct.pack(f">{len(sizes)}I", *sizes) + content


def flipped(content, place):
    return content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :]


NOISE = np.random.default_rng(0).integers(0, 256, 3073, dtype=np.uint8)
NOISE[0] = 3
NOISE = NOISE.tobytes()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"hello world", r"cannot be read as a gzipped idx file \(BadGzipFile"),
        (gzip.compress(b"hello world"), "is not an idx file"),
        (gzip.compress(idx(3, content=b"abc"))[:-12], "EOFError"),
        (gzip.compress(idx(3, content=b"abc"))[:-6] + b"123456", "CRC check failed"),
        (flipped(gzip.compress(idx(3073, content=NOISE)), 40), r"\((error|BadGzipFile|EOFError): "),
        (gzip.compress(idx(3, 3)[:-2]), r"\(error: unpack requires"),
        (gzip.compress(idx(3, content=b"ab")), r"should hold \(3,\) values, but has 2"),
        (gzip.compress(idx(3, content=b"abcd" * 9)), r"should hold \(3,\) values, but has 4"),
        (gzip.compress(idx(*[2**32 - 1] * 9)), "declares .* bytes, more than the 1,073,741,824"),
        (gzip.compress(idx(*[1] * 200, content=b"a")), "maximum supported dimension"),
    ],
    ids=itertools.count(),
)
def test_idx_files(content, message, tmp_path):
    (tmp_path / "file.gz").write_bytes(content)
    with pytest.raises(DataError, match=rf"file\.gz .*{message}"):
        image_sets.read_idx(tmp_path / "file.gz")
    with pytest.raises(DataError, match=r"IsADirectoryError"):
        image_sets.read_idx(tmp_path)


def tar(kind=tarfile.REGTYPE, content=NOISE, **attributes):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        member = tarfile.TarInfo(CIFAR_TEST)
        member.size, member.type = len(content), kind
        for name, value in attributes.items():
            setattr(member, name, value)
        archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (tar(tarfile.DIRTYPE, b""), "is not a regular file"),
        (tar(tarfile.FIFOTYPE, b""), "is not a regular file"),
        (tar(tarfile.SYMTYPE, b"", linkname=CIFAR_TEST), "is not a regular file"),
        (tar(content=NOISE[:-1]), "is no whole number of images"),
        (tar(content=b""), "is no whole number of images"),
        (tar(content=b"\x0a" + NOISE[1:]), "label 10"),
        (tar()[:1000], r"\(EOFError"),
        (
            tar(pax_headers={"comment": "0" * 2**25}),
            "declares 33,554,9.. bytes, more than the 16,777",
        ),
        (flipped(tar(), 200), r"\(\w+: "),
        (flipped(tar(), 2000), r"\(BadGzipFile: CRC check failed"),
        (b"no archive", r"\((ReadError|BadGzipFile)"),
        (gzip.compress(bytes(10240)), f"lacks {CIFAR_TEST}. Is it of cifar10"),
    ],
    ids=itertools.count(),
)
def test_cifar_archives(content, message, tmp_path):
    (tmp_path / "cifar.tar.gz").write_bytes(content)
    with pytest.raises(DataError, match=rf"cifar\.tar\.gz .*{message}"):
        image_sets.cifar("cifar10", "test", tmp_path / "cifar.tar.gz")


def test_a_cifar_archive_that_declares_too_much(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "MOST_BYTES", 3072)
    (tmp_path / "cifar.tar.gz").write_bytes(tar())
    with pytest.raises(DataError, match=r"test_batch\.bin in .* declares 3,073 bytes"):
        image_sets.cifar("cifar10", "test", tmp_path / "cifar.tar.gz")


@pytest.mark.parametrize(
    "content", [b"", struct.pack("<Q", 2**62) + b"{}", struct.pack("<Q", 2000) + b"[" * 2000]
)
def test_files_of_weights(content, tmp_path):
    file = tmp_path / "weights.safetensors"
    file.write_bytes(content)
    with pytest.raises(DataError, match=rf"{file} cannot be read .*\(SafetensorError"):
        weights.load(file)
    file.unlink()
    with pytest.raises(DataError, match=r"weights\."):
        weights.load(file)
