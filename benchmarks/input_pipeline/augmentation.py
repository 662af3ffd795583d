"""Images a second that the example's augmentation gives on one device, apart from any training."""

import dataclasses
import functools
import os
import statistics
import time
from pathlib import Path
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import rich
import tyro

from benchmarks.harness import table
from examples.classification.data import augment

CHOICES = ((), ("crop", "mirror", "cutout"), ("randaugment",), augment.AUGMENTATIONS)


@dataclasses.dataclass(frozen=True)
class Options:
    """How fast the example's augmentation is on one device, apart from any training."""

    batch_size: int = 128
    """Images in a batch, of 32 × 32 pixels and 3 channels."""
    repetitions: int = 50
    """Batches that are timed, after two that are not; the median counts."""
    csv: Annotated[Path, tyro.conf.arg(metavar="FILE")] = (
        table.RESULTS / "input_pipeline" / "augmentation.csv"
    )
    """Rows are appended."""


def measure(options: Options) -> list[dict]:
    """A row for each choice: from a batch of 8 bits a value on the device to its augmented floats.

    The choices take turns, so that what else the machine does slows all of them.
    """
    shape = (options.batch_size, 32, 32, 3)
    images = jnp.asarray(np.random.default_rng(0).integers(0, 256, shape, np.uint8))
    fill = jnp.full(3, 120.0)

    @functools.partial(jax.jit, static_argnums=0)
    def augmented(names, key, images):
        return augment.augment(names, key, images.astype(jnp.float32), fill)

    seconds = {names: [] for names in CHOICES}
    for key in jax.random.split(jax.random.key(0), options.repetitions + 2):
        for names in CHOICES:
            start = time.perf_counter()
            jax.block_until_ready(augmented(names, key, images))
            seconds[names].append(time.perf_counter() - start)
    medians = {names: statistics.median(of_names[2:]) for names, of_names in seconds.items()}
    return [
        {
            "cores": os.cpu_count(),
            "augmentations": " + ".join(names) or "none",
            "batch_size": options.batch_size,
            "milliseconds": round(1000 * median, 3),
            "images_a_second": round(options.batch_size / median),
        }
        | table.provenance()
        for names, median in medians.items()
    ]


def main(options: Options) -> None:
    rows = measure(options)
    for row in rows:
        rich.print(
            f"{row['augmentations']:40} {row['milliseconds']:8.3f} ms a batch,"
            f" {row['images_a_second']:,} images/s"
        )
        table.append_row(options.csv, row)
