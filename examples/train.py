"""Trains an image classifier with SGD, SAM, ARSAM, ... and compares accuracy and cost.

python -m examples.train                                      handwritten digits, 40 % wrong labels
python -m examples.train --method sam arsam --seeds 0 1 --alpha 0.4
python -m examples.train --dataset cifar10 --help             the settings for a data set
python -m examples.train --resume                             after an interruption
python -m examples.train --devices 4                          each batch on four devices
"""

import json
import logging
import os
import platform
import statistics
import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
from rich import progress
from rich.console import Console
from rich.table import Table as RichTable

from examples import config as settings
from examples import data, loop, plots, processes
from examples.methods import OTHER_PRICES, perturbation_size
from examples.records import Table, write_json
from examples.trainer import Trainer

_PACKAGES = (
    *("arsam-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint"),
    *("tensorflow-datasets", "numpy"),
)
_PROGRESS_COLUMNS = (
    progress.TextColumn("{task.description}"),
    progress.BarColumn(),
    progress.TextColumn(
        "loss {task.fields[now][loss]:.3f}  accuracy {task.fields[now][accuracy]:.1%}"
        "  {task.fields[now][percent_sam]:.0f} %SAM"
        "  {task.fields[now][images_per_second]:,.0f} images/s"
    ),
    progress.TimeRemainingColumn(),
)


def main(arguments: Sequence[str] | None = None, *, prog: str = "python -m examples.train") -> int:
    """Runs the program, the part of this process if there are several; returns its exit status."""
    logging.getLogger("absl").setLevel(logging.ERROR)
    try:
        config = settings.parse(arguments)
        settings.check_folder(config)
        dataset = data.load(
            config.dataset,
            data_dir=config.data_dir,
            data_files=config.data_files,
            validation=config.validation,
        )
        trainer = Trainer(config, dataset)
        unfinished = _unfinished(config)
        processes.require_same("the settings", settings.to_dict(config))
        processes.require_same("the runs that are finished", unfinished)
    except (settings.ConfigError, data.DataError, processes.DisagreementError) as error:
        return _report(error)
    console = Console(quiet=not processes.is_main())
    if processes.is_main():  # all have looked into the folder by now
        config.folder.mkdir(parents=True, exist_ok=True)
        write_json(config.folder / settings.CONFIG_FILE, settings.to_dict(config))
    console.print(_describe(config, trainer), highlight=False)
    with loop.stop_on_signal() as stop:
        try:
            _run_all(unfinished, trainer, console, stop)
        except processes.DisagreementError as error:
            return _report(error)
        except loop.StoppedError as interrupted:
            console.print(f"Saved, and stopped {interrupted}. Go on with:", highlight=False)
            command = " ".join([prog, *settings.resume_arguments(config)])
            console.print(f"  {command}", highlight=False, soft_wrap=True)
            return 128 + (stop.signal or 0)
    if processes.is_main():
        _report_results(config, trainer, console)
    return 0


def _report_results(config: settings.Config, trainer: Trainer, console: Console) -> None:
    """Prints the table; writes the summary and the plots."""
    results = {
        method: [
            json.loads((_run_folder(config, method, seed) / loop.RESULT_FILE).read_text())
            for seed in config.seeds
        ]
        for method in config.method
    }
    rows = _summarize(results)
    console.print(_result_table(rows, config))
    write_json(config.folder / "summary.json", _summary(config, trainer, results, rows))
    paths = plots.save_plots(
        config.folder,
        {m: _read_tables(config, m, "steps.csv", loop.STEP_COLUMNS) for m in config.method},
        {m: _read_tables(config, m, "epochs.csv", loop.EPOCH_COLUMNS) for m in config.method},
        rows,
        title=_title(config),
    )
    console.print(f"Plots: {', '.join(map(str, paths))}", highlight=False, soft_wrap=True)
    console.print(f"Records and checkpoints: {config.folder}/METHOD/SEED/", highlight=False)


def _unfinished(config: settings.Config) -> list[tuple[int, str]]:
    """The seeds and methods without a result, in the order in which to run them.

    The methods of a seed run one after another, so that all of them see the same load of the
    machine.
    """
    return [
        (seed, method)
        for seed in config.seeds
        for method in config.method
        if not (_run_folder(config, method, seed) / loop.RESULT_FILE).exists()
    ]


def _run_all(
    unfinished: list[tuple[int, str]], trainer: Trainer, console: Console, stop: loop.StopRequest
) -> None:
    """Trains what has not been trained yet. Each method is compiled once, for all seeds."""
    step_fns = {}
    for seed, method in unfinished:
        if method not in step_fns:
            with console.status(f"compiling {method}"):
                step_fns[method] = trainer.compile_step(method)
        folder = _run_folder(trainer.config, method, seed)
        _run_one(trainer, step_fns[method], method, seed, folder, console, stop)


def _run_one(
    trainer: Trainer,
    step_fn: Callable,
    method: str,
    seed: int,
    folder: Path,
    console: Console,
    stop: loop.StopRequest,
) -> None:
    with progress.Progress(
        *_PROGRESS_COLUMNS, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task(
            f"{method}, seed {seed}", total=trainer.total_steps, now=loop.NO_PROGRESS
        )
        result = loop.train(
            trainer,
            step_fn,
            method,
            seed,
            folder,
            on_progress=lambda step, now: bar.update(task, completed=step, now=now),
            should_stop=stop,
        )
    console.print(
        f"{method}, seed {seed}: {_accuracy_name(trainer.config)} accuracy"
        f" {result['test_accuracy']:.1%}, {result['percent_sam']:.0f} %SAM,"
        f" {result['seconds']:.1f} s",
        highlight=False,
    )


def _summarize(results: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """One row for each method, of means over the seeds."""
    rows = []
    for method, runs in results.items():
        accuracies = [run["test_accuracy"] for run in runs]
        percent_sam = statistics.mean(run["percent_sam"] for run in runs)
        rows.append(
            {
                "method": method,
                "seeds": len(runs),
                "test_accuracy": statistics.mean(accuracies),
                "test_accuracy_std": statistics.stdev(accuracies) if len(runs) > 1 else None,
                "percent_sam": percent_sam,
                "images_per_second": statistics.mean(run["images_per_second"] for run in runs),
                "seconds": statistics.mean(run["seconds"] for run in runs),
                "ideal_speed_up": None if method in OTHER_PRICES else 2 / (1 + percent_sam / 100),
            }
        )
    sam = [row["images_per_second"] for row in rows if row["method"] == "sam"]
    for row in rows:
        row["speed_up"] = row["images_per_second"] / sam[0] if sam else None
    return rows


def _result_table(rows: list[dict[str, Any]], config: settings.Config) -> RichTable:
    table = RichTable(
        title=_title(config),
        caption="Mean ± standard deviation over seeds; accuracy after the last epoch. Images/s and"
        " time include data loading, not compilation, evaluation and saving. Speed-up over SAM;"
        " ideal = 2 / (1 + %SAM), where a sampled step costs one gradient more.",
    )
    table.add_column("method", overflow="fold")
    for header in (
        *(f"{_accuracy_name(config)} accuracy", "%SAM", "images/s", "time"),
        *("speed-up", "ideal"),
    ):
        table.add_column(header, justify="right")
    for row in rows:
        std = row["test_accuracy_std"]
        table.add_row(
            row["method"],
            f"{100 * row['test_accuracy']:.1f}"
            + (" %" if std is None else f" ± {100 * std:.1f} %"),
            f"{row['percent_sam']:.1f}",
            f"{row['images_per_second']:,.0f}",
            f"{row['seconds']:.1f} s",
            "–" if row["speed_up"] is None else f"{row['speed_up']:.2f}",
            "–" if row["ideal_speed_up"] is None else f"{row['ideal_speed_up']:.2f}",
        )
    return table


def _summary(
    config: settings.Config,
    trainer: Trainer,
    results: dict[str, list[dict[str, Any]]],
    rows: list[dict[str, Any]],
) -> dict[str, Any]:
    dataset = trainer.data
    return {
        "table": rows,
        "runs": [run for runs in results.values() for run in runs],
        "settings": settings.to_dict(config),
        "examples_a_perturbation": {m: perturbation_size(m, config) for m in config.method},
        "data": {
            "training_images": len(dataset.train_images),
            "evaluation_images": len(dataset.test_images),
            "evaluated_on": _accuracy_name(config),
            "image_shape": dataset.train_images.shape[1:],
            "classes": dataset.num_classes,
        },
        "versions": {"python": platform.python_version()}
        | {package: metadata.version(package) for package in _PACKAGES},
        "device": {
            "platform": jax.default_backend(),
            "kind": jax.devices()[0].device_kind,
            "devices": trainer.mesh.size,
            "processes": jax.process_count(),
            "cpu_cores": os.cpu_count(),
            "system": platform.platform(),
        },
    }


def _read_tables(
    config: settings.Config, method: str, file: str, columns: tuple[str, ...]
) -> list[Table]:
    tables = [Table(_run_folder(config, method, s) / file, columns) for s in config.seeds]
    for table in tables:
        table.load()
    return tables


def _run_folder(config: settings.Config, method: str, seed: int) -> Path:
    return config.folder / method / f"seed{seed}"


def _accuracy_name(config: settings.Config) -> str:
    return "validation" if config.validation else "test"


def _report(error: Exception) -> int:
    Console(stderr=True).print(f"error: {error}", style="red", highlight=False, soft_wrap=True)
    return 2


def _title(config: settings.Config) -> str:
    noise = f", {100 * config.label_noise:g} % label noise" if config.label_noise else ""
    held_out = ", validation" if config.validation else ""
    return f"{config.dataset}{noise}{held_out}"


def _describe(config: settings.Config, trainer: Trainer) -> str:
    dataset = trainer.data
    shape = "×".join(map(str, dataset.train_images.shape[1:]))
    saf = f"; SAF keeps {trainer.logit_memory_bytes / 1e6:.1f} MB of logits"
    return (
        f"{_title(config)}: {len(dataset.train_images):,} training and"
        f" {len(dataset.test_images):,} {_accuracy_name(config)} images of {shape};"
        f" {config.model} with {trainer.num_params:,} parameters;"
        f" {config.epochs} epochs, {trainer.total_steps:,} steps; on {_devices(trainer)}"
        f"{saf if 'saf' in config.method else ''}{_effective_m(config)}"
    )


def _devices(trainer: Trainer) -> str:
    devices, processes = trainer.mesh.size, jax.process_count()
    return (
        jax.default_backend()
        + (f", {devices} devices" if devices > 1 else "")
        + (f" of {processes} processes" if processes > 1 else "")
    )


def _effective_m(config: settings.Config) -> str:
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
