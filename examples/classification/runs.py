"""What a run folder holds: settings, results, tables, and the environment it was trained in."""

import difflib
import json
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax

from examples.classification import history, loop, settings
from examples.classification.config import NOT_OF_RESULTS, Config, Published
from examples.classification.methods import METHODS
from examples.classification.trainer import Trainer
from examples.common.errors import ConfigError
from examples.common.records import Table, write_json
from examples.common.settings import to_dict

ENVIRONMENT_FILE = "environment.json"
RUNS = Path("runs")

_PACKAGES = (
    *("arsam-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint"),
    *("tensorflow-datasets", "numpy"),
)
_RESULT = (
    *("method", "seed", "evaluated_on", "steps", "epochs", "accuracy", "best_accuracy"),
    *("test_accuracy", "train_loss", "percent_sam", "seconds", "images_per_second", "peak_bytes"),
)
_COLUMNS = {"steps": history.STEP_COLUMNS, "epochs": history.EPOCH_COLUMNS}

# Settings in which runs may differ without being different experiments; devices decide the speed.
_NOT_COMPARED = {*NOT_OF_RESULTS, "method", "seeds"} - {"devices", "data_files"}
_DECIDE_WHAT_IS_LEARNT = {
    *("dataset", "train_examples", "image_size", "label_noise", "noise"),
    *("model", "width", "depth"),
}


class RunError(ValueError):
    """A folder that holds nothing to report; the message says what is wrong with it."""


class Run(NamedTuple):
    """What a run folder holds."""

    name: str
    folder: Path
    config: Config
    settings: dict[str, Any]
    """Those that make it the experiment that it is."""
    results: dict[str, list[dict[str, Any]]]
    """For each method, those of the seeds that are finished."""
    unfinished: list[str]
    environment: dict[str, Any]
    published: dict[str, Published]
    published_settings: dict[str, Any]
    """The settings of the published figures where this run's are others."""
    published_note: str

    @property
    def device(self) -> str | None:
        """What it was trained on, as far as it decides the speed."""
        device = self.environment.get("device")
        if not device:
            return None
        number = f"{device['devices']} × " if device["devices"] > 1 else ""
        cores = f" ({device['cpu_cores']} cores)" if device["platform"] == "cpu" else ""
        return f"{number}{device['kind']}{cores}"


def find(run: str) -> Path:
    """A run folder by its path, or by its name in RUNS.

    Raises:
      RunError: if there is no such folder.
    """
    folders = [folder for folder in (Path(run), RUNS / run) if folder.exists()]
    if folders:
        return max(folders, key=lambda folder: (folder / settings.CONFIG_FILE).is_file())
    names = sorted(file.parent.name for file in RUNS.glob(f"*/{settings.CONFIG_FILE}"))
    near, there = difflib.get_close_matches(run, names, cutoff=0.5), ", ".join(names) or "none"
    hint = f"did you mean {' or '.join(near)}?" if near else f"{RUNS} has {there}"
    raise RunError(f"there is no run {run!r}; {hint}")


def read_run(folder: Path) -> Run:
    """Reads all but the tables, which take longer.

    Raises:
      RunError: if it is no run folder, if no run in it is finished, or if a file is damaged.
      ConfigError: if it is the file with the settings.
    """
    if not (folder / settings.CONFIG_FILE).is_file():
        raise RunError(f"{folder} is no run folder: it has no {settings.CONFIG_FILE}")
    config = settings.read(Config, folder / settings.CONFIG_FILE)
    results, unfinished = {}, []
    for method in dict.fromkeys((*config.method, *METHODS)):
        files = (folder / method).glob(f"seed*/{loop.RESULT_FILE}")
        read = [_read_result(file, accuracy_name(config)) for file in files]
        finished = {result["seed"]: result for result in read}
        if finished:
            results[method] = [finished[seed] for seed in sorted(finished)]
        if method in config.method:
            missing = [seed for seed in config.seeds if seed not in finished]
            unfinished += [f"{method}, seed {seed}" for seed in missing]
    if not results:
        raise RunError(f"{folder} has no finished run; go on with --resume")
    return Run(
        *(folder.absolute().name, folder, config, _experiment(config), results, unfinished),
        *(_read_environment(folder), *_published(config)),
    )


def tables(run: Run, name: str) -> dict[str, list[Table]]:
    """For each method, those of its finished seeds; no entry if one has none.

    Args:
      name: steps or epochs.

    Raises:
      RunError: if one is damaged.
    """
    found = {}
    for method, results in run.results.items():
        folders = [loop.seed_folder(run.folder / method, result["seed"]) for result in results]
        paths = [folder / f"{name}.csv" for folder in folders]
        if all(path.exists() for path in paths):
            found[method] = [
                _read_table(path, _COLUMNS[name], result[name])
                for path, result in zip(paths, results, strict=True)
            ]
    return found


def save_environment(folder: Path, trainer: Trainer) -> None:
    """Writes what is known only while training: of the data, the device and the versions.

    Of a run that goes on elsewhere, the environments before are kept, too.

    Raises:
      RunError: if the runs in this folder are of other data.
    """
    dataset = trainer.data
    environment = {
        "data": {
            "training_images": len(dataset.train_labels),
            "evaluation_images": len(dataset.evaluation[1]),
            "evaluated_on": accuracy_name(trainer.config),
            "image_shape": list(dataset.train_images.shape[1:]),
            "classes": dataset.num_classes,
        },
        "parameters": trainer.num_params,
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
    before = _read_environment(folder)
    earlier = before.pop("earlier", [])
    if before and before["data"] != environment["data"]:
        raise RunError(
            f"{folder} was trained on other data: {before['data']}, and this is"
            f" {environment['data']}. Choose another --name."
        )
    if before and before != environment:
        earlier.append(before)
    write_json(folder / ENVIRONMENT_FILE, environment | {"earlier": earlier})


def title(config: Config) -> str:
    noise = f", {100 * config.label_noise:g} % label noise" if config.label_noise else ""
    if Path(config.noise).suffix:
        noise = f", labels of {Path(config.noise).name}"
    held_out = ", validation" if config.validation else ""
    return f"{config.dataset}{noise}{held_out}"


def accuracy_name(config: Config) -> str:
    """What the accuracies are of."""
    return "validation" if config.validation else "test"


def value_text(value: Any) -> str:
    """A setting as a reader sees it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, tuple):
        value = " ".join(value)
    return "–" if value in (None, "") else str(value)


def _experiment(config: Config) -> dict[str, Any]:
    """The settings that make an experiment; the folder of the data where it decides the data."""
    ignored = _NOT_COMPARED | (set() if config.dataset == "image_folder" else {"data_files"})
    values = to_dict(config) | {"warmup_epochs": config.warmup}
    return {name: value for name, value in values.items() if name not in ignored}


def _published(config: Config) -> tuple[dict[str, Published], dict[str, Any], str]:
    """Published figures for what this run learns, the settings they differ in, and a note."""
    try:
        published = settings.published(config)
        original = settings.parse(["--config", config.config]) if published else config
    except ConfigError as error:
        return {}, {}, f"No published figures: {error}"
    here, theirs = _experiment(config), _experiment(original)
    differing = {name: value for name, value in theirs.items() if value != here.get(name)}
    if not differing:
        return published, {}, ""
    text = ", ".join(
        f"{name} {value_text(value)} (here {value_text(here.get(name))})"
        for name, value in differing.items()
    )
    if _DECIDE_WHAT_IS_LEARNT & differing.keys():
        return {}, {}, f"The published figures of {config.config} are for {text}, and not shown."
    return published, differing, f"The published figures are for {text}."


def _read_result(file: Path, evaluated_on: str) -> dict[str, Any]:
    result = _read_json(file, _RESULT)
    found = (result["method"], f"seed{result['seed']}", result["evaluated_on"])
    if found != (*file.parts[-3:-1], evaluated_on):
        raise RunError(f"{file} is of another run: {', '.join(map(str, found))}")
    return result


def _read_environment(folder: Path) -> dict[str, Any]:
    file = folder / ENVIRONMENT_FILE
    return _read_json(file, ("data", "parameters", "device")) if file.exists() else {}


def _read_json(file: Path, fields: tuple[str, ...]) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{file} is damaged: {error}") from error
    if not isinstance(value, dict) or not value.keys() >= set(fields):
        raise RunError(f"{file} is damaged: it does not hold {', '.join(fields)}")
    return value


def _read_table(path: Path, columns: tuple[str, ...], num_rows: int) -> Table:
    table = Table(path, columns)
    try:
        table.load()
        is_whole = table.column(columns[0]) == list(range(1, num_rows + 1))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise RunError(f"{path} is damaged: {error!r}") from error
    if not is_whole or any(row.keys() != set(columns) for row in table.rows):
        raise RunError(f"{path} is damaged: not {num_rows} rows of {', '.join(columns)}")
    return table
