"""Files that are replaced as a whole, and checkpoints, which have a digest.

The first line of a checkpoint is the SHA-256 digest of all that follows, the second one is JSON:
the record of the run, and the name, dtype and shape of each array. The bytes of the arrays follow.
Nothing in the file is executed when it is read.
"""

import hashlib
import json
import math
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from examples.common.errors import CheckpointError


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


def write_json(path: Path, value: Any) -> None:
    write_bytes(path, (json.dumps(value, indent=2, default=str) + "\n").encode())


def save(path: Path, state: Any, record: dict[str, Any]) -> None:
    """Replaces a checkpoint.

    Args:
      state: any tree of arrays.
      record: what belongs to it, as JSON holds it.

    Raises:
      CheckpointError: if it cannot be written. The previous file is kept.
    """
    state = jax.device_get(state)
    header = json.dumps({"record": record, "arrays": _describe(state)}).encode()
    arrays = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state)]
    content = b"".join([header, b"\n", *arrays])
    try:
        write_bytes(path, hashlib.sha256(content).hexdigest().encode() + b"\n" + content)
    except OSError as error:
        raise CheckpointError(
            f"the checkpoint {path} cannot be written: {error}. An earlier one is kept. Fix the"
            " cause (is the disk full?), then continue with --resume."
        ) from error


def restore(path: Path, state: Any) -> tuple[Any, dict[str, Any]]:
    """Reads a checkpoint: the state and the record.

    Args:
      state: a tree with the structure, shapes and dtypes that are expected.

    Raises:
      CheckpointError: if the file cannot be read, is damaged or holds another structure.
    """
    remedy = f"The file is left as it is. To train this run again, delete {path.parent}."
    try:
        digest, _, content = path.read_bytes().partition(b"\n")
    except OSError as error:
        raise CheckpointError(f"the checkpoint {path} cannot be read: {error}. {remedy}") from error
    if digest != hashlib.sha256(content).hexdigest().encode():
        raise CheckpointError(
            f"the checkpoint {path} is damaged: its content does not match its digest. {remedy}"
        )
    text, _, data = content.partition(b"\n")
    header, expected = json.loads(text), _describe(state)
    if header.keys() != {"record", "arrays"} or header["arrays"] != expected:
        raise CheckpointError(
            f"the checkpoint {path} is of another model, method or version. {remedy}"
        )
    leaves, offset = [], 0
    for _, name, shape in expected:
        dtype, size = jnp.dtype(name), math.prod(shape)
        leaves.append(np.frombuffer(data, dtype, size, offset).reshape(shape))
        offset += size * dtype.itemsize
    return jax.tree.unflatten(jax.tree.structure(state), leaves), header["record"]


def _describe(state: Any) -> list[list[Any]]:
    """The name, dtype and shape of each array."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    return [
        [jax.tree_util.keystr(path), np.dtype(leaf.dtype).name, list(leaf.shape)]
        for path, leaf in leaves
    ]
