"""Which settings make sense, by themselves and together."""

from collections.abc import Iterable
from pathlib import Path

from examples.classification import methods, models
from examples.classification.config import Config
from examples.classification.data import augment, datasets, noise
from examples.common import optimizers
from examples.common.errors import ConfigError

_SHARES = (*("label_noise", "validation", "dropout", "momentum", "label_smoothing", "ema_decay"),)
_POSITIVE = (
    *("epochs", "batch_size", "accumulate", "segment_length", "evaluate_every", "seeds_at_once"),
)
_NOT_NEGATIVE = (
    *("learning_rate", "weight_decay", "warmup_epochs", "rho", "alpha", "reuse_steps"),
    *("checkpoint_seconds", "devices", "width", "depth", "patience"),
    *("train_examples", "image_size", "input_workers"),
)


def check(config: Config) -> None:
    """Raises ConfigError for values out of range."""
    _check_names(config)
    _check_numbers(config)
    _check_data(config)
    _check_optimizer(config)
    _check_methods(config)
    _check_validation(config)
    _require("/" not in config.name and config.name not in (".", ".."), "--name is one folder name")


def flag(name: str) -> str:
    """As it is written on the command line, without the dashes before it."""
    return name.replace("_", "-")


def _check_names(config: Config) -> None:
    _require_known("method", config.method, [*methods.METHODS, "all"])
    _require_known("model", [config.model], models.MODELS)
    _require_known("augment", config.augment, augment.AUGMENTATIONS)
    _require_known("dtype", [config.dtype], ("float32", "bfloat16"))
    _require_known("optimizer", [config.optimizer], optimizers.OPTIMIZERS)
    _require_known("schedule", [config.schedule], optimizers.SCHEDULES)


def _check_numbers(config: Config) -> None:
    for name in ("method", "seeds"):
        values = getattr(config, name)
        _require(len(values) > 0, f"--{name} needs at least one value")
        _require(len(set(values)) == len(values), f"--{name} names one twice")
    _require(all(0 <= seed < 2**32 for seed in config.seeds), "--seeds must be in [0, 2**32)")
    for name in _SHARES:
        _require(0 <= getattr(config, name) < 1, f"--{flag(name)} must be in [0, 1)")
    for name in _POSITIVE:
        _require(getattr(config, name) >= 1, f"--{flag(name)} must be at least 1")
    for name in _NOT_NEGATIVE:
        _require(getattr(config, name) >= 0, f"--{flag(name)} must not be negative")
    _require(0 < config.share <= 1, "--share must be in (0, 1]")


def _check_data(config: Config) -> None:
    is_made = config.noise in noise.NOISES
    _require(
        is_made or Path(config.noise).is_file(),
        f"--noise {config.noise} is none of {', '.join(noise.NOISES)}, and no file of labels",
    )
    _require(
        is_made or not config.label_noise,
        f"--noise {config.noise} gives the labels; that needs --label-noise 0",
    )
    _require(
        config.noise != "asymmetric" or config.label_noise > 0,
        "--noise asymmetric needs --label-noise",
    )
    _require(
        config.data_files is None or config.dataset in datasets.FROM_FILES,
        f"--data-files is for {', '.join(datasets.FROM_FILES)}",
    )


def _check_optimizer(config: Config) -> None:
    _require(
        config.warmup_epochs < config.epochs,
        f"--warmup-epochs must be less than --epochs, and {config.warmup_epochs:g} is not less than"
        f" {config.epochs}; --warmup-epochs 0 is no warm-up",
    )
    _require(
        config.optimizer == "sgd" or config.momentum == Config.momentum,
        f"--momentum is for --optimizer sgd; {config.optimizer} has averages of its own",
    )


def _check_methods(config: Config) -> None:
    parts = methods.NUM_MICROBATCHES
    _require(
        "m_sam" not in config.method or config.batch_size % parts == 0,
        f"m_sam needs a --batch-size divisible by {parts}",
    )
    if config.accumulate > 1:
        whole = [name for name in config.method if name in methods.OF_THE_WHOLE_BATCH]
        _require(
            not whole, f"--accumulate is not for {', '.join(whole)}, which sees single examples"
        )


def _check_validation(config: Config) -> None:
    for name in ("keep_best", "patience", "final_test"):
        _require(
            not getattr(config, name) or config.validation > 0,
            f"--{flag(name)} needs --validation: nothing is chosen on the test set",
        )
    if config.seeds_at_once > 1:
        for name in ("keep_best", "patience"):
            _require(not getattr(config, name), f"--{flag(name)} needs --seeds-at-once 1")
        _require(not config.input_workers, "--input-workers needs --seeds-at-once 1")


def _require(is_met: bool, message: str) -> None:
    if not is_met:
        raise ConfigError(message)


def _require_known(option: str, values: Iterable[str], known: Iterable[str]) -> None:
    unknown = [value for value in values if value not in known]
    _require(
        not unknown,
        f"--{option}: there is no {', '.join(unknown)}; there are {', '.join(known)}",
    )
