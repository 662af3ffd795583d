"""A checkpoint: one file with the arrays of a state, replaced as a whole, with a digest.

The first line is the SHA-256 digest of all that follows, the second one is JSON: the step, the
seconds, and the name, dtype and shape of each array. The bytes of the arrays follow. Nothing in the
file is executed when it is read.
"""

import hashlib
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from examples.common.errors import CheckpointError
from examples.common.records import write_bytes


class Checkpoint(NamedTuple):
    """The state after a step.

    Attributes:
      step: the number of steps taken.
      seconds: the training time so far.
      state: any tree of arrays.
    """

    step: int
    seconds: float
    state: Any


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Replaces the file.

    Raises:
      CheckpointError: if it cannot be written. The previous file is kept.
    """
    state = jax.device_get(checkpoint.state)
    header = {
        "step": checkpoint.step,
        "seconds": checkpoint.seconds,
        "arrays": _describe(state),
    }
    arrays = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state)]
    content = b"".join([json.dumps(header).encode(), b"\n", *arrays])
    try:
        write_bytes(path, hashlib.sha256(content).hexdigest().encode() + b"\n" + content)
    except OSError as error:
        kept = "The previous checkpoint is kept" if path.exists() else "There is no earlier one"
        raise CheckpointError(
            f"the checkpoint of step {checkpoint.step} cannot be written to {path}: {error}."
            f" {kept}. Fix the cause (is the disk full?), then continue with --resume."
        ) from error


def restore(path: Path, state: Any) -> Checkpoint:
    """Reads the file.

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
    header = json.loads(text)
    expected = _describe(state)
    if header["arrays"] != expected:
        different = [a for a in header["arrays"] if a not in expected] or [
            a for a in expected if a not in header["arrays"]
        ]
        raise CheckpointError(
            f"the checkpoint {path} is of another model, method or version; the first array that"
            f" differs is {' '.join(map(str, different[0]))}. {remedy}"
        )
    leaves, offset = [], 0
    for _, name, shape in header["arrays"]:
        dtype, size = jnp.dtype(name), math.prod(shape)
        leaves.append(np.frombuffer(data, dtype, size, offset).reshape(shape))
        offset += size * dtype.itemsize
    state = jax.tree.unflatten(jax.tree.structure(state), leaves)
    return Checkpoint(header["step"], header["seconds"], state)


def _describe(state: Any) -> list[list[Any]]:
    """The name, dtype and shape of each array."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    return [
        [jax.tree_util.keystr(path), np.dtype(leaf.dtype).name, list(leaf.shape)]
        for path, leaf in leaves
    ]
