"""Comparing methods on a task: what is recorded, resumed, refused and reported, on a tiny one."""

import base64
import dataclasses
import io
import itertools
import json
import math
import os
import signal
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import arsam_jax.flax
from examples.common import comparison, methods, settings
from examples.common.comparison import Options, Trainer, report
from examples.common.errors import ConfigError, StoppedError
from examples.common.methods import METHODS

pytestmark = pytest.mark.usefixtures("standard_promotion")

RNG = np.random.default_rng(0)
X = RNG.normal(size=(48, 4)).astype(np.float32)
Y = np.tanh(X @ RNG.normal(size=4)).astype(np.float32)


class Task(comparison.Task):
    """Regression with a network of 25 parameters."""

    num_examples = len(X)
    measures = {"loss": ("loss", "{:.3f}")}  # noqa: RUF012

    def __init__(self, options):
        self.options, self.model = options, nn.Sequential([nn.Dense(4), nn.tanh, nn.Dense(1)])

    def new_state(self, tx, seed):
        params = self.model.init(jax.random.key(seed), X[:1])["params"]
        return arsam_jax.flax.TrainState.create(apply_fn=self.model.apply, params=params, tx=tx)

    def batch(self, index, step, seed):
        noise = np.random.default_rng((seed, step)).normal(size=(len(index), 4))
        return X[index] + 0.01 * noise.astype(np.float32), Y[index], index.astype(np.int32)

    def train_step(self, state, batch, previous):
        def losses(params, batch):
            return jnp.square(self.model.apply({"params": params}, batch[0])[:, 0] - batch[1])

        def value_and_grad(params, batch=batch):
            return jax.value_and_grad(lambda params: losses(params, batch).mean())(params)

        loss, grads = value_and_grad(state.params)
        state = state.apply_gradients(
            grads=grads,
            grad_fn=lambda params: value_and_grad(params)[1],
            previous_grad_fn=lambda params: value_and_grad(params, previous)[1],
            example_loss_fn=losses,
            batch=batch,
            example_index=batch[2],
        )
        return state, loss

    def evaluate(self, state):
        predicted = self.model.apply({"params": state.params}, X)[:, 0]
        return {"loss": float(jnp.square(predicted - Y).mean())}

    def finish(self, state, folder):
        return self.evaluate(state)


OPTIONS = Options(
    epochs=4, batch_size=8, learning_rate=0.05, rho=0.05, evaluate_every=2, name="tiny"
)


def run(folder, *arguments, task=Task):
    common = ["--epochs", "4", "--batch-size", "8", "--evaluate-every", "2"]
    return comparison.main(Options, task, "tiny", ["--output", str(folder), *common, *arguments])


def test_a_comparison_leaves_a_table_and_all_numbers(tmp_path, capsys):
    assert run(tmp_path, "--seeds", "0", "1") == 0
    folder = tmp_path / "tiny"
    numbers = json.loads((folder / "report.json").read_text())
    assert numbers["table"]["method"] == ["base", "sam", "arsam"]
    assert numbers["table"]["seeds"] == ["2"] * 3
    assert numbers["table"]["%SAM"][:2] == ["0.0", "100.0"]
    assert numbers["table"]["ideal"][:2] == ["2.00", "1.00"]
    losses = [own["measures"]["loss"] for own in numbers["runs"]["sam"]]
    mean, error = np.mean(losses), abs(losses[0] - losses[1]) / 2
    assert numbers["table"]["loss"][1] == f"{mean:.3f} ± {error:.3f}"
    assert [row["step"] for row in numbers["runs"]["sam"][0]["evaluations"]] == [12, 24]
    assert "jax" in numbers["runs"]["sam"][0]["environment"]
    text = (folder / "report.html").read_text()
    assert f"{mean:.3f} ± {error:.3f}" in text
    for name in ("curves.png", "measures.png"):
        assert base64.b64encode((folder / name).read_bytes()).decode() in text
    assert not list(tmp_path.rglob("*.tmp"))
    printed = capsys.readouterr().out
    assert "Training 6 runs of 24 steps" in printed
    assert f"sam, seed 0: loss {losses[0]:.3f}, 100 %SAM" in printed

    assert run(tmp_path) == 2
    assert "is not empty. Continue its runs" in capsys.readouterr().err
    assert run(tmp_path, "--resume", "--rho", "0.3") == 2
    assert "--rho 0.1 → 0.3" in capsys.readouterr().err
    assert run(tmp_path, "--resume", "--method", "gsam", "--seeds", "0") == 0
    numbers = json.loads((folder / "report.json").read_text())
    assert numbers["table"]["method"] == ["base", "sam", "arsam", "gsam"]
    assert numbers["runs"]["sam"][0]["measures"]["loss"] == losses[0]


def test_a_short_run_of_arsam_with_long_segments_is_warned_about(tmp_path, capsys):
    arguments = ("--method", "arsam", "--seeds", "0", "--segment-length")
    assert run(tmp_path / "short", *arguments, "10") == 0
    assert "Warning" not in capsys.readouterr().out
    assert run(tmp_path / "long", *arguments, "20") == 0
    assert "changes only 1 times in 24 steps" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("name", ["_a", "a$b", "$\\frac$ü"])
def test_any_name_survives_in_figures_and_on_the_console(name, tmp_path, monkeypatch):
    run_of = {"step": 1, "epoch": 1.0, "seconds": 1.0, "loss": 2.0}
    result = {"measures": {"loss": 1.0}, "evaluations": [run_of]}
    results, drawn = {"base": [result]}, []

    def draw(path, save, **kwargs):
        save(io.BytesIO(), format="png")  # raises if the name is no valid formula
        drawn.append(save.__self__)

    monkeypatch.setattr(report, "write_picture", draw)
    report._save_measures(tmp_path, name, results, {"loss": (name, "{}")})
    report._save_curves(tmp_path, name, results)
    assert [figure.get_suptitle() for figure in drawn] == [name] * 2
    assert not any(figure._suptitle.get_parse_math() for figure in drawn)
    assert not drawn[0].axes[0].xaxis.label.get_parse_math()


def test_the_console_prints_paths_as_they_are(tmp_path, capsys):
    folder = tmp_path / "[old]" / "[/red] :apple:"
    calls = iter(range(1, 100))

    class Stopped(Task):
        def batch(self, index, step, seed):
            if next(calls) == 9:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().batch(index, step, seed)

    assert run(folder, "--name", "[b]", "--method", "base", task=Stopped) == 128 + 15
    printed = capsys.readouterr().out
    assert "at step " in printed
    assert f"python -m examples.tiny --resume --name '[b]' --output '{folder}'" in printed
    assert run(folder, "--name", "[b]", "--method", "base", "--resume") == 0
    printed = capsys.readouterr().out
    assert f"Report: {folder}/[b]/report.html" in printed.replace("\n", "")
    assert run(folder, "--name", "[b]") == 2
    assert f"error: {folder}/[b] is not empty" in capsys.readouterr().err


def test_a_terminal_without_utf_8_shows_the_table(tmp_path, monkeypatch):
    class Described(Task):
        description = "images of 8×8"

    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, encoding="ascii"))
    assert run(tmp_path, "--method", "base", "--seeds", "0", "1", task=Described) == 0
    sys.stdout.flush()
    lines = shown.getvalue().decode("ascii").splitlines()
    assert lines[0] == "images of 8?8"
    assert any("base" in line and "?" in line for line in lines)  # the mean ± its error


def stop_at(step):
    calls = iter(range(1, 100))
    return lambda: next(calls) == step


@pytest.fixture(scope="module")
def tiny():
    """One compiled step of ARSAM and one of SAMPa serve many tests."""
    return Trainer(OPTIONS, Task(OPTIONS))


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory):
    """The folder and the results of runs that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, {m: final(tiny, folder / m, m) for m in ("arsam", "sampa")}


def final(trainer, folder, method="arsam", **kwargs):
    result = trainer.train(method, 3, folder, **kwargs)
    arrays = (folder / "checkpoint").read_bytes().partition(b'"arrays"')[2]
    return result["measures"], result["percent_sam"], (folder / "steps.csv").read_text(), arrays


@pytest.mark.parametrize("method", ["arsam", "sampa"])
def test_an_interrupted_run_ends_with_the_same_bits(method, tiny, whole, tmp_path):
    for stop in (7, 6, 5):
        with pytest.raises(StoppedError, match=f"{method}, seed 3, at step"):
            final(tiny, tmp_path, method, should_stop=stop_at(stop))
        (tmp_path / "steps.csv").write_text("of no account, the checkpoint has all")
    assert final(tiny, tmp_path, method) == whole[1][method]


def test_threads_that_read_ahead_train_alike(tiny, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(tiny, "options", dataclasses.replace(OPTIONS, input_threads=2))
    with pytest.raises(StoppedError):
        final(tiny, tmp_path, "sampa", should_stop=stop_at(7))
    assert final(tiny, tmp_path, "sampa") == whole[1]["sampa"]


@pytest.mark.long  # the import alone takes seconds
def test_tensorboard_shows_every_step_once_after_a_resumption(tiny, whole, tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setattr(tiny, "options", dataclasses.replace(OPTIONS, tensorboard=True))
    with pytest.raises(StoppedError):
        final(tiny, tmp_path, should_stop=stop_at(13))
    final(tiny, tmp_path)
    events = EventAccumulator(str(tmp_path), size_guidance={"scalars": 0}).Reload()
    losses = events.Scalars("step/loss")
    assert [event.step for event in losses] == list(range(1, 25))
    table = np.genfromtxt(whole[0] / "arsam/steps.csv", delimiter=",", names=True)
    np.testing.assert_allclose([e.value for e in losses], table["loss"], rtol=1e-6)
    assert [event.step for event in events.Scalars("evaluation/loss")] == [12, 24]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_takes_a_step(method, tiny):
    """On shapes: ``make_method`` knows the arguments of each."""
    task = Task(OPTIONS)
    tx = tiny.make_optimizer(method, 0)
    state = jax.eval_shape(lambda: task.new_state(tx, 0))
    batch = task.batch(np.arange(8), 0, 0)
    new, loss = jax.eval_shape(task.train_step, state, batch, batch)
    assert loss.shape == ()
    assert jax.tree.map(jnp.shape, new.opt_state) == jax.tree.map(jnp.shape, state.opt_state)


def test_methods_get_the_settings_that_are_theirs(tiny, monkeypatch):
    options = dataclasses.replace(OPTIONS, rho_of_weights=0.1, microbatches=4)
    monkeypatch.setattr(tiny, "options", options)
    params = {"w": jnp.full(4, 2.0)}
    for name, factor in (("sam", 1), ("momentum_sam", methods.MOMENTUM_SAM_RADIUS)):
        tx = tiny.make_optimizer(name, 0)
        _, state = tx.update(params, tx.init(params), params, grad_fn=lambda p: p)
        rho = arsam_jax.get_metrics(state).rho
        np.testing.assert_allclose(rho, factor * 0.1 * 4, rtol=1e-6)
    state = tiny.make_optimizer("wsam", 0).init(params)
    assert isinstance(state, arsam_jax.decoupling.DecoupleState)


def test_the_previous_batch_is_that_of_the_step_before(tmp_path):
    steps = []

    class Recording(Trainer):
        def step_fn(self, method, state, batch):
            def step(state, batch, previous):
                steps.append((batch[2].tolist(), previous[2].tolist()))
                return state, jnp.zeros(2)

            return step

    Recording(OPTIONS, Task(OPTIONS)).train("sampa", 0, tmp_path)
    assert len(steps) == 24
    assert steps[0][0] == steps[0][1]
    assert all(now[1] == before[0] for before, now in itertools.pairwise(steps))


def test_smoke_leaves_nothing_and_is_short(tmp_path, capsys):
    assert run(tmp_path, "--smoke", "--seeds", "4", "5", "--segment-length", "20") == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "Training 3 runs of 4 steps" in printed
    assert "changes only 0 times in 4 steps with --segment-length 20" in printed
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--method sma", "--method: there is no sma; there are base, sam,"),
        ("--optimizer adam", "--optimizer: there is no adam; there are sgd, adamw"),
        ("--rho -1", "--rho must be finite and not negative, not -1"),
        ("--decay-at 0.5 nan", "--decay-at must be finite"),
        ("--share 0", r"--share must be in \(0, 1\], not 0"),
        ("--warmup 1", r"--warmup must be in \[0, 1\), not 1"),
        ("--decay-at 0.9 0.5", r"--decay-at must rise within \(0, 1\) .*, not \(0\.9, 0\.5\)"),
        ("--seeds 1 1", "--seeds contains a value twice"),
        ("--seeds", "--seeds needs at least one value"),
        ("--method m_sam --batch-size 7", "--batch-size 7 must be a multiple of --microb"),
        ("--name a/b", "--name must be the name of one folder, not 'a/b'"),
    ],
)
def test_invalid_options_are_errors(arguments, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        comparison.parse(Options, "tiny", ["--output", str(tmp_path), *arguments.split()])


@pytest.mark.parametrize(
    "wrong",
    ["--batch-size 49", "--schedule step --warmup 0.9", "--devices 9"],
)
def test_what_is_refused_leaves_no_folder(wrong, tmp_path, capsys):
    assert run(tmp_path, *wrong.split()) == 2
    assert capsys.readouterr().err.startswith("error: --")
    assert not (tmp_path / "tiny").exists()


def test_an_interrupted_start_leaves_a_folder_that_starts_again(tmp_path, monkeypatch, capsys):
    """The settings are the first file of a run, so there is nothing between two files."""
    assert run(tmp_path, "--resume") == 2
    assert "there is no run to resume in" in capsys.readouterr().err

    def killed(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "train", killed)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, "--method", "base")
    monkeypatch.undo()
    assert [file.name for file in (tmp_path / "tiny").iterdir()] == ["config.json"]
    assert run(tmp_path, "--method", "base", "--resume") == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "JSONDecodeError"),
        ("[" * 100_000, "RecursionError"),
        ("[]", "settings that differ: alpha"),
        ({"program": "evil.py"}, "settings that differ: program"),
        ({"rho": math.inf}, "--rho must be finite"),
        ({"rho": "0.1"}, "rho: str is neither float"),
        ({"epochs": 4.0}, "epochs: float is not"),
        ({"method": ["sam", 1]}, "method: item 1 of tuple is not"),
        ({"validation": 1}, "validation: int is not"),
        ({"output": None}, "output: None is not"),
        ({"schedule": "linear"}, "schedule: str is not any of"),
    ],
    ids=str,
)
def test_a_damaged_file_of_settings_is_an_error(content, message, tmp_path, capsys):
    file = tmp_path / "tiny" / "config.json"
    file.parent.mkdir()
    if isinstance(content, dict):
        stored = settings.to_dict(dataclasses.replace(OPTIONS, output=tmp_path))
        content = json.dumps(stored | content)
    file.write_text(content)
    assert comparison.main(Options, Task, "tiny", ["--resume", "--output", str(tmp_path)]) == 2
    printed = " ".join(capsys.readouterr().err.split())
    assert message in printed
    assert "rho must" in printed or f"{file} cannot be read as the settings of a run" in printed


def test_a_damaged_checkpoint_is_one_clear_line(tmp_path, capfd):
    arguments = ("--method", "base", "--seeds", "3")
    assert run(tmp_path, *arguments) == 0
    place = tmp_path / "tiny/base/seed3"
    (place / "result.json").unlink()
    content = bytearray((place / "checkpoint").read_bytes())
    content[-5] ^= 1
    (place / "checkpoint").write_bytes(content)
    capfd.readouterr()
    assert run(tmp_path, "--resume", *arguments) == 2
    printed = capfd.readouterr().err
    assert printed.count("\n") == 1
    assert printed.startswith(f"error: the checkpoint {place}/checkpoint is damaged")


def test_all_means_every_method_except_those_that_cannot_run(tmp_path, capsys):
    class Limited(Options):
        def impossible(self):
            return {"wsam": "it has no place here"}

    found = comparison.parse(Limited, "tiny", ["--method", "all"]).method
    assert found == ("base", *(name for name in METHODS if name != "wsam"))
    assert "--method all leaves out wsam: it has no place here" in capsys.readouterr().out
