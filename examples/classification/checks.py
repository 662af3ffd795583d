"""Which settings make sense, by themselves and together."""

from pathlib import Path

from examples.classification import methods, models
from examples.classification.config import Config
from examples.classification.data import augment, datasets, noise
from examples.common import optimizers
from examples.common.settings import check_numbers, flag, require, require_known

_SHARES = (*("label_noise", "validation", "dropout", "momentum", "label_smoothing", "ema_decay"),)
_POSITIVE = (
    *("epochs", "batch_size", "accumulate", "segment_length", "evaluate_every", "seeds_at_once"),
)
_NOT_NEGATIVE = (
    *("learning_rate", "weight_decay", "rho", "rho_of_weights", "alpha", "reuse_steps"),
    *("checkpoint_seconds", "devices", "width", "depth", "patience"),
    *("train_examples", "image_size", "input_workers"),
)


def check(config: Config) -> None:
    """Raises ConfigError for values out of range."""
    _check_names(config)
    check_numbers(config, shares=_SHARES, positive=_POSITIVE, not_negative=_NOT_NEGATIVE)
    _check_data(config)
    _check_optimizer(config)
    _check_methods(config)
    _check_validation(config)
    require("/" not in config.name and config.name not in (".", ".."), "--name is one folder name")


def _check_names(config: Config) -> None:
    require_known("method", config.method, [*methods.METHODS, "all"])
    require_known("model", [config.model], models.MODELS)
    require_known("augment", config.augment, augment.AUGMENTATIONS)
    require_known("dtype", [config.dtype], ("float32", "bfloat16"))
    require_known("optimizer", [config.optimizer], optimizers.OPTIMIZERS)
    require_known("schedule", [config.schedule], optimizers.SCHEDULES)


def _check_data(config: Config) -> None:
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
        config.data_files is None or config.dataset in datasets.FROM_FILES,
        f"--data-files is for {', '.join(datasets.FROM_FILES)}",
    )


def _check_optimizer(config: Config) -> None:
    require(
        0 <= config.warmup < config.epochs,
        f"--warmup-epochs must be in [0, {config.epochs}), less than --epochs, and is"
        f" {config.warmup:g}; --warmup-epochs 0 is no warm-up",
    )
    require(
        config.optimizer == "sgd" or config.momentum == Config.momentum,
        f"--momentum is for --optimizer sgd; {config.optimizer} has averages of its own",
    )


def _check_methods(config: Config) -> None:
    parts = methods.NUM_MICROBATCHES
    for name in ("m_sam", *methods.MICROBATCHED):
        require(
            name not in config.method or config.batch_size % parts == 0,
            f"{name} needs a --batch-size divisible by {parts}",
        )
    if config.accumulate > 1:
        whole = [name for name in config.method if name in methods.OF_THE_WHOLE_BATCH]
        require(
            not whole,
            f"--accumulate is not for {', '.join(whole)}, which sees single examples: leave it out"
            " of --method",
        )


def _check_validation(config: Config) -> None:
    for name in ("keep_best", "patience", "final_test"):
        require(
            not getattr(config, name) or config.validation > 0,
            f"--{flag(name)} needs --validation: nothing is chosen on the test set",
        )
    if config.seeds_at_once > 1:
        for name in ("keep_best", "patience"):
            require(not getattr(config, name), f"--{flag(name)} needs --seeds-at-once 1")
        require(not config.input_workers, "--input-workers needs --seeds-at-once 1")
