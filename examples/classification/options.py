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
from typing import Any, NamedTuple

from examples.classification import augment, datasets, models, noise
from examples.common import comparison, settings
from examples.common.comparison import BASE
from examples.common.methods import METHODS

_PUBLISHED_FILE = Path(__file__).with_name("published.csv")
# The settings that decide what is learned. Published figures are shown only if they are unchanged.
_OF_PUBLISHED = (
    "dataset",
    "train_examples",
    "image_size",
    "label_noise",
    "noise",
    "model",
    "width",
    "depth",
    "validation",
)


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
    """Share of noisy training labels, in [0, 1). The labels of the test set stay clean."""
    noise: str = "symmetric"
    """The noisy labels: symmetric (any other class), asymmetric (the class that it is mistaken
    for), or a file with one label for each training image."""
    augment: tuple[str, ...] = ()
    """For photographs: crop, mirror, cutout."""

    model: str = "cnn"
    """cnn, resnet18, wrn28_10, pyramidnet110, mobilenet or vit_s."""
    width: int = 0
    """Channels of the first stage of the model (PyramidNet: α). 0 is the published width."""
    depth: int = 0
    """Layers of wrn28_10 and pyramidnet110, blocks of vit_s. 0 is the published depth."""
    dropout: float = 0.0
    """In [0, 1)."""
    label_smoothing: float = 0.0
    """Probability that the training targets spread over all classes, in [0, 1)."""
    dtype: str = "float32"
    """float32 or bfloat16 for the computation. Parameters and losses are float32."""
    accumulate: int = 1
    """Parts of a batch that are computed one after another to save memory. Their gradients, also
    the perturbed ones, are averaged. BatchNorm normalizes each part separately."""

    own_methods = ("saf", "mesa")

    def information(self) -> str:
        return listing() if self.list else ""

    def impossible(self) -> dict[str, str]:
        if self.accumulate == 1:
            return {}
        why = "it needs the examples of the whole batch, so it cannot be used with --accumulate"
        names = {name for name, method in METHODS.items() if method.is_local}
        if self.microbatches:
            names.add("budgeted_sam")
        return {name: why for name in METHODS if name in names}

    def published(self) -> dict[str, dict[str, str]]:
        row = PAPER.get(self.row)
        if row is None or any(
            getattr(self, name) != getattr(row.options, name) for name in _OF_PUBLISHED
        ):
            return {}
        return {row.options.method[0]: row.figures}

    def smaller(self, output: Path) -> "Options":
        parts = self.accumulate * max(1, self.devices) * max(1, self.microbatches)
        return dataclasses.replace(
            super().smaller(output),
            batch_size=min(self.batch_size, parts * max(1, 8 // parts)),
            # A file has labels for all images of the data set.
            noise=self.noise if self.noise in noise.NOISES else "symmetric",
            train_examples=0,
        )


def check(options: Options) -> None:
    """Raises ConfigError for values out of range."""
    settings.require(
        options.row in ("", *ROWS), f"--row: there is no {options.row}; --list shows all rows"
    )
    for method, why in options.impossible().items():
        settings.require(method not in options.method, f"--method {method}: {why}")
    settings.require_known("model", [options.model], models.MODELS)
    settings.require_known("augment", options.augment, augment.AUGMENTATIONS)
    settings.require_known("dtype", [options.dtype], ("float32", "bfloat16"))
    settings.check_numbers(
        options,
        shares=("label_noise", "dropout", "label_smoothing"),
        positive=("accumulate",),
        not_negative=("width", "depth", "train_examples", "image_size"),
    )
    is_generated = options.noise in noise.NOISES
    settings.require(
        is_generated or Path(options.noise).is_file(),
        f"--noise must be {' or '.join(noise.NOISES)}, or a file of labels, not {options.noise}",
    )
    settings.require(
        is_generated or not options.label_noise,
        f"--noise {options.noise} gives the labels, so it needs --label-noise 0",
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


class PaperRow(NamedTuple):
    """A row of the paper's tables: its settings with one method, and the published figures."""

    options: Options
    figures: dict[str, str]
    note: str


def _read_published() -> dict[str, PaperRow]:
    with _PUBLISHED_FILE.open(newline="", encoding="utf-8") as file:
        return {cells["row"]: _paper_row(cells) for cells in csv.DictReader(file)}


def _paper_row(cells: dict[str, str]) -> PaperRow:
    options = Options(
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
    error = cells["std"] and f" ± {cells['std']}"
    figures = {
        "accuracy": cells["accuracy"] + error,
        "%SAM": cells["percent_sam"],
        "images/s": cells["images_per_second"],
        "speed-up": cells["speed_up"],
    }
    return PaperRow(options, {k: v for k, v in figures.items() if v}, cells["note"])


PAPER = _read_published()
"""The rows of the paper, by names such as ``table3/cifar100_wrn28_10_arsam``."""


def _cifar(name: str) -> Options:
    row = PAPER[f"table3/{name}_resnet18_arsam"].options
    return dataclasses.replace(row, row=name, method=(BASE, "sam", "arsam"), seeds=(0,))


_LABEL_NOISE_METHODS = (BASE, "sam", "arsam", "sam_every_k", "budgeted_sam")

# How digits and the two rows with label noise were tuned is told in README.md.
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
    "digits_noise": Options(
        dataset="digits",
        method=_LABEL_NOISE_METHODS,
        seeds=(0, 1, 2, 3, 4),
        label_noise=0.4,
        epochs=20,
        batch_size=32,
        warmup=1 / 20,
        learning_rate=0.08,
        weight_decay=4.8e-4,
        rho=0.35,
        alpha=0.8,
        segment_length=4,
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
    "fashion_mnist_noise": Options(
        dataset="fashion_mnist",
        method=_LABEL_NOISE_METHODS,
        seeds=(0, 1, 2, 3, 4),
        train_examples=1000,
        image_size=14,
        label_noise=0.4,
        width=8,
        epochs=24,
        batch_size=32,
        warmup=1 / 24,
        learning_rate=0.08,
        weight_decay=4.8e-4,
        rho=0.35,
        alpha=0.2,
        segment_length=4,
        evaluate_every=8,
    ),
    # The next two rows are for a GPU. The learning rate and weight decay of the transformer are
    # DeiT's (arXiv 2012.12877) for batches of 512. Neither row is tuned.
    "fashion_mnist_resnet18": Options(
        dataset="fashion_mnist",
        method=(BASE, "sam", "sam_every_k", "looksam", "ae_sam", "arsam", "budgeted_sam"),
        model="resnet18",
        dtype="bfloat16",
        augment=("crop", "mirror"),
        epochs=30,
        warmup=1 / 30,
        alpha=0.8,
    ),
    "fashion_mnist_vit": Options(
        dataset="fashion_mnist",
        method=(BASE, "sam", "budgeted_sam"),
        model="vit_s",
        dtype="bfloat16",
        augment=("crop", "mirror"),
        epochs=100,
        batch_size=512,
        accumulate=2,
        warmup=0.1,
        optimizer="adamw",
        learning_rate=5e-4,
        weight_decay=0.05,
        label_smoothing=0.1,
        rho=0.05,
    ),
    "cifar10": _cifar("cifar10"),
    "cifar100": _cifar("cifar100"),
}

ROWS: dict[str, Options] = {
    **{name: dataclasses.replace(options, row=name) for name, options in _NAMED.items()},
    **{name: row.options for name, row in PAPER.items()},
}
"""All rows by name. The first one is the default."""


def listing() -> str:
    """All rows, one per line: the data set, the model, the methods and the published figures."""
    lines = []
    for name, options in ROWS.items():
        what = f"{options.dataset}, {options.model}, {' '.join(options.method)}"
        if options.label_noise:
            what += f", {100 * options.label_noise:g} % label noise"
        if name in PAPER:
            figures: Any = PAPER[name].figures
            what += "; published: " + ", ".join(f"{k} {v}" for k, v in figures.items())
        lines.append(f"{name:45} {what}")
    return "\n".join(lines)
