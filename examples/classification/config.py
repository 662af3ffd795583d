"""The settings of ``python -m examples.classification``, and where their defaults come from.

A file of ``configs`` (or any other of that form) holds ``config``, a ``Config``, and may hold
``published``, what a paper reports for each method of it.
"""

import argparse
import dataclasses
import difflib
import json
import runpy
import typing
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import tyro

from examples.classification import methods
from examples.classification import small_networks as models
from examples.classification.data import augment, noise
from examples.classification.data import sets as data
from examples.common.errors import ConfigError
from examples.common.records import write_json

CONFIG_FILE = "config.json"
CONFIGS = Path(__file__).with_name("configs")


@dataclasses.dataclass(frozen=True)
class Config:
    """Train an image classifier with several methods and seeds, and compare them.

    Writes a table, plots, CSV files of every step and epoch, and checkpoints to OUTPUT/NAME.
    Ctrl-C or SIGTERM saves and stops; --resume ends at the very bits of an uninterrupted run.
    The defaults depend on the data set: --dataset DATASET --help shows them.
    """

    config: str = ""
    """Where all other settings start: a file of configs/, by its name, or any by its path.
    By default the one named like the data set, if there is one."""
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
    """Peak of the schedule: linear warm-up, then cosine to 0."""
    warmup_epochs: float = 1.0
    """Length of the linear warm-up."""
    weight_decay: float = 5e-4
    """Coupled: added to the gradient (L2), after the sharpness-aware link."""
    momentum: float = 0.9
    """Momentum of SGD, the base optimizer of every method."""
    label_smoothing: float = 0.0
    """Probability that the training targets spread over all classes, in [0, 1)."""
    ema_decay: float = 0.0
    """Evaluates a moving average of the weights with this decay, in [0, 1); 0: the weights."""

    rho: float = 0.1
    """Radius of the perturbation."""
    alpha: float = 0.4
    """ARSAM: how strongly the PSF's share of the gradient moves the sampling."""
    segment_length: int = 50
    """ARSAM: steps between two changes of the sampling probability."""
    reuse_steps: int = 2
    """ARSAM: steps after a sample that reuse its PSF."""
    share: float = 1 / 8
    """budgeted_sam: the share of sampled steps, in (0, 1]."""

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
    """Devices that share each batch; 0: one. With examples.multihost of each process; 0: all."""

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
    def folder(self) -> Path:
        return self.output / _folder_name(self.name, self.config, self.dataset)


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


def parse(arguments: Sequence[str] | None = None) -> Config:
    """Reads the command line. Defaults come from a config file, or the resumed run.

    Raises:
      ConfigError: for a config file that there is not or that is none, and for bad values.
    """
    peek = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for option in ("--config", "--dataset", "--name"):  # one without a value is for tyro to report
        peek.add_argument(option, nargs="?", default="", const="")
    peek.add_argument("--output", nargs="?", type=Path, default=Path("runs"), const=Path("runs"))
    peek.add_argument("--resume", action="store_true")
    first, _ = peek.parse_known_args(arguments)
    file = first.output / _folder_name(first.name, first.config, first.dataset) / CONFIG_FILE
    if first.resume and file.exists():
        defaults = dataclasses.replace(read(file), resume=False)
        if first.config not in ("", defaults.config):
            raise ConfigError(f"{file.parent} is not of --config {first.config}; leave that out")
    elif first.config:
        defaults = dataclasses.replace(_load(first.config)["config"], config=first.config)
    elif (CONFIGS / f"{first.dataset or Config.dataset}.py").exists():
        defaults = _load(first.dataset or Config.dataset)["config"]
    else:
        defaults = Config(dataset=first.dataset)
    prog = "python -m examples.classification"
    config = tyro.cli(Config, args=arguments, default=defaults, prog=prog)
    if "all" in config.method:
        config = dataclasses.replace(config, method=tuple(methods.METHODS))
    check(config)
    return config


def names() -> list[str]:
    """Of the files in ``examples/classification/configs``."""
    return sorted(path.stem for path in CONFIGS.glob("[!_]*.py") if path.stem != "paper")


def published(config: Config) -> dict[str, Published]:
    """What a paper reports for the methods of this config's file; nothing if there is no file."""
    return _load(config.config).get("published", {}) if config.config else {}


def _load(name: str) -> dict[str, Any]:
    """The values in a config file."""
    path = Path(name) if name.endswith(".py") else CONFIGS / f"{name}.py"
    if not path.is_file():
        near = difflib.get_close_matches(name, names(), n=3, cutoff=0.5)
        hint = f" Did you mean {' or '.join(near)}?" if near else f" {CONFIGS} has them."
        raise ConfigError(f"there is no config {name!r}.{hint}")
    try:
        values = runpy.run_path(str(path))
    except Exception as error:
        raise ConfigError(f"{path} cannot be run: {error!r}") from error
    config = values.get("config")
    if not isinstance(config, Config):
        raise ConfigError(f"{path} does not define config, a Config of examples.classification")
    for field, kind in typing.get_type_hints(Config).items():
        value = getattr(config, field)
        if not _is_of_kind(value, kind):
            raise ConfigError(f"{path}: {field} must be {kind}, not {value!r}")
    return values


def _is_of_kind(value: Any, kind: Any) -> bool:
    arguments = typing.get_args(kind)
    if typing.get_origin(kind) is tuple:
        return isinstance(value, tuple) and all(_is_of_kind(v, arguments[0]) for v in value)
    if arguments:  # of a union
        return any(_is_of_kind(value, argument) for argument in arguments)
    if kind is float and isinstance(value, int):
        return True
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _folder_name(name: str, config: str, dataset: str) -> str:
    return name or Path(config).stem or dataset or Config.dataset


def check(config: Config) -> None:
    """Raises ConfigError for values out of range."""

    def require(is_met: bool, message: str) -> None:
        if not is_met:
            raise ConfigError(message)

    def require_known(option: str, values: Iterable[str], known: Iterable[str]) -> None:
        unknown = [value for value in values if value not in known]
        require(
            not unknown,
            f"--{option}: there is no {', '.join(unknown)}; there are {', '.join(known)}",
        )

    require_known("method", config.method, [*methods.METHODS, "all"])
    require_known("model", [config.model], models.MODELS)
    require_known("augment", config.augment, augment.AUGMENTATIONS)
    require_known("dtype", [config.dtype], ("float32", "bfloat16"))
    for name in ("method", "seeds"):
        values = getattr(config, name)
        require(len(values) > 0, f"--{name} needs at least one value")
        require(len(set(values)) == len(values), f"--{name} names one twice")
    require(all(0 <= seed < 2**32 for seed in config.seeds), "--seeds must be in [0, 2**32)")
    for name in (
        "label_noise",
        "validation",
        "dropout",
        "momentum",
        "label_smoothing",
        "ema_decay",
    ):
        require(0 <= getattr(config, name) < 1, f"--{_flag(name)} must be in [0, 1)")
    for name in (
        *("epochs", "batch_size", "accumulate", "segment_length", "evaluate_every"),
        "seeds_at_once",
    ):
        require(getattr(config, name) >= 1, f"--{_flag(name)} must be at least 1")
    for name in (
        *("learning_rate", "weight_decay", "warmup_epochs", "rho", "alpha", "reuse_steps"),
        *("checkpoint_seconds", "devices", "width", "depth", "patience"),
        *("train_examples", "image_size", "input_workers"),
    ):
        require(getattr(config, name) >= 0, f"--{_flag(name)} must not be negative")
    require(0 < config.share <= 1, "--share must be in (0, 1]")
    require(
        config.warmup_epochs < config.epochs,
        f"--warmup-epochs must be less than --epochs, and {config.warmup_epochs:g} is not less than"
        f" {config.epochs}; --warmup-epochs 0 is no warm-up",
    )
    is_made = config.noise in noise.NOISES
    require(
        is_made or Path(config.noise).is_file(),
        f"--noise {config.noise} is none of {', '.join(noise.NOISES)}, and no file of labels",
    )
    require(
        is_made or not config.label_noise,
        f"--noise {config.noise} gives the labels; that needs --label-noise 0",
    )
    require(
        config.noise != "asymmetric" or config.label_noise > 0,
        "--noise asymmetric needs --label-noise",
    )
    require(
        config.data_files is None or config.dataset in data.FROM_FILES,
        f"--data-files is for {', '.join(data.FROM_FILES)}",
    )
    parts = methods.NUM_MICROBATCHES
    require(
        "m_sam" not in config.method or config.batch_size % parts == 0,
        f"m_sam needs a --batch-size divisible by {parts}",
    )
    for name in ("keep_best", "patience", "final_test"):
        require(
            not getattr(config, name) or config.validation > 0,
            f"--{_flag(name)} needs --validation: nothing is chosen on the test set",
        )
    if config.accumulate > 1:
        whole = [name for name in config.method if name in methods.OF_THE_WHOLE_BATCH]
        require(
            not whole, f"--accumulate is not for {', '.join(whole)}, which sees single examples"
        )
    if config.seeds_at_once > 1:
        for name in ("keep_best", "patience"):
            require(not getattr(config, name), f"--{_flag(name)} needs --seeds-at-once 1")
        require(not config.input_workers, "--input-workers needs --seeds-at-once 1")
    require("/" not in config.name and config.name not in (".", ".."), "--name is one folder name")


def check_folder(config: Config) -> None:
    """Raises ConfigError rather than overwrite a run, or resume what is none or is another."""
    folder, file = config.folder, config.folder / CONFIG_FILE
    for path in (folder, *folder.parents):
        if path.exists() and not path.is_dir():
            raise ConfigError(f"--output: {path} is not a folder")
    if config.resume:
        if not file.exists():
            raise ConfigError(f"there is no run to resume in {folder}")
        stored, given = _results_settings(read(file)), _results_settings(config)
        changed = [
            f"--{_flag(key)} {stored[key]} → {given[key]}"
            for key in given
            if key in stored and stored[key] != given[key]
        ]
        if changed:
            raise ConfigError(f"a resumed run keeps its settings, but {', '.join(changed)}")
    elif folder.exists() and any(path.suffix != ".tmp" for path in folder.iterdir()):
        raise ConfigError(
            f"{folder} is not empty. Go on with its runs (or show finished ones again) with"
            f" --resume, choose another --name, or delete the folder"
        )


def resume_arguments(config: Config) -> list[str]:
    """The arguments with which to go on with the runs in the folder."""
    arguments = ["--resume", "--name", config.folder.name]
    return (
        arguments if config.output == Path("runs") else [*arguments, "--output", str(config.output)]
    )


def to_dict(config: Config) -> dict[str, Any]:
    """The settings as JSON can hold them."""
    return {
        key: str(value) if isinstance(value, Path) else value
        for key, value in dataclasses.asdict(config).items()
    }


def write(config: Config) -> None:
    """Writes the settings to the run folder; of a resumed run, with what else it is to train."""
    file = config.folder / CONFIG_FILE
    if config.resume:
        stored = read(file)
        config = dataclasses.replace(
            config,
            method=tuple(dict.fromkeys((*stored.method, *config.method))),
            seeds=tuple(dict.fromkeys((*stored.seeds, *config.seeds))),
        )
    write_json(file, to_dict(config))


def read(file: Path) -> Config:
    """The settings of a run, from its CONFIG_FILE.

    Raises:
      ConfigError: if the file is damaged, or of another version of this program.
    """
    try:
        values = json.loads(file.read_text())
        for name in ("method", "seeds", "augment"):
            values[name] = tuple(values[name])
        for name in ("data_dir", "data_files", "output"):
            values[name] = None if values[name] is None else Path(values[name])
        return Config(**values)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{file} does not hold the settings of a run: {error!r}") from error


def _results_settings(config: Config) -> dict[str, Any]:
    ignored = (*NOT_OF_RESULTS, "method", *(["seeds"] if config.seeds_at_once == 1 else []))
    values = to_dict(config) | {"input_workers": bool(config.input_workers)}  # not how many
    return {key: value for key, value in values.items() if key not in ignored}


def _flag(name: str) -> str:
    return name.replace("_", "-")
