"""The example program: end to end, interrupted and resumed to the bit, and its errors."""

import csv
import dataclasses
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

import arsam_jax
from examples.classification import (
    in_microbatches,
    loop,
    methods,
    models,
    paper,
    plots,
    settings,
)
from examples.classification.__main__ import _describe, _few_segments, _without_term, load, main
from examples.classification.config import Config
from examples.classification.data import datasets
from examples.classification.step import Batch, mean_of
from examples.classification.trainer import STEP_METRICS, Trainer
from examples.common import checkpoints, records
from examples.common.errors import CheckpointError, ConfigError, StoppedError
from examples.common.settings import to_dict

LONG = 600  # seconds; the machine may be busy with other work
ROOT = Path(__file__).parents[3]
TINY = (
    *("--width", "2", "--dropout", "0.2", "--batch-size", "100", "--epochs", "6"),
    *("--segment-length", "5", "--checkpoint-seconds", "0"),
)
TERMINATED_AT_STEP_23 = """
import os, signal, sys
from examples.classification import trainer
from examples.classification.__main__ import main

def compile_step(self, *key):
    calls = iter(range(1, 1000))
    step_fn = original(self, *key)
    def terminated(*args):
        if next(calls) == 23:
            os.kill(os.getpid(), signal.SIGTERM)
        return step_fn(*args)
    return terminated

original, trainer.Trainer.compile_step = trainer.Trainer.compile_step, compile_step
sys.exit(main(sys.argv[1:]))
"""
PROGRAM = """
import sys
from examples.classification.__main__ import main
sys.exit(main(sys.argv[1:]))
"""
NO_LARGE_FILES = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))
"""


pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.fixture(scope="module")
def trainer(data_dir):
    """Ten steps an epoch, with dropout; every chunk of steps ends in a checkpoint."""
    config = settings.parse(TINY)
    return Trainer(config, datasets.load("digits", data_dir=data_dir))


@pytest.fixture(scope="module")
def step_fn(trainer):
    return trainer.compile_step("arsam")


@pytest.fixture(scope="module")
def reference(trainer, step_fn, tmp_path_factory):
    """The folder of a run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("reference")
    loop.train(trainer, step_fn, "arsam", (7,), folder)
    return folder / "seed7"


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
    with pytest.raises(StoppedError, match=rf"step {stops[0]} of 60"):
        loop.train(trainer, step_fn, "arsam", (7,), tmp_path, should_stop=stop_at(*stops))
    assert not (tmp_path / "seed7" / loop.RESULT_FILE).exists()
    (result,) = loop.train(trainer, step_fn, "arsam", (7,), tmp_path)
    assert_same_run(tmp_path / "seed7", reference)
    assert result == json.loads((tmp_path / "seed7" / loop.RESULT_FILE).read_text())


def test_a_run_stopped_at_every_seventh_step_is_the_uninterrupted_one(
    trainer, step_fn, reference, tmp_path
):
    for _ in range(8):
        with pytest.raises(StoppedError):
            loop.train(trainer, step_fn, "arsam", (7,), tmp_path, should_stop=stop_at(7))
    loop.train(trainer, step_fn, "arsam", (7,), tmp_path)
    assert_same_run(tmp_path / "seed7", reference)


def test_a_crash_loses_and_doubles_no_row(trainer, step_fn, reference, tmp_path, monkeypatch):
    """It dies between the tables, which then run ahead, and the checkpoint."""

    def crash(checkpoints, step, state, seconds):
        if step >= 30:
            raise RuntimeError("power cut")
        save(checkpoints, step, state, seconds)

    save = checkpoints.save
    monkeypatch.setattr(checkpoints, "save", crash)
    with pytest.raises(RuntimeError, match="power cut"):
        loop.train(trainer, step_fn, "arsam", (7,), tmp_path)
    monkeypatch.undo()
    assert len(read_csv(tmp_path / "seed7" / "steps.csv")) == 30
    assert read_checkpoint(tmp_path / "seed7")[0] == 20
    loop.train(trainer, step_fn, "arsam", (7,), tmp_path)
    assert_same_run(tmp_path / "seed7", reference)


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


def test_sigterm_saves_and_a_full_disk_is_an_error_and_nothing_is_lost(
    data_dir, reference, tmp_path
):
    place = ("--output", str(tmp_path), "--name", "stopped")
    arguments = [*TINY, "--method", "arsam", "--seeds", "7", "--data-dir", str(data_dir), *place]
    process = run_program(*arguments, program=TERMINATED_AT_STEP_23)
    output = process.communicate(timeout=LONG)[0]
    assert process.returncode == 128 + signal.SIGTERM, output
    assert "--resume --name stopped --output" in output
    run = tmp_path / "stopped" / "arsam" / "seed7"
    assert len(read_csv(run / "steps.csv")) == 23
    process = run_program("--resume", *place, prelude=NO_LARGE_FILES)
    output = " ".join(process.communicate(timeout=LONG)[0].split())
    assert process.returncode == 2, output
    assert "error: the checkpoint of step 30 cannot be written" in output
    assert "step 23 is kept" in output
    assert read_checkpoint(run)[0] == 23
    assert main(["--resume", *place]) == 0
    assert_same_run(run, reference)


def test_end_to_end(data_dir, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(plots.STYLE, "figure.dpi", 40)
    arguments = ["--method", "sgd", "sam", "arsam", "--seeds", "0", "1", *TINY]
    arguments += ["--checkpoint-seconds", "60"]
    arguments += ["--data-dir", str(data_dir), "--output", str(tmp_path)]
    assert main(arguments) == 0
    output = capsys.readouterr().out
    folder = tmp_path / "digits"
    for method in ("sgd", "sam", "arsam"):
        assert f"│ {method}" in output
        for seed in (0, 1):
            assert len(read_csv(folder / method / f"seed{seed}" / "steps.csv")) == 60
    for name in ("accuracy", "sampling", "norms"):
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    summary = json.loads((folder / "report.json").read_text())
    rows = {row["method"]: row for row in summary["table"]}
    assert rows["sgd"]["percent_sam"] == 0
    assert rows["sam"]["percent_sam"] == 100
    assert rows["sam"]["speed_up"] == 1
    assert rows["sgd"]["ideal_speed_up"] == 2
    assert len(summary["runs"]) == 6
    assert summary["settings"]["label_noise"] == 0.4
    assert "jax" in summary["versions"]
    assert not list(folder.rglob("*.tmp"))

    assert main(arguments) == 2  # refuses to overwrite
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.csv")}
    assert main([*arguments, "--resume"]) == 0  # shows the finished runs again
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*.csv")}
    errors = capsys.readouterr().err
    assert "is not empty" in errors
    for changed, message in (
        (("--epochs", "7"), "--epochs 6 → 7"),
        (("--seeds-at-once", "2"), "--seeds-at-once 1 → 2"),
        (("--config", "cifar10"), "is not of --config cifar10"),
    ):
        named = ("--name", "digits") if "--config" in changed else ()
        assert main([*arguments, "--resume", *named, *changed]) == 2
        assert message in " ".join(capsys.readouterr().err.split())
    assert main([*arguments, "--resume", "--seeds", "2", "--method", "sgd"]) == 0
    stored = settings.read(Config, folder / settings.CONFIG_FILE)
    assert (stored.method, stored.seeds) == (("sgd", "sam", "arsam"), (0, 1, 2))
    environment = json.loads((folder / "environment.json").read_text())
    environment["data"]["training_images"] = 999
    records.write_json(folder / "environment.json", environment)
    assert main([*arguments, "--resume", "--seeds", "3"]) == 2
    assert "was trained on other data" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--learning-rate", "-1"], "--learning-rate must not be negative"),
        (["--rho", "nan"], "--rho must not be negative"),
        (["--method", "smart"], "--method: there is no smart; there are sgd, sam, arsam"),
        (["--method", "sam", "sam"], "--method names one twice"),
        (["--label-noise", "1"], r"--label-noise must be in \[0, 1\)"),
        (["--validation", "-0.1"], r"--validation must be in \[0, 1\)"),
        (["--seeds"], "--seeds needs at least one"),
        (["--epochs", "0"], "--epochs must be at least 1"),
        (["--warmup-epochs", "500"], r"must be in \[0, 30\), less than --epochs, and is 500"),
        (["--warmup-epochs", "-1"], r"--warmup-epochs must be in \[0, 30\)"),
        (["--model", "vit"], "--model: there is no vit; there are cnn, resnet18"),
        (["--dtype", "float16"], "--dtype: there is no float16; there are float32, bfloat16"),
        (["--augment", "crop", "blur"], "--augment: there is no blur; there are crop, mirror"),
        (
            ["--optimizer", "adam"],
            "--optimizer: there is no adam; there are sgd, adamw, lion, muon",
        ),
        (["--schedule", "linear"], "--schedule: there is no linear; there are cosine, step, wsd"),
        (["--optimizer", "lion", "--momentum", "0.5"], "--momentum is for --optimizer sgd"),
        (["--share", "0"], r"--share must be in \(0, 1\]"),
        (["--patience", "3"], "--patience needs --validation"),
        (["--keep-best"], "--keep-best needs --validation"),
        (["--accumulate", "2", "--method", "sam", "esam"], "--accumulate is not for esam"),
        (
            ["--config", "cifar10_resnet18_arsm"],
            "no config .*Did you mean table3/cifar10_resnet18_arsam",
        ),
        (["--config", "none.py"], "no config 'none.py'"),
        (["--name", "a/b"], "one folder name"),
        (["--epochs", "1", "--warmup-epochs", "1"], "--warmup-epochs 0 is no warm-up"),
        (["--config", "fashion_mnist_vit", "--epochs", "9"], "and is 10; --warmup-epochs 0"),
        (["--noise", "symetric"], "symetric is none of symmetric, asymmetric, and no file"),
        (["--noise", "asymmetric", "--label-noise", "0"], "asymmetric needs --label-noise"),
        (["--noise", "README.md"], "README.md gives the labels; that needs --label-noise 0"),
        (["--data-files", "here"], "--data-files is for fashion_mnist, tiny_imagenet"),
        (["--method", "m_sam", "--batch-size", "7"], "m_sam needs a --batch-size divisible by 2"),
    ],
)
def test_bad_settings_are_errors(arguments, message):
    with pytest.raises(ConfigError, match=message):
        settings.parse(arguments)


def test_resume_needs_a_run(tmp_path, capsys):
    assert main(["--resume", "--output", str(tmp_path)]) == 2
    assert "no run to resume" in capsys.readouterr().err


def test_a_batch_larger_than_the_data_is_an_error(data_dir, tmp_path, capsys):
    arguments = ["--batch-size", "2000", "--data-dir", str(data_dir), "--output", str(tmp_path)]
    assert main(arguments) == 2
    assert "more than the 1000" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_help_shows_the_recipe_of_the_data_set(capsys):
    for dataset, rho in (("digits", 0.4), ("cifar100", 0.1)):
        with pytest.raises(SystemExit) as exit_info:
            settings.parse(["--dataset", dataset, "--help"])
        assert exit_info.value.code == 0
        assert f"Radius of the perturbation. (default: {rho})" in capsys.readouterr().out


IN_THE_PAPER = {name for config, *_ in paper.rows().values() for name in config.method}


# Those of the paper are traced by test_configs.py.
@pytest.mark.parametrize("method", [name for name in methods.METHODS if name not in IN_THE_PAPER])
def test_every_method_takes_the_same_train_step(method, trainer):
    state = trainer.new_state(method, 0)
    images, labels = trainer.data.train_images[:100], trainer.data.train_labels[:100]
    new_state, metrics = jax.eval_shape(
        trainer.train_step, state, images, labels, np.arange(100, dtype=np.int32)
    )
    assert jax.tree.map(jnp.shape, new_state) == jax.tree.map(jnp.shape, state)
    assert metrics.shape == (len(STEP_METRICS),)


def test_micro_batches_give_the_mean_and_the_gradient_of_each(trainer):
    """Of micro-batches with other examples alone, and in the order of the batch."""
    state = trainer.new_state("budgeted_m_sam", 0)
    images = jnp.asarray(trainer.data.train_images[:20], jnp.float32) / 255
    labels = jnp.asarray(trainer.data.train_labels[:20])
    batch = Batch(images, labels, jnp.arange(20))
    key = jax.random.key(3)

    def losses_fn(params, batch_stats, batch, key):
        losses, (logits, moved) = trainer._losses_fn(params, batch_stats, batch, key)
        return losses, (logits + batch.index[:, None], moved)

    take = jax.jit(in_microbatches.value_and_grad(losses_fn, 2))
    taken = jax.device_get(take(state.params, state.batch_stats, batch, key))
    (loss, (logits, stats)), grads, of_each = taken
    halves = [Batch(images[i::2], labels[i::2], batch.index[i::2]) for i in range(2)]
    alone = jax.jit(jax.value_and_grad(mean_of(losses_fn), has_aux=True))
    found = [jax.device_get(alone(state.params, state.batch_stats, h, key)) for h in halves]

    def assert_close(actual, expected):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), actual, expected
        )

    assert_close(loss, np.mean([value for (value, _), _ in found]))
    for i, ((_, (half, _)), half_grads) in enumerate(found):
        assert_close(logits[i::2], half)
        assert_close(jax.tree.map(lambda x, i=i: x[i], of_each), half_grads)
    of_halves = [(moved, grads) for (_, (_, moved)), grads in found]
    assert_close((stats, grads), jax.tree.map(lambda a, b: (a + b) / 2, *of_halves))


def test_a_radius_of_the_weights_at_the_price_of_a_share(data_dir, tmp_path, capsys):
    arguments = ["--method", "sam", "budgeted_m_sam", "--seeds", "0", "--rho-of-weights", "0.01"]
    folder = ["--share", "0.25", "--data-dir", str(data_dir), "--output", str(tmp_path)]
    assert main([*arguments, *TINY, "--epochs", "2", *folder]) == 0, capsys.readouterr().err
    trainer = Trainer(
        settings.parse([*arguments, *TINY, "--name", "other", *folder]),
        datasets.load("digits", data_dir=data_dir),
    )
    for method, percent in (("sam", 100), ("budgeted_m_sam", 25)):
        report = json.loads((tmp_path / f"digits/{method}/seed0/result.json").read_text())
        assert report["percent_sam"] == pytest.approx(percent)
    states, _ = take_steps(trainer, "budgeted_m_sam", 1)
    rho = 0.01 * float(optax.tree.norm(trainer.new_state("budgeted_m_sam", 7).params))
    found = arsam_jax.get_metrics(states[0].opt_state).rho
    assert found == pytest.approx(0.25 ** (-2 / 3) * rho, rel=1e-5)


def test_a_step_with_micro_batches_costs_a_share_more():
    config = settings.parse(["--share", "0.25"])
    assert methods.step_cost("budgeted_m_sam", 1, config) == 1.25
    assert methods.step_cost("budgeted_m_sam", 3, config) == 6


def test_micro_batches_need_a_batch_that_they_divide():
    with pytest.raises(ConfigError, match="budgeted_m_sam needs"):
        settings.parse(["--method", "budgeted_m_sam", "--batch-size", "33"])
    with pytest.raises(
        ConfigError, match=r"--accumulate is not for budgeted_m_sam.*leave it out of --method"
    ):
        settings.parse(["--method", "budgeted_m_sam", "--accumulate", "2"])
    with pytest.raises(ConfigError, match="--rho-of-weights"):
        settings.parse(["--rho-of-weights", "-1"])


@pytest.mark.parametrize("method", ["saf", "mesa"])
def test_saf_and_mesa_keep_a_trajectory_and_add_its_term(method, trainer):
    step = jax.jit(trainer.train_step)
    state = trainer.new_state(method, 0)
    kept = jax.tree.map(lambda x: jnp.full_like(x, True) + x, state.trajectory)  # SAF has nothing
    state = state.replace(trajectory=kept)
    index = np.arange(20, 50, dtype=np.int32)
    images, labels = trainer.data.train_images[index], trainer.data.train_labels[index]
    losses = {}
    for epoch in (0, 8):  # before the term starts, and after
        start = state.replace(step=jnp.int32(epoch * trainer.steps_per_epoch))
        after, metrics = step(start, images, labels, index)
        losses[epoch] = float(metrics[STEP_METRICS.index("loss")])
    assert losses[8] > losses[0]
    if method == "mesa":
        moved = jax.tree.map(lambda a, b: np.any(a != b), after.trajectory, state.trajectory)
        assert all(jax.tree.leaves(moved))
    else:
        kept = np.any(np.asarray(after.trajectory.logits != state.trajectory.logits), axis=(0, 2))
        np.testing.assert_array_equal(np.nonzero(kept)[0], index)


def test_sampa_sees_each_batch_a_second_time_as_it_was(trainer):
    """The perturbed gradient of a step is that of the batch before, with its dropout key."""
    step = jax.jit(trainer.train_step)
    state = trainer.new_state("sampa", 0)
    batches = []
    for i in range(2):
        index = np.arange(i * 100, (i + 1) * 100, dtype=np.int32)
        batches.append((trainer.data.train_images[index], trainer.data.train_labels[index], index))
    first, _ = step(state, *batches[0])
    np.testing.assert_array_equal(first.trajectory.labels, batches[0][1])
    second, _ = step(first, *batches[1])
    other = first.trajectory._replace(labels=(first.trajectory.labels + 1) % 10)
    changed, _ = step(first.replace(trajectory=other), *batches[1])
    same_kept = jax.tree.map(np.array_equal, *(_kept(s) for s in (second, changed)))
    assert all(jax.tree.leaves(same_kept))  # the gradient at the auxiliary point: the new batch's
    moved = jax.tree.map(lambda a, b: np.any(a != b), second.params, changed.params)
    assert any(jax.tree.leaves(moved))
    from_start, _ = step(state.replace(trajectory=other), *batches[0])  # there is no batch before
    jax.tree.map(np.testing.assert_array_equal, from_start.params, first.params)


def _kept(state):
    return arsam_jax.get_state(state.opt_state).probe.grads


def test_wsam_is_decoupled_as_its_authors_run_it(trainer):
    optimizer = methods.make_method("wsam", trainer.config, 10, 0)
    state = optimizer.init({"w": jnp.ones(2)})
    assert isinstance(state, arsam_jax.decoupling.DecoupleState)


@pytest.mark.parametrize("optimizer", ["adamw", "lion", "muon"])
@pytest.mark.parametrize("method", ["arsam", "wsam", "sampa"])
def test_every_base_optimizer_follows_any_link(optimizer, method, data_dir):
    trainer = make_trainer(data_dir, "--optimizer", optimizer, "--schedule", "wsd")
    state = jax.eval_shape(lambda: trainer._new_state(method, 0))
    arguments = np.zeros((100, 8, 8, 1), np.uint8), np.zeros(100, np.int32), np.arange(100)
    new_state, _ = jax.eval_shape(trainer.train_step, state, *arguments)
    assert jax.tree.map(jnp.shape, new_state) == jax.tree.map(jnp.shape, state)


def test_the_schedule_and_the_optimizer_are_those_of_the_settings(data_dir):
    """The first step of Lion moves every weight by the learning rate, but for its decay."""
    arguments = ("--optimizer", "lion", "--learning-rate", "0.01", "--weight-decay", "0")
    trainer = make_trainer(data_dir, *arguments, "--schedule", "constant", "--warmup-epochs", "0")
    before = trainer.new_state("sgd", 7)
    start = jax.device_get(before.params)
    (state,), _ = take_steps(trainer, "sgd", 1)
    for a, b in zip(*map(jax.tree.leaves, (start, state.params)), strict=True):
        moved = abs(np.asarray(b) - a)
        assert np.all(np.isclose(moved, 0.01, rtol=1e-3) | (moved == 0))
        assert np.any(moved > 0)


def test_a_warm_up_that_leaves_no_room_is_an_error(data_dir):
    with pytest.raises(ConfigError, match="--warmup-epochs 4: the warm-up of step must be 0 to 30"):
        make_trainer(data_dir, "--schedule", "step", "--warmup-epochs", "4")


def test_the_warm_up_is_one_epoch_and_of_a_single_one_half(data_dir):
    assert all(row.config.warmup == 1 for row in paper.rows().values())
    assert settings.parse(["--epochs", "2"]).warmup == 1
    trainer = make_trainer(data_dir, "--epochs", "1")
    assert "1 epochs, 0.5 of them warm-up, 10 steps" in _describe(trainer.config, trainer)
    schedule = methods.make_schedule(trainer.config, trainer.total_steps)
    rates = [float(schedule(step)) for step in range(10)]
    assert max(range(10), key=rates.__getitem__) == 5
    given = dataclasses.replace(trainer.config, warmup_epochs=0.5)
    assert settings._results_settings(given) == settings._results_settings(trainer.config)


def test_a_run_too_short_for_a_trajectory_says_so():
    def warning(*arguments):
        return _without_term(settings.parse(arguments))

    arguments = ["--method", "sgd", "mesa", "saf"]
    assert "nothing but sgd before epoch 7: saf, mesa" in warning(*arguments, "--epochs", "6")
    assert warning(*arguments, "--epochs", "7") == ""
    assert warning("--method", "sgd", "sam", "--epochs", "6") == ""


def test_a_run_too_short_for_the_probability_to_move_says_so():
    def warning(*arguments, steps):
        return _few_segments(settings.parse(arguments), steps)

    method, long = ["--method", "arsam"], ["--segment-length", "50"]
    assert "moves 2 times in all" in warning(*method, *long, steps=120)
    assert warning(*method, *long, steps=5_000) == ""
    assert warning(*method, "--segment-length", "8", steps=120) == ""
    assert warning("--method", "sam", *long, steps=120) == ""


def test_the_whole_family_can_be_compared():
    assert set(arsam_jax.methods.METHODS) <= set(methods.METHODS)


def test_all_means_every_method():
    assert settings.parse(["--method", "all"]).method == tuple(methods.METHODS)


def test_resumed_settings_come_from_the_folder(tmp_path):
    config = settings.parse(["--epochs", "7", "--config", "cifar10", "--output", str(tmp_path)])
    config.folder.mkdir()
    records.write_json(config.folder / settings.CONFIG_FILE, to_dict(config))
    resumed = settings.parse(["--resume", "--config", "cifar10", "--output", str(tmp_path)])
    assert (resumed.epochs, resumed.dataset, resumed.model) == (7, "cifar10", "resnet18")
    settings.check_folder(resumed)


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


def make_trainer(data_dir, *arguments):
    config = settings.parse([*TINY, "--data-dir", str(data_dir), *arguments])
    return Trainer(config, load(config))


def take_steps(trainer, method, num_steps, *, seed=7):
    """The states and the metrics after the first steps of a run."""
    state, states, metrics = trainer.new_state(method, seed), [], []
    step, order = jax.jit(trainer.train_step), loop.order_of(trainer, (seed,))
    for i in range(num_steps):
        index = order(i)
        images, labels = trainer.data.train_images[index], trainer.data.train_labels[index]
        state, values = step(state, *trainer.batch(images, labels, index))
        states.append(state)
        metrics.append(dict(zip(STEP_METRICS, np.asarray(values), strict=True)))
    return states, metrics


def test_accumulation_has_the_result_of_the_whole_batch(data_dir):
    """Where examples do not see each other: without BatchNorm, and without dropout."""
    arguments = ("--model", "vit_s", "--width", "64", "--depth", "1", "--dropout", "0")
    arguments = (*arguments, "--learning-rate", "0.5", "--warmup-epochs", "0")
    states, histories = [], []
    for parts in ("1", "4"):
        trainer = make_trainer(data_dir, *arguments, "--method", "sam", "--accumulate", parts)
        (*_, state), metrics = take_steps(trainer, "sam", 3)
        states.append(state)
        histories.append([values["loss"] for values in metrics])
    np.testing.assert_allclose(*histories, rtol=1e-5)
    for a, b in zip(*(jax.tree.leaves(state.params) for state in states), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-4)


def test_accumulation_normalises_each_part(data_dir):
    states = []
    for parts in ("1", "4"):
        trainer = make_trainer(data_dir, "--method", "sgd", "--dropout", "0", "--accumulate", parts)
        states += take_steps(trainer, "sgd", 1)[0]
    name = next(iter(states[0].batch_stats))
    once, four_times = (state.batch_stats[name]["var"] - 1 for state in states)
    # 0.9 of the running statistics are kept, once or for each of four parts of like statistics.
    np.testing.assert_allclose(four_times / once, (1 - 0.9**4) / (1 - 0.9), rtol=0.15)


def test_the_evaluated_average_is_the_recurrence(data_dir):
    trainer = make_trainer(data_dir, "--ema-decay", "0.5", "--learning-rate", "0.5")
    expected = trainer.new_state("sgd", 7).params
    states, _ = take_steps(trainer, "sgd", 3)
    for step, state in enumerate(states, 1):
        decay = min(0.5, step / (9 + step))
        expected = jax.tree.map(lambda a, w, d=decay: d * a + (1 - d) * w, expected, state.params)
    state = states[-1]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), state.ema[0], expected)
    images, labels = trainer.data.evaluation
    averaged = state.replace(params=state.ema.params, batch_stats=state.ema.batch_stats, ema=None)
    assert trainer.accuracy(state, images, labels) == trainer.accuracy(averaged, images, labels)


@pytest.mark.parametrize("model", ["cnn", "resnet18"])
def test_bfloat16_computes_and_keeps_float32(model, data_dir):
    trainer = make_trainer(data_dir, "--model", model, "--dtype", "bfloat16", "--width", "2")
    state = jax.eval_shape(lambda: trainer._new_state("sam", 0))
    arguments = np.zeros((100, 8, 8, 1), np.uint8), np.zeros(100, np.int32), np.zeros(100, np.int32)
    trace = jax.make_jaxpr(trainer.train_step, return_shape=True)
    jaxpr, (new_state, metrics) = trace(state, *arguments)
    assert metrics.dtype == jnp.float32
    for tree in (new_state.params, new_state.batch_stats, new_state.opt_state):
        for leaf in jax.tree.leaves(tree):
            assert leaf.dtype != jnp.bfloat16
    products = [
        eqn.outvars[0].aval.dtype
        for eqn in jaxpr.eqns
        if eqn.primitive.name in ("conv_general_dilated", "dot_general")
    ]
    assert products.count(jnp.bfloat16) > len(products) / 2


def test_seeds_at_once_are_the_seeds_one_by_one(data_dir, tmp_path):
    """The same decisions, and the same values to rounding."""
    trainer = make_trainer(data_dir)
    step_fn = trainer.compile_step("arsam")
    for seed in (7, 8):
        loop.train(trainer, step_fn, "arsam", (seed,), tmp_path / "one")
    step_fn = trainer.compile_step("arsam", 2)
    with pytest.raises(StoppedError, match="seeds 7, 8, at step 13"):
        loop.train(trainer, step_fn, "arsam", (7, 8), tmp_path / "both", should_stop=stop_at(13))
    results = loop.train(trainer, step_fn, "arsam", (7, 8), tmp_path / "both")
    assert [result["seed"] for result in results] == [7, 8]
    for seed in (7, 8):
        one, both = (read_csv(tmp_path / f / f"seed{seed}" / "steps.csv") for f in ("one", "both"))
        assert [row["sampled"] for row in both] == [row["sampled"] for row in one]
        np.testing.assert_allclose(
            *([float(row["loss"]) for row in rows] for rows in (one, both)), rtol=1e-2
        )


def test_the_best_checkpoint_is_kept_and_tested_and_training_stops_early(data_dir, tmp_path):
    arguments = (
        *("--validation", "0.3", "--keep-best", "--patience", "2", "--final-test"),
        *("--epochs", "40", "--batch-size", "50", "--learning-rate", "0.3", "--width", "4"),
    )
    trainer = make_trainer(data_dir, *arguments)
    step_fn = trainer.compile_step("sgd")
    with pytest.raises(StoppedError):
        loop.train(trainer, step_fn, "sgd", (1,), tmp_path, should_stop=stop_at(40))
    (result,) = loop.train(trainer, step_fn, "sgd", (1,), tmp_path)
    accuracies = [float(row["accuracy"]) for row in read_csv(tmp_path / "seed1" / "epochs.csv")]
    assert result["epochs"] == len(accuracies) == result["best_epoch"] + 2 < 40
    assert result["evaluated_on"] == "validation"
    assert accuracies.index(max(accuracies)) == result["best_epoch"] - 1
    with ocp.CheckpointManager((tmp_path / "seed1" / "best").absolute()) as best:
        assert best.all_steps() == [result["best_epoch"] * trainer.steps_per_epoch]
        state, _ = checkpoints.restore(best, best.latest_step(), trainer.new_state("sgd", 1))
    assert trainer.accuracy(state, *trainer.data.evaluation) == result["best_accuracy"]
    test = trainer.accuracy(state, trainer.data.test_images, trainer.data.test_labels)
    assert test == result["test_accuracy"]


def test_images_that_workers_read_train_alike(data_dir, tmp_path):
    losses, two_epochs = [], ("--epochs", "2", "--evaluate-every", "2")
    for workers in ("0", "1"):
        trainer = make_trainer(data_dir, "--input-workers", workers, *two_epochs)
        step_fn = trainer.compile_step("sgd")
        folder = tmp_path / workers
        if workers == "1":  # resumed in the middle of an epoch
            with pytest.raises(StoppedError):
                loop.train(trainer, step_fn, "sgd", (7,), folder, should_stop=stop_at(13))
        loop.train(trainer, step_fn, "sgd", (7,), folder)
        losses.append((folder / "seed7" / "steps.csv").read_bytes())
    assert losses[0] == losses[1]


def test_tensorboard_shows_every_step_once_after_a_crash(
    trainer, step_fn, reference, tmp_path, monkeypatch
):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setattr(trainer, "config", settings.parse([*TINY, "--tensorboard"]))
    save, saves = checkpoints.save, iter(range(100))

    def crash(*args):
        if next(saves) == 2:
            raise RuntimeError("power cut")
        save(*args)

    monkeypatch.setattr(checkpoints, "save", crash)
    with pytest.raises(RuntimeError, match="power cut"):
        loop.train(trainer, step_fn, "arsam", (7,), tmp_path)
    monkeypatch.setattr(checkpoints, "save", save)
    loop.train(trainer, step_fn, "arsam", (7,), tmp_path)
    events = EventAccumulator(str(tmp_path / "seed7"), size_guidance={"scalars": 0}).Reload()
    losses = events.Scalars("step/loss")
    assert [event.step for event in losses] == list(range(1, 61))
    expected = [float(row["loss"]) for row in read_csv(reference / "steps.csv")]
    np.testing.assert_allclose([event.value for event in losses], expected, rtol=1e-6)
    assert [event.step for event in events.Scalars("epoch/accuracy")] == list(range(10, 61, 10))


def run_program(*arguments, prelude="", program=PROGRAM):
    return subprocess.Popen(
        [sys.executable, "-c", prelude + program, *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_a_run_killed_at_random_moments_is_the_uninterrupted_one(data_dir, reference, tmp_path):
    """SIGKILL, while it starts, trains, or writes tables and checkpoints, as after every step."""
    place = ("--output", str(tmp_path), "--name", "killed")
    arguments = [*TINY, "--method", "arsam", "--seeds", "7", "--data-dir", str(data_dir), *place]
    every_step = "from examples.classification import loop; loop._STEPS_PER_FETCH = 1"
    run, rng = tmp_path / "killed" / "arsam" / "seed7", np.random.default_rng()
    delays = [rng.uniform(0, 8), rng.uniform(0, 0.5)]
    for kill, delay in enumerate(delays):
        if (tmp_path / "killed" / settings.CONFIG_FILE).exists():
            arguments = ["--resume", *place]
        process, before = run_program(*arguments, prelude=every_step), latest_step(run)
        while kill and process.poll() is None and latest_step(run) == before:
            time.sleep(0.001)
        time.sleep(delay)
        process.kill()
        process.communicate()
    assert latest_step(run) > 0, delays
    assert main(["--resume", *place]) == 0, delays
    assert_same_run(run, reference)


def latest_step(run):
    """Of the checkpoints that are whole."""
    names = [path.name for path in (run / "checkpoint").glob("*")]
    return max((int(name) for name in names if name.isdigit()), default=0)


def test_a_wrong_or_damaged_checkpoint_is_an_error_and_stays(trainer, step_fn, reference, tmp_path):
    other = make_trainer(trainer.config.data_dir, "--width", "3")
    for name in ("wrong", "damaged"):
        shutil.copytree(reference, tmp_path / name / "seed7")
        (tmp_path / name / "seed7" / loop.RESULT_FILE).unlink()
    with pytest.raises(CheckpointError, match=r"wrong/seed7/checkpoint is damaged, or of another"):
        loop.train(other, step_fn, "arsam", (7,), tmp_path / "wrong")
    for file in (tmp_path / "damaged").rglob("checkpoint/60/state/**/*"):
        if file.is_file():
            file.write_bytes(b"")
    with pytest.raises(CheckpointError, match="To train this run anew, delete that folder"):
        loop.train(trainer, step_fn, "arsam", (7,), tmp_path / "damaged")
    assert read_checkpoint(tmp_path / "wrong" / "seed7")[0] == 60
    steps = tmp_path / "wrong" / "seed7" / "steps.csv"
    steps.write_text("".join(steps.read_text().splitlines(keepends=True)[:40]))
    with pytest.raises(CheckpointError, match=r"steps.csv or .* is damaged: not the 60 steps"):
        loop.train(trainer, step_fn, "arsam", (7,), tmp_path / "wrong")
