"""Trains an image classifier with SGD, SAM, ARSAM, ... and compares accuracy and cost.

python -m examples.classification                           handwritten digits, 40 % wrong labels
python -m examples.classification --method sam arsam --seeds 0 1 --alpha 0.4
python -m examples.classification --list                       all configs
python -m examples.classification --config table3/cifar100_wrn28_10_arsam   a row of a paper's table
python -m examples.classification --config cifar10 --help      the settings of a file in configs/
python -m examples.classification --config cifar10 --smoke     tries them, without the data
python -m examples.classification --resume                     after an interruption
python -m examples.classification --devices 4                  each batch on four devices
"""

import dataclasses
import logging
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from rich import progress
from rich.console import Console

from arsam_jax.trajectory import START_EPOCH
from examples.classification import loop, processes, runs, settings
from examples.classification.config import Config
from examples.classification.data import datasets, noise
from examples.classification.data.images import Dataset
from examples.classification.methods import gradients, perturbation_size, step_cost
from examples.classification.trainer import Trainer
from examples.common.errors import CheckpointError, ConfigError, DataError, StoppedError
from examples.common.estimate import Estimate
from examples.common.settings import resume_arguments, to_dict, write
from examples.common.stopping import StopRequest, stop_on_signal

_PROGRESS_COLUMNS = (
    progress.TextColumn("{task.description}"),
    progress.BarColumn(),
    progress.TextColumn("{task.fields[text]}"),
)
_PROGRESS = (
    "loss {loss:.3f}  accuracy {accuracy:.1%}  {percent_sam:.0f} %SAM"
    "  {images_per_second:,.0f} images/s"
)


def main(arguments: Sequence[str] | None = None, *, prog: str = settings.PROG) -> int:
    """Runs the program, the part of this process if there are several; returns its exit status."""
    logging.getLogger("absl").setLevel(logging.ERROR)
    if "--list" in (sys.argv[1:] if arguments is None else arguments):
        print(settings.listing())
        return 0
    try:
        config = settings.parse(arguments)
        if config.smoke:
            if jax.process_count() > 1:
                raise ConfigError("--smoke is for one process")
            with tempfile.TemporaryDirectory() as folder:
                return _run(_smaller(config, Path(folder)), prog)
        settings.check_folder(config)
        return _run(config, prog)
    except (
        *(ConfigError, DataError, CheckpointError),
        *(processes.DisagreementError, runs.RunError, OSError),
    ) as error:
        console = Console(stderr=True, markup=False, highlight=False)
        console.print(f"error: {error}", style="red", soft_wrap=True)
        return 2


def _run(config: Config, prog: str) -> int:
    trainer = Trainer(config, load(config))
    noise.training_labels(trainer.data, config.noise, config.label_noise, config.seeds[0])
    console = Console(quiet=not processes.is_main(), markup=False, highlight=False)
    unfinished = _unfinished(config)
    processes.require_same("the settings", to_dict(config))
    processes.require_same("the runs that are finished", unfinished)
    if processes.is_main():  # all have looked into the folder by now
        config.folder.mkdir(parents=True, exist_ok=True)
        if unfinished:
            runs.save_environment(config.folder, trainer)
        write(config)
    console.print(_describe(config, trainer), highlight=False)
    with stop_on_signal() as stop:
        try:
            _run_all(unfinished, trainer, console, stop)
        except StoppedError as interrupted:
            console.print(f"Saved, and stopped {interrupted}. Go on with:", highlight=False)
            command = shlex.join([*prog.split(), *resume_arguments(config)])
            console.print(f"  {command}", soft_wrap=True)
            return 128 + (stop.signal or 0)
    if processes.is_main() and not config.smoke:
        from examples.classification import report  # its plots are slow to import

        report.write([config.folder], console)
    return 0


def load(config: Config) -> Dataset:
    """The data of these settings; with --smoke, generated data of its shape."""
    if config.smoke:
        return datasets.generated(
            config.dataset,
            num_examples=2 * config.batch_size,
            validation=config.validation > 0,
            image_size=config.image_size,
            data_files=config.data_files,
        )
    return datasets.load(
        config.dataset,
        data_dir=config.data_dir,
        data_files=config.data_files,
        validation=config.validation,
        image_size=config.image_size,
        train_examples=config.train_examples,
        in_memory=not config.input_workers,
    )


def _smaller(config: Config, folder: Path) -> Config:
    """The same settings for two epochs of two small batches."""
    parts = config.accumulate * max(1, config.devices)
    return dataclasses.replace(
        config,
        output=folder,
        seeds=config.seeds[: config.seeds_at_once],
        epochs=2,
        warmup_epochs=min(config.warmup, 1.0),
        batch_size=min(config.batch_size, parts * max(1, 8 // parts)),
        noise="symmetric" if Path(config.noise).is_file() else config.noise,  # it has too many
        train_examples=0,
        input_workers=0,
        resume=False,
    )


def _unfinished(config: Config) -> list[tuple[tuple[int, ...], str]]:
    """The groups of seeds, and methods, without all results, in the order in which to run them.

    The methods of a seed run one after another, so that all of them see the same load of the
    machine.
    """
    size = config.seeds_at_once
    groups = [config.seeds[i : i + size] for i in range(0, len(config.seeds), size)]
    return [
        (seeds, method)
        for seeds in groups
        for method in config.method
        if not all(
            (loop.seed_folder(config.folder / method, s) / loop.RESULT_FILE).exists() for s in seeds
        )
    ]


def _run_all(
    unfinished: list[tuple[tuple[int, ...], str]],
    trainer: Trainer,
    console: Console,
    stop: StopRequest,
) -> None:
    """Trains what has not been trained yet. Each method is compiled once, for all seeds."""
    config, step_fns = trainer.config, {}
    keys = [(method, len(seeds)) for seeds, method in unfinished]
    left = Estimate(
        *(trainer.total_steps, keys),
        programs={key: gradients(key[0]) for key in keys},
        costs={key: step_cost(*key, config) for key in keys},
    )
    if keys:
        console.print(
            f"To train: {sum(len(seeds) for seeds, _ in unfinished)} runs of"
            f" {trainer.total_steps:,} steps, about {left.gradients:,.0f} gradients in all"
        )
    with progress.Progress(
        *_PROGRESS_COLUMNS, console=console, transient=True, disable=not console.is_terminal
    ) as bars:
        of_all = bars.add_task("all runs", total=left.gradients, text="")
        for (seeds, method), key in zip(unfinished, keys, strict=True):
            of_run = bars.add_task(f"{method}, {loop.names(seeds)}", total=None, text="compiling")
            if key not in step_fns:
                started = time.perf_counter()
                step_fns[key] = trainer.compile_step(*key)
                left.compiled(key, time.perf_counter() - started)
            bars.update(of_run, total=trainer.total_steps)

            def show(step: int, now: dict[str, float], of_run=of_run, key=key) -> None:
                is_first = left.seconds_left() is None
                left.reach(step)
                done = left.gradients - left.gradients_left()
                bars.update(of_all, completed=done, text=left.text())
                bars.update(of_run, completed=step, text=_PROGRESS.format(**now))
                if is_first and left.seconds_left() is not None:
                    console.print(f"{left.text()}, judging by the first steps of {key[0]}")

            left.start_run()
            results = loop.train(
                *(trainer, step_fns[key], method, seeds, config.folder / method),
                on_progress=show,
                should_stop=stop,
            )
            left.end_run()
            bars.remove_task(of_run)
            lines = "\n".join(_result(result, config) for result in results)
            console.print(lines + (f"; {left.text()}" if left.runs else ""))


def _result(result: dict[str, Any], config: Config) -> str:
    """Of a run that is finished, in a line."""
    stopped = f", stopped after {result['epochs']} epochs"
    return (
        f"{result['method']}, seed {result['seed']}: {runs.accuracy_name(config)} accuracy"
        f" {result['accuracy']:.1%}, {result['percent_sam']:.0f} %SAM, {result['seconds']:.1f} s"
        f"{stopped if result['epochs'] < config.epochs else ''}"
    )


def _describe(config: Config, trainer: Trainer) -> str:
    dataset = trainer.data
    shape = "×".join(map(str, dataset.train_images.shape[1:]))
    num_evaluated = len(dataset.evaluation[1])
    saf = f"; SAF keeps {trainer.logit_memory_bytes / 1e6:.1f} MB of logits"
    return (
        f"{runs.title(config)}: {len(dataset.train_images):,} training and"
        f" {num_evaluated:,} {runs.accuracy_name(config)} images of {shape};"
        f" {config.model} with {trainer.num_params:,} parameters;"
        f" {config.epochs} epochs, {config.warmup:g} of them warm-up,"
        f" {trainer.total_steps:,} steps; on {_devices(trainer)}"
        f"{saf if 'saf' in config.method else ''}{_effective_m(config)}{_without_term(config)}"
        f"{_few_segments(config, trainer.total_steps)}"
    )


def _without_term(config: Config) -> str:
    """Says which methods are plain SGD, since their term starts after the last epoch."""
    methods = ", ".join(m for m in ("saf", "mesa") if m in config.method)
    if not methods or config.epochs > START_EPOCH + 1 or config.smoke:
        return ""
    return f"; warning: nothing but sgd before epoch {START_EPOCH + 2}: {methods}"


def _few_segments(config: Config, total_steps: int) -> str:
    """Says where the probability of ARSAM has no time to move."""
    is_short = total_steps < 100 * config.segment_length and config.segment_length > 10
    if "arsam" not in config.method or not is_short or config.smoke:
        return ""
    return (
        f"; warning: ARSAM's probability moves {total_steps // config.segment_length} times in all,"
        f" once in --segment-length {config.segment_length} steps; take 8 to 10 for a short run"
    )


def _devices(trainer: Trainer) -> str:
    devices, processes = trainer.mesh.size, jax.process_count()
    return (
        jax.default_backend()
        + (f", {devices} devices" if devices > 1 else "")
        + (f" of {processes} processes" if processes > 1 else "")
    )


def _effective_m(config: Config) -> str:
    """How many examples share one perturbation, and which methods have another number."""
    sizes = {method: perturbation_size(method, config) for method in config.method}
    sizes = {method: size for method, size in sizes.items() if size}
    if not sizes:
        return ""
    parts = {m: size for m, size in sizes.items() if size != config.batch_size}
    named = ", ".join(f"{method} {size}" for method, size in parts.items())
    if len(parts) == len(sizes):
        return f"; effective m: {named}"
    return f"; effective m = {config.batch_size}, the whole batch" + (named and f" ({named})")


if __name__ == "__main__":
    sys.exit(main())
