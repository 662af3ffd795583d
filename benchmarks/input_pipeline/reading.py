"""From image files, or arrays in memory, to batches and training steps."""

import contextlib
import dataclasses
import io
import itertools
import os
import statistics
import tempfile
import time
import zipfile
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import rich
import tyro
from PIL import Image
from rich.progress import track

from benchmarks.harness import table
from benchmarks.harness.statistics import markdown_table
from examples.classification.config import Config
from examples.classification.data import datasets
from examples.classification.data.images import Dataset, Images
from examples.classification.trainer import Trainer
from examples.common import pipeline

PACKAGES = ("jax", "numpy", "pillow", "grain", "array_record", "tensorflow-datasets")
CLASSES = 200  # of Tiny ImageNet


@dataclasses.dataclass(frozen=True)
class Options:
    """How fast images are read, decoded and stacked, and what that costs a training."""

    workers: tuple[int, ...] = (0, 1, 2)
    """Numbers of worker processes; 0 reads in the program's own."""
    sizes: tuple[int, ...] = (64, 224)
    """Pixels a side of the JPEG files; array_record has 64."""
    images: int = 2000
    """Images of each data set, at least 200."""
    batch_size: int = 128
    """Images a batch."""
    seconds: float = 2.0
    """That each case is timed for, its first batches not counted."""
    width: int = 4
    """Of the cnn that is trained, on images of up to 64 pixels."""
    pairs: int = 5
    """Of the same number of steps on one batch and on batches that are read; see ``steps``."""
    steps: int = 6
    """Training steps of a measurement, half of a pair."""
    csv: Annotated[Path, tyro.conf.arg(metavar="FILE")] = (
        table.RESULTS / "input_pipeline" / "input_pipeline.csv"
    )
    """Rows are appended; a table of this run is written beside it."""


def write_jpegs(folder: Path, size: int, count: int) -> None:
    """An image folder: ``count`` training images of two classes, and one test image."""
    for i in range(count + 1):
        path = folder / ("train" if i < count else "test") / str(i % 2) / f"{i:06}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(size, i))


def write_tiny_imagenet(file: Path, count: int) -> None:
    """A zip file of ``count`` training images in 200 classes, and one test image."""
    with zipfile.ZipFile(file, "w") as archive:

        def write(name: str, content: str | bytes) -> None:
            archive.writestr(f"tiny-imagenet-200/{name}", content)

        write("wnids.txt", "\n".join(f"n{i}" for i in range(CLASSES)))
        write("val/val_annotations.txt", "val_0.JPEG\tn0\n")
        write("val/images/val_0.JPEG", jpeg(64, count))
        for i in range(count):
            wnid = f"n{i % CLASSES}"
            write(f"train/{wnid}/images/{wnid}_{i}.JPEG", jpeg(64, i))


def jpeg(size: int, seed: int) -> bytes:
    """Smooth noise, which compresses about as photographs do."""
    rng, file = np.random.default_rng(seed), io.BytesIO()
    image = Image.fromarray(rng.integers(0, 256, (size // 8, size // 8, 3), dtype=np.uint8))
    image.resize((size, size), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return file.getvalue()


def images_per_second(images: Images, num_workers: int, options: Options) -> float:
    order = pipeline.Order(len(images), options.batch_size, seed=0)
    steps = pipeline.batches(images, order, 0, 10**9, num_workers)
    with contextlib.closing(steps):
        for _ in range(1 + 5 * num_workers):  # the workers start, and read some ahead
            next(steps)
        start, count = time.perf_counter(), 0
        while (elapsed := time.perf_counter() - start) < options.seconds:
            next(steps)
            count += options.batch_size
    return count / elapsed


def training_speed(dataset: Dataset, num_workers: int, options: Options) -> float:
    """Training steps a second on these images, in units of those on one batch again and again."""
    settings = Config(
        method=("sgd",), width=options.width, batch_size=options.batch_size, epochs=10**4
    )
    trainer = Trainer(settings, dataset)
    step_fn, state = trainer.compile_step("sgd"), trainer.new_state("sgd", 0)
    order = pipeline.Order(len(dataset.train_labels), options.batch_size, seed=0)

    def seconds(batches) -> float:
        nonlocal state
        jax.block_until_ready(state)
        start = time.perf_counter()
        for _ in range(options.steps):
            index, images = next(batches)
            batch = trainer.batch(images, dataset.train_labels[index], index)
            state, _ = step_fn(state, *batch)
        jax.block_until_ready(state)
        return time.perf_counter() - start

    steps = pipeline.batches(dataset.train_images, order, 0, 10**9, num_workers)
    with contextlib.closing(steps):
        one = itertools.repeat(next(steps))
        for warm_up in (one, steps):
            seconds(warm_up)
        return statistics.median(seconds(one) / seconds(steps) for _ in range(options.pairs))


def main(options: Options) -> None:
    load = round(os.getloadavg()[0], 1)
    with tempfile.TemporaryDirectory() as name:
        cases = [
            (source, size, dataset, workers)
            for (source, size), dataset in make_sources(Path(name), options).items()
            for workers in (options.workers if source != "arrays in memory" else (0,))
        ]
        rows = [
            measure(*case, options) | {"load": load}
            for case in track(cases, "measuring", transient=True)
        ]
    write(rows, options.csv)


def make_sources(folder: Path, options: Options) -> dict[tuple[str, int], Dataset]:
    """The data sets by where images come from and their pixels a side, with files in `folder`."""
    sources: dict[tuple[str, int], Dataset] = {}
    for size in options.sizes:
        write_jpegs(folder / str(size), size, options.images)
        files = datasets.load("image_folder", data_files=folder / str(size), in_memory=False)
        in_memory = files._replace(train_images=files.train_images[:])
        sources["arrays in memory", size] = in_memory
        sources["JPEG files", size] = files
    write_tiny_imagenet(folder / "tiny.zip", options.images)
    sources["array_record of JPEGs", 64] = datasets.load(
        "tiny_imagenet", data_dir=folder, data_files=folder / "tiny.zip", in_memory=False
    )
    return sources


def measure(
    source: str, size: int, dataset: Dataset, workers: int, options: Options
) -> dict[str, Any]:
    """The row of a case, but for the load of the machine before it all."""
    speed = round(training_speed(dataset, workers, options), 3) if size <= 64 else None
    return {
        "source": source,
        "size": size,
        "workers": workers,
        "batch_size": options.batch_size,
        "images_per_second": round(images_per_second(dataset.train_images, workers, options)),
        "width": options.width,
        "training_speed": speed,
    } | table.provenance(
        device=f"{os.cpu_count()} CPU cores, {jax.devices()[0].device_kind}",
        versions=", ".join(f"{name} {metadata.version(name)}" for name in PACKAGES),
    )


def write(rows: list[dict[str, Any]], path: Path) -> None:
    """Appends the rows to the CSV file, and shows and writes them as a table."""
    for row in rows:
        table.append_row(path, row)
    first = rows[0]
    head = (
        f"{first['device']}, {first['date']}; batches of {first['batch_size']};"
        f" {first['versions']}. Load at the start: {first['load']}; where that is not 0, other work"
        " had its share of the cores, and the numbers are rough. Training speed is that of"
        f" a cnn of width {first['width']} in units of training on one batch again and again; on a"
        " CPU, reading and training share the cores."
    )
    body = [
        [
            row["source"],
            f"{row['size']}×{row['size']}",
            f"{row['workers'] or 'none'}",
            f"{row['images_per_second']:,}",
            f"{row['training_speed'] or '–'}",
        ]
        for row in rows
    ]
    found = markdown_table(
        ["images from", "pixels", "worker processes", "images/s", "training speed"], body
    )
    title = "# Images a second of the input pipeline"
    path.with_suffix(".md").write_text(f"{title}\n\n{head}\n\n{found}")
    rich.print(found)
    rich.print(f"wrote {path} and .md")
