"""The settings of ``python -m examples.classification``.

A config is a file of ``configs`` (or any other of that form), which holds ``config``, a ``Config``,
and may hold ``published``, what a paper reports for each method of it; or a row of a paper's
tables, see ``paper.py``.
"""

import dataclasses
from pathlib import Path
from typing import NamedTuple


@dataclasses.dataclass(frozen=True)
class Config:
    """Train an image classifier with several methods and seeds, and compare them.

    --list shows all configs.
    Writes a table, plots, CSV files of every step and epoch, and checkpoints to OUTPUT/NAME.
    Ctrl-C or SIGTERM saves and stops; --resume ends at the very bits of an uninterrupted run.
    The defaults depend on the data set: --dataset DATASET --help shows them.
    """

    config: str = ""
    """Where all other settings start: a config of --list by its name, or a file by its path. By
    default the one named like the data set, if there is one."""
    method: tuple[str, ...] = ("sgd", "sam", "arsam")
    """Methods to compare, or all: see methods.py."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """A run for each. A seed sets the weights, order, label noise and sampling."""
    seeds_at_once: int = 1
    """Seeds of a method that one device trains together (vmap). For SGD and SAM: a method that
    takes its second gradient on some steps only then pays it on all."""

    dataset: str = "digits"
    """digits, fashion_mnist (of Debian), tiny_imagenet (its zip), image_folder (your own images),
    or cifar10, ... of tensorflow-datasets."""
    data_files: Path | None = None
    """Folder of Fashion-MNIST's four idx.gz files, if not Debian's; tiny-imagenet-200.zip;
    cifar-10-binary.tar.gz or cifar-100-binary.tar.gz, which need no TensorFlow; the folder of
    image_folder, with train/CLASS/* and test/CLASS/*."""
    data_dir: Path | None = None
    """Where prepared data is kept, if not where tensorflow-datasets does."""
    train_examples: int = 0
    """Keeps only so many training images, with the classes in equal shares; 0: all."""
    image_size: int = 0
    """Resizes the images to this many pixels a side; 0: as they are."""
    input_workers: int = 0
    """Processes that read images while the device trains, for sets larger than memory; 0: all
    images are read into memory at the start."""
    label_noise: float = 0.0
    """Share of wrong training labels, in [0, 1). Other labels stay clean."""
    noise: str = "symmetric"
    """Which label a wrong one is: symmetric (any other), asymmetric (the one it is mistaken for),
    or a file with a label for each training image."""
    validation: float = 0.0
    """Share of the training set to evaluate on, in place of the test set, in [0, 1)."""
    augment: tuple[str, ...] = ()
    """For photographs: crop, mirror, cutout, randaugment."""

    model: str = "cnn"
    """cnn, resnet18, wrn28_10, pyramidnet110, mobilenet or vit_s."""
    width: int = 0
    """Channels of the model's first stage (PyramidNet: α); 0: as published, 16 for the cnn."""
    depth: int = 0
    """Layers of wrn28_10 and pyramidnet110, blocks of vit_s; 0: as published."""
    dropout: float = 0.0
    """Dropout of the model, in [0, 1)."""
    dtype: str = "float32"
    """float32 or bfloat16, of the computation; parameters and losses stay in float32."""

    epochs: int = 200
    """Passes over the training set."""
    batch_size: int = 128
    """Images a step. An epoch leaves out those that fill no batch."""
    accumulate: int = 1
    """Parts of a batch that are computed one after another, to save memory; their gradients, the
    perturbed ones too, are averaged. BatchNorm normalises each by itself."""
    learning_rate: float = 0.1
    """Peak of the schedule."""
    schedule: str = "cosine"
    """After the linear warm-up: cosine (to 0), step (a tenth from half of the steps on, a hundredth
    from three quarters on), wsd (as it is, linear to 0 in the last fifth), poly (to 0
    as (1 - t)^0.9), or constant."""
    warmup_epochs: float | None = None
    """Length of the linear warm-up; by default 1, and of a single epoch half of it."""
    optimizer: str = "sgd"
    """Base optimizer of every method: sgd, adamw, lion or muon. The others want a --learning-rate
    of their own, about 1e-3."""
    weight_decay: float = 5e-4
    """Of sgd, coupled: added to the gradient (L2), after the sharpness-aware link. Of the others,
    decoupled: times the learning rate it is taken off the weights."""
    momentum: float = 0.9
    """Momentum of sgd; the other optimizers have averages of their own."""
    label_smoothing: float = 0.0
    """Probability that the training targets spread over all classes, in [0, 1)."""
    ema_decay: float = 0.0
    """Evaluates a moving average of the weights with this decay, in [0, 1); 0: the weights."""

    rho: float = 0.1
    """Radius of the perturbation."""
    rho_of_weights: float = 0.0
    """Not 0: ρ is this part of the length of the weights at the start, and --rho is not read (but
    by gam, for its second radius). 0.009 suits small networks for which none was tuned."""
    alpha: float = 0.4
    """ARSAM: how strongly the PSF's share of the gradient moves the sampling."""
    segment_length: int = 50
    """ARSAM: steps between two changes of the sampling probability."""
    reuse_steps: int = 2
    """ARSAM: steps after a sample that reuse its PSF."""
    share: float = 1 / 8
    """budgeted_sam and budgeted_m_sam: the share of sampled steps, in (0, 1]."""

    evaluate_every: int = 1
    """Epochs between two evaluations; the last epoch is always evaluated."""
    keep_best: bool = False
    """Keeps the checkpoint of the best validation accuracy, too; needs --validation."""
    patience: int = 0
    """Stops early after so many evaluations without a better one; needs --validation; 0: never."""
    final_test: bool = False
    """With --validation: once, at the end, also the accuracy on the test set, of the best
    checkpoint if that is kept."""
    checkpoint_seconds: float = 60.0
    """Between two checkpoints; there is one on interruption and at the end, too."""
    tensorboard: bool = False
    """Also writes TensorBoard event files: tensorboard --logdir OUTPUT."""

    devices: int = 0
    """Devices that share each batch; 0: one. With examples.classification.multihost: of each
    process; 0: all."""

    output: Path = Path("runs")
    """Folder of all runs."""
    name: str = ""
    """Folder of this comparison in OUTPUT, if not that of --config or the data set."""
    resume: bool = False
    """Go on in OUTPUT/NAME, with its settings; --method and --seeds may change."""
    smoke: bool = False
    """Only tries the settings: a few steps on random images of the right shape, in a folder that is
    deleted at the end."""

    @property
    def warmup(self) -> float:
        """Length of the linear warm-up, in epochs."""
        return min(1.0, self.epochs / 2) if self.warmup_epochs is None else self.warmup_epochs

    @property
    def folder(self) -> Path:
        return self.output / folder_name(self.name, self.config, self.dataset)


def folder_name(name: str, config: str, dataset: str) -> str:
    return name or Path(config).stem or dataset or Config.dataset


class Published(NamedTuple):
    """What a paper reports of a method: percentages, and images a second."""

    accuracy: float
    std: float | None = None
    percent_sam: float | None = None
    images_per_second: float | None = None
    speed_up: float | None = None  # over SAM


NOT_OF_RESULTS = (
    *("config", "checkpoint_seconds", "tensorboard", "devices", "smoke"),
    *("data_dir", "data_files", "output", "name", "resume"),
)
"""Settings that do not change a run's results, or by rounding only."""
