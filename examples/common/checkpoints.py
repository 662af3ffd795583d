"""Checkpoints with Orbax: the last one alone is kept, whole; errors say what to do."""

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from examples.common.errors import CheckpointError


def open_in(folder: Path) -> ocp.CheckpointManager:
    """The checkpoints of a folder, as a context manager; ``latest_step()`` is None without one."""
    return ocp.CheckpointManager(
        folder.absolute(),
        options=ocp.CheckpointManagerOptions(max_to_keep=1, enable_async_checkpointing=False),
    )


def save(checkpoints: ocp.CheckpointManager, step: int, state: Any, seconds: float) -> None:
    """Saves, or leaves the checkpoint that there is; one of a later step is from a lost future.

    Args:
      state: any tree of arrays.
      seconds: of the training so far.

    Raises:
      CheckpointError: if it cannot be written; the one before it is kept.
    """
    before = checkpoints.latest_step()
    try:
        if before is not None and before >= step:
            checkpoints.delete(before)
        checkpoints.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state), clock=ocp.args.JsonSave({"seconds": seconds})
            ),
        )
    except Exception as error:
        kept = "There is none before it" if before is None else f"That of step {before} is kept"
        raise CheckpointError(
            f"the checkpoint of step {step} cannot be written to {checkpoints.directory}: {error}."
            f" {kept}. Once the cause is mended (a full disk?), go on with --resume."
        ) from error


def restore(checkpoints: ocp.CheckpointManager, step: int | None, state: Any) -> tuple[Any, float]:
    """The state and the seconds of a step.

    Args:
      state: of the same structure, shapes and dtypes, such as that before the first step.

    Raises:
      CheckpointError: if it cannot be read, or is another structure's; it is left as it is.
    """
    target = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
    try:
        restored: Any = checkpoints.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(target), clock=ocp.args.JsonRestore()
            ),
        )
        return restored.state, restored.clock["seconds"]
    except Exception as error:
        raise CheckpointError(
            f"the checkpoint in {checkpoints.directory} is damaged, or of another model, method or"
            f" version: {error}\nIt is left as it is. To train this run anew, delete that folder."
        ) from error
