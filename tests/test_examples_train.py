"""The example program: end to end, interrupted and resumed to the bit, and its errors."""

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

import arsam_jax
from examples import augment, config, data, loop, methods, models, plots, records, train
from examples.trainer import STEP_METRICS, Trainer

ROOT = Path(__file__).parents[1]
TINY = (
    *("--width", "2", "--dropout", "0.2", "--batch-size", "100", "--epochs", "6"),
    *("--segment-length", "5", "--checkpoint-seconds", "0"),
)
TERMINATED_AT_STEP_23 = """
import os, signal, sys
from examples import train, trainer

def compile_step(self, method):
    calls = iter(range(1, 1000))
    step_fn = original(self, method)
    def terminated(*args):
        if next(calls) == 23:
            os.kill(os.getpid(), signal.SIGTERM)
        return step_fn(*args)
    return terminated

original, trainer.Trainer.compile_step = trainer.Trainer.compile_step, compile_step
sys.exit(train.main(sys.argv[1:]))
"""


pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.fixture(scope="module")
def trainer(data_dir):
    """Ten steps an epoch, with dropout; every chunk of steps ends in a checkpoint."""
    settings = config.parse(TINY)
    return Trainer(settings, data.load("digits", data_dir=data_dir))


@pytest.fixture(scope="module")
def step_fn(trainer):
    return trainer.compile_step("arsam")


@pytest.fixture(scope="module")
def reference(trainer, step_fn, tmp_path_factory):
    """The folder of a run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("reference")
    loop.train(trainer, step_fn, "arsam", 7, folder)
    return folder


def read_csv(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def read_checkpoint(folder):
    with ocp.CheckpointManager((folder / "checkpoint").absolute()) as checkpoints:
        step = checkpoints.latest_step()
        restored = checkpoints.restore(
            step, args=ocp.args.Composite(state=ocp.args.StandardRestore())
        )
    return step, restored.state


def assert_same_run(folder, expected):
    """Same history, but for the clock, and the same bits in the last checkpoint."""
    assert (folder / "steps.csv").read_bytes() == (expected / "steps.csv").read_bytes()
    clock = ("seconds", "images_per_second")
    epochs, expected_epochs = (
        [{k: v for k, v in row.items() if k not in clock} for row in read_csv(f / "epochs.csv")]
        for f in (folder, expected)
    )
    assert epochs == expected_epochs
    (step, state), (expected_step, expected_state) = map(read_checkpoint, (folder, expected))
    assert step == expected_step
    assert jax.tree.structure(state) == jax.tree.structure(expected_state)
    for a, b in zip(*map(jax.tree.leaves, (state, expected_state)), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def stop_at(*stops):
    calls = iter(range(1, 10**6))
    return lambda: next(calls) in stops


def test_history_is_whole(reference):
    steps, epochs = read_csv(reference / "steps.csv"), read_csv(reference / "epochs.csv")
    assert [int(row["step"]) for row in steps] == list(range(1, 61))
    assert [int(row["epoch"]) for row in epochs] == list(range(1, 7))
    for row in steps:
        assert (row["correction_norm"] != "") == (row["sampled"] == "1")
    sampled = [int(row["sampled"]) for row in steps]
    assert 0 < sum(sampled) < 60
    assert float(epochs[-1]["percent_sam"]) == pytest.approx(100 * np.mean(sampled))
    losses = [float(row["loss"]) for row in steps[-10:]]
    assert float(epochs[-1]["train_loss"]) == pytest.approx(np.mean(losses))


@pytest.mark.parametrize("stops", [(1,), (13,), (20,), (59,)])
def test_a_resumed_run_is_the_uninterrupted_one(stops, trainer, step_fn, reference, tmp_path):
    with pytest.raises(loop.StoppedError, match=rf"step {stops[0]} of 60"):
        loop.train(trainer, step_fn, "arsam", 7, tmp_path, should_stop=stop_at(*stops))
    assert not (tmp_path / loop.RESULT_FILE).exists()
    result = loop.train(trainer, step_fn, "arsam", 7, tmp_path)
    assert_same_run(tmp_path, reference)
    assert result == json.loads((tmp_path / loop.RESULT_FILE).read_text())


def test_a_run_stopped_at_every_third_step_is_the_uninterrupted_one(
    trainer, step_fn, reference, tmp_path
):
    for _ in range(19):
        with pytest.raises(loop.StoppedError):
            loop.train(trainer, step_fn, "arsam", 7, tmp_path, should_stop=stop_at(3))
    loop.train(trainer, step_fn, "arsam", 7, tmp_path)
    assert_same_run(tmp_path, reference)


def test_a_crash_loses_and_doubles_no_row(trainer, step_fn, reference, tmp_path, monkeypatch):
    """It dies between the tables, which then run ahead, and the checkpoint."""

    def crash(checkpoints, step, state, seconds):
        if step >= 30:
            raise RuntimeError("power cut")
        save(checkpoints, step, state, seconds)

    save = loop._save
    monkeypatch.setattr(loop, "_save", crash)
    with pytest.raises(RuntimeError, match="power cut"):
        loop.train(trainer, step_fn, "arsam", 7, tmp_path)
    monkeypatch.undo()
    assert len(read_csv(tmp_path / "steps.csv")) == 30
    assert read_checkpoint(tmp_path)[0] == 20
    loop.train(trainer, step_fn, "arsam", 7, tmp_path)
    assert_same_run(tmp_path, reference)


def test_one_compiled_step_serves_every_seed(trainer, step_fn):
    states = [trainer.new_state("arsam", seed) for seed in (0, 1)]
    leaves = [[np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(s)] for s in states]
    assert leaves[0] != leaves[1]
    keys = [np.asarray(s.opt_state[0].sampling.key) for s in states]
    assert (keys[0] != keys[1]).any()
    index = np.arange(100, dtype=np.int32)
    batch = trainer.data.train_images[index], trainer.data.train_labels[index], index
    for state in states:
        step_fn(state, *batch)  # a compiled function refuses anything but its own structure


def test_sigterm_saves_and_the_resumed_run_is_the_uninterrupted_one(data_dir, reference, tmp_path):
    place = ("--output", str(tmp_path), "--name", "stopped")
    arguments = [*TINY, "--method", "arsam", "--seeds", "7", "--data-dir", str(data_dir), *place]
    process = subprocess.run(
        [sys.executable, "-c", TERMINATED_AT_STEP_23, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert process.returncode == 128 + signal.SIGTERM, process.stderr
    assert "--resume --name stopped --output" in process.stdout
    run = tmp_path / "stopped" / "arsam" / "seed7"
    assert len(read_csv(run / "steps.csv")) == 23
    assert train.main(["--resume", *place]) == 0
    assert_same_run(run, reference)


def test_end_to_end(data_dir, tmp_path, capsys):
    arguments = ["--seeds", "0", "1", "--data-dir", str(data_dir), *TINY, "--output", str(tmp_path)]
    assert train.main(arguments) == 0
    output = capsys.readouterr().out
    folder = tmp_path / "digits"
    for method in ("sgd", "sam", "arsam"):
        assert f"│ {method}" in output
        for seed in (0, 1):
            assert len(read_csv(folder / method / f"seed{seed}" / "steps.csv")) == 60
    for name in ("accuracy", "sampling", "norms"):
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    summary = json.loads((folder / "summary.json").read_text())
    rows = {row["method"]: row for row in summary["table"]}
    assert rows["sgd"]["percent_sam"] == 0
    assert rows["sam"]["percent_sam"] == 100
    assert rows["sam"]["speed_up"] == 1
    assert rows["sgd"]["ideal_speed_up"] == 2
    assert len(summary["runs"]) == 6
    assert summary["settings"]["label_noise"] == 0.4
    assert "jax" in summary["versions"]
    assert not list(folder.rglob("*.tmp"))

    assert train.main(arguments) == 2  # refuses to overwrite
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.csv")}
    assert train.main([*arguments, "--resume"]) == 0  # shows the finished runs again
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*.csv")}
    errors = capsys.readouterr().err
    assert "is not empty" in errors
    assert train.main([*arguments, "--resume", "--epochs", "7"]) == 2
    assert "--epochs 6 → 7" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--learning-rate", "-1"], "--learning-rate must not be negative"),
        (["--rho", "nan"], "--rho must not be negative"),
        (["--method", "smart"], "no method smart; there are sgd, sam, arsam"),
        (["--method", "sam", "sam"], "--method names one twice"),
        (["--label-noise", "1"], r"--label-noise must be in \[0, 1\)"),
        (["--validation", "-0.1"], r"--validation must be in \[0, 1\)"),
        (["--seeds"], "--seeds needs at least one"),
        (["--epochs", "0"], "--epochs must be at least 1"),
        (["--warmup-epochs", "500"], "--warmup-epochs must be less than --epochs"),
        (["--model", "vit"], "--model must be one of cnn, resnet18"),
        (["--name", "a/b"], "one folder name"),
    ],
)
def test_bad_settings_are_errors(arguments, message):
    with pytest.raises(config.ConfigError, match=message):
        config.parse(arguments)


def test_resume_needs_a_run(tmp_path, capsys):
    assert train.main(["--resume", "--output", str(tmp_path)]) == 2
    assert "no run to resume" in capsys.readouterr().err


def test_a_batch_larger_than_the_data_is_an_error(data_dir, tmp_path, capsys):
    arguments = ["--batch-size", "2000", "--data-dir", str(data_dir), "--output", str(tmp_path)]
    assert train.main(arguments) == 2
    assert "more than the 1000" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_help_shows_the_recipe_of_the_data_set(capsys):
    for dataset, rho in (("digits", 0.4), ("cifar100", 0.1)):
        with pytest.raises(SystemExit) as exit_info:
            config.parse(["--dataset", dataset, "--help"])
        assert exit_info.value.code == 0
        assert f"Radius of the perturbation. (default: {rho})" in capsys.readouterr().out


@pytest.mark.parametrize("method", methods.METHODS)
def test_every_method_takes_the_same_train_step(method, trainer):
    state = trainer.new_state(method, seed=0)
    images, labels = trainer.data.train_images[:100], trainer.data.train_labels[:100]
    new_state, metrics = jax.eval_shape(
        trainer._train_step, state, images, labels, np.arange(100, dtype=np.int32)
    )
    assert jax.tree.map(jnp.shape, new_state) == jax.tree.map(jnp.shape, state)
    assert metrics.shape == (len(STEP_METRICS),)


def test_plots_survive_a_diverged_run(tmp_path):
    nan = float("nan")
    steps = records.Table(tmp_path / "steps.csv", loop.STEP_COLUMNS)
    for step in range(1, 9):
        steps.append(**dict.fromkeys(loop.STEP_COLUMNS, nan) | {"step": step, "sampled": 1})
    epochs = records.Table(tmp_path / "epochs.csv", loop.EPOCH_COLUMNS)
    epochs.append(**dict.fromkeys(loop.EPOCH_COLUMNS, 1) | {"train_loss": nan})
    row = {"method": "sam", "seconds": 1.0, "test_accuracy": nan, "test_accuracy_std": None}
    paths = plots.save_plots(tmp_path, {"sam": [steps]}, {"sam": [epochs]}, [row], "diverged")
    names = ["accuracy.png", "cost.png", "sampling.png", "norms.png"]
    assert [path.name for path in paths] == names


@pytest.mark.parametrize("method", ["saf", "mesa"])
def test_saf_and_mesa_keep_a_trajectory_and_add_its_term(method, trainer):
    step = jax.jit(trainer._train_step)
    state = trainer.new_state(method, seed=0)
    state = state.replace(trajectory=jax.tree.map(lambda x: x + 0.1, state.trajectory))
    index = np.arange(20, 50, dtype=np.int32)
    images, labels = trainer.data.train_images[index], trainer.data.train_labels[index]
    losses = {}
    for epoch in (0, 8):  # before the term starts, and after
        start = state.replace(step=jnp.int32(epoch * trainer.steps_per_epoch))
        after, metrics = step(start, images, labels, index)
        losses[epoch] = float(metrics[STEP_METRICS.index("loss")])
    assert losses[8] > losses[0]
    moved = jax.tree.map(lambda a, b: np.any(a != b), after.trajectory, state.trajectory)
    assert all(jax.tree.leaves(moved))
    if method == "saf":
        kept = np.any(np.asarray(after.trajectory.logits != state.trajectory.logits), axis=(0, 2))
        np.testing.assert_array_equal(np.nonzero(kept)[0], index)


def test_the_whole_family_can_be_compared():
    not_methods = {"get_metrics", "get_state", "sharpness_aware", "Metrics", "SharpnessAwareState"}
    names = {name for name in arsam_jax.__all__ if callable(getattr(arsam_jax, name))}
    assert names - not_methods <= set(methods.METHODS)


def test_all_means_every_method():
    assert config.parse(["--method", "all"]).method == tuple(methods.METHODS)


def test_resumed_settings_come_from_the_folder(tmp_path):
    settings = config.parse(["--epochs", "7", "--dataset", "cifar10", "--output", str(tmp_path)])
    settings.folder.mkdir()
    records.write_json(settings.folder / config.CONFIG_FILE, config.to_dict(settings))
    resumed = config.parse(["--resume", "--name", "cifar10", "--output", str(tmp_path)])
    assert (resumed.epochs, resumed.dataset, resumed.width) == (7, "cifar10", 64)
    config.check_folder(resumed)


def test_a_table_reads_back_what_it_wrote(tmp_path):
    table = records.Table(tmp_path / "table.csv", ("step", "value"))
    values = [0.1, float(np.float32(1) / 3), 1e-30, float("inf"), 7]
    for step, value in enumerate(values, 1):
        table.append(step=step, value=value)
    table.save()
    again = records.Table(table.path, table.columns)
    again.load()
    assert again.rows == table.rows
    again.load(until=2)
    assert again.column("step") == [1, 2]


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file.txt"
    records.write_text(path, "old")

    def fail(descriptor):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        records.write_text(path, "new")
    assert path.read_text() == "old"


@pytest.mark.parametrize(("size", "stages"), [(8, 2), (28, 4), (32, 4), (64, 5)])
def test_the_cnn_is_sized_by_the_image(size, stages):
    model = models.make_model("cnn", size, 10, width=4)
    variables = jax.eval_shape(
        lambda: model.init(jax.random.key(0), np.zeros((1, size, size, 3)), is_training=False)
    )
    assert len(variables["params"]) == 4 * stages + 1  # two convolutions and BatchNorms a stage


def test_resnet18_has_the_parameters_of_the_original():
    model = models.make_model("resnet18", 32, 10, width=64)
    variables = jax.eval_shape(
        lambda: model.init(jax.random.key(0), np.zeros((1, 32, 32, 3)), is_training=False)
    )
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == 11_173_962


def test_augmentation_keeps_the_shape_and_cuts_a_square():
    images = np.ones((16, 32, 32, 3), np.float32)
    augmented = jax.jit(augment.crop_mirror_and_cutout)(jax.random.key(0), images)
    assert augmented.shape == images.shape
    kept = np.asarray(augmented).mean((1, 2, 3))
    assert (kept < 1).all()
    assert len(np.unique(kept)) > 1
    assert kept.min() > 0.4
