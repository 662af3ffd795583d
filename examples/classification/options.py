"""The options of ``python -m examples.classification``, and its rows: named settings.

The rows are tuned or example settings for small data sets, and each row of the tables of the ARSAM
paper (arXiv 2510.03763) with image classifiers, in ``published.csv``.

The paper trains for 200 epochs with batches of 128, cosine decay, three seeds, M = 50 and cutout
on CIFAR. Its α is 0.2, 0.4 and 0.8, and 0.3 and 0.4 with label noise. It does not report the
learning rate, the weight decay or ρ. The rows use 0.1, 5e-4, and ρ from SAM's paper (arXiv
2010.01412), 0.05 on CIFAR-10 and 0.1 on the others. All rows use crops and mirror images.
"""

import csv
import dataclasses
from pathlib import Path
from typing import Any, Literal

from examples.classification import datasets
from examples.common import comparison, settings
from examples.common.comparison import BASE

_PUBLISHED_FILE = Path(__file__).with_name("published.csv")


@dataclasses.dataclass(frozen=True)
class Options(comparison.Options):
    """Train an image classifier with several methods and seeds, and compare them.

    Writes a table, figures, the loss of every step and checkpoints to OUTPUT/NAME. Ctrl-C or
    SIGTERM saves and stops. A resumed run ends with the same bits as an uninterrupted one.
    """

    row: str = ""
    """The named settings that all other options start from, see --list. The default is the row
    that is named like the data set, or digits."""
    list: bool = False
    """Print all rows and exit."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """One run for each. A seed sets the weights, the order, the label noise and the sampling."""
    epochs: int = 200
    batch_size: int = 128
    warmup: float = 0.005
    weight_decay: float = 5e-4
    segment_length: int = 50
    evaluate_every: int = 1

    dataset: str = "digits"
    """digits, fashion_mnist (of Debian), tiny_imagenet (its zip file), image_folder (your own
    images), or any image classification data set of tensorflow-datasets, such as cifar10."""
    data_files: Path | None = None
    """The folder of Fashion-MNIST's four files; tiny-imagenet-200.zip; cifar-10-binary.tar.gz or
    cifar-100-binary.tar.gz; or for image_folder the folder with train/CLASS/* and test/CLASS/*."""
    data_dir: Path | None = None
    """Where tensorflow-datasets keeps prepared data, if not in its default folder."""
    train_examples: int = 0
    """Use only this many training images, with the classes in equal shares; 0 uses all."""
    image_size: int = 0
    """Resize the images to this many pixels per side; 0 keeps their size."""
    label_noise: float = 0.0
    """Share of the training labels that are replaced by any other class, in [0, 1). The labels of
    the test set stay clean."""
    noisy_labels: Path | None = None
    """A .npy file with a label for each training image, such as CIFAR-10N's, to train with."""
    augment: tuple[Literal["crop", "mirror", "cutout"], ...] = ()
    """For photographs."""

    model: Literal["cnn", "resnet18", "wrn28_10", "pyramidnet110", "mobilenet", "vit_s"] = "cnn"
    width: int = 0
    """Channels of the first stage of cnn and resnet18. 0 means 16 and 64."""
    dropout: float = 0.0
    """In [0, 1)."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the computation. Parameters and losses are float32."""
    accumulate: int = 1
    """Parts of a batch that are computed one after another to save the memory of activations.
    Their gradients, also the perturbed ones, are averaged. BatchNorm normalizes each part
    separately. Methods that need single examples evaluate those of the whole batch at once."""

    own_methods = ("saf", "mesa")

    def information(self) -> str:
        return listing() if self.list else ""

    def smaller(self, output: Path) -> "Options":
        return dataclasses.replace(super().smaller(output), accumulate=min(self.accumulate, 2))


def check(options: Options) -> None:
    """Raises ConfigError for values out of range."""
    settings.check_numbers(options, shares=("label_noise", "dropout"), positive=("accumulate",))
    settings.require(
        options.noisy_labels is None or not options.label_noise,
        f"--noisy-labels {options.noisy_labels} gives the labels, so it needs --label-noise 0",
    )
    settings.require(
        options.data_files is None or options.dataset in datasets.FROM_FILES,
        f"--data-files is for {', '.join(datasets.FROM_FILES)}, not for {options.dataset}",
    )
    parts = options.accumulate * max(1, options.devices)
    settings.require(
        options.batch_size % parts == 0,
        f"--batch-size {options.batch_size} must be a multiple of --accumulate times --devices,"
        f" {parts}",
    )


def _read_published() -> dict[str, dict[str, str]]:
    with _PUBLISHED_FILE.open(newline="", encoding="utf-8") as file:
        return {cells["row"]: cells for cells in csv.DictReader(file)}


def _paper_row(cells: dict[str, Any]) -> Options:
    return Options(
        row=cells["row"],
        dataset=cells["dataset"],
        image_size=int(cells["image_size"]),
        model=cells["model"],
        method=(cells["method"],),
        label_noise=float(cells["label_noise"]),
        rho=float(cells["rho"]),
        alpha=float(cells["alpha"]),
        reuse_steps=int(cells["reuse_steps"]),
        augment=tuple(cells["augment"].split()),
    )


PUBLISHED = _read_published()
"""The rows of the paper's tables, by names such as ``table3/cifar100_wrn28_10_arsam``."""

_PAPER = {name: _paper_row(cells) for name, cells in PUBLISHED.items()}


def _cifar(name: str) -> Options:
    row = _PAPER[f"table3/{name}_resnet18_arsam"]
    return dataclasses.replace(row, row=name, method=(BASE, "sam", "arsam"), seeds=(0,))


# How digits was tuned is told in README.md.
_NAMED = {
    "digits": Options(
        dataset="digits",
        method=(BASE, "sam", "arsam", "budgeted_sam"),
        label_noise=0.4,
        epochs=30,
        batch_size=32,
        warmup=1 / 30,
        learning_rate=0.05,
        weight_decay=1e-2,
        rho=0.4,
        alpha=0.4,
        segment_length=4,
        share=1 / 4,
        microbatches=2,
    ),
    "fashion_mnist": Options(
        dataset="fashion_mnist",
        seeds=(0,),
        width=8,
        epochs=5,
        warmup=1 / 5,
        alpha=0.8,
        segment_length=10,
    ),
    "cifar10": _cifar("cifar10"),
    "cifar100": _cifar("cifar100"),
}

ROWS: dict[str, Options] = {
    **{name: dataclasses.replace(options, row=name) for name, options in _NAMED.items()},
    **_PAPER,
}
"""All rows by name. The first one is the default."""


def published(row: str) -> str:
    """The figures that the paper reports for a row of its tables, otherwise nothing."""
    if row not in PUBLISHED:
        return ""
    cells = PUBLISHED[row]
    figures = {
        "accuracy": " ± ".join(filter(None, (cells["accuracy"], cells["std"]))),
        "%SAM": cells["percent_sam"],
        "images/s": cells["images_per_second"],
        "speed-up": cells["speed_up"],
    }
    return "; published: " + ", ".join(f"{name} {text}" for name, text in figures.items() if text)


def listing() -> str:
    """All rows, one per line: the data set, the model, the methods and the published figures."""
    lines = []
    for name, options in ROWS.items():
        what = f"{options.dataset}, {options.model}, {' '.join(options.method)}"
        if options.label_noise:
            what += f", {100 * options.label_noise:g} % label noise"
        lines.append(f"{name:45} {what}{published(name)}")
    return "\n".join(lines)
