"""Comparing methods on a task: what is recorded, resumed, refused and reported, on a tiny one."""

import base64
import dataclasses
import io
import itertools
import json
import math
import os
import re
import signal
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from rich.console import Console

import arsam_jax.flax
from examples.common import checkpoints, comparison, methods, optimizers, records, settings
from examples.common.comparison import Options, Trainer, report
from examples.common.errors import CheckpointError, ConfigError, StoppedError
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
    assert f'<td class="left">sam</td><td>2</td><td>{mean:.3f} ± {error:.3f}</td>' in text
    assert base64.b64encode((folder / "curves.png").read_bytes()).decode() in text
    assert "a dot is a seed" in text
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


def test_published_figures_are_beside_those_of_the_run():
    results = {
        method: [{"measures": {"a": 1}, "percent_sam": 20, "examples_per_second": 3, "seconds": 1}]
        for method in ("base", "sam", "gam")
    }
    columns = report.table(results, {"a": ("a", "{}")}, {"sam": {"accuracy": "97.1"}})
    assert columns["published accuracy"] == ["–", "97.1", "–"]
    assert columns["ideal"] == ["1.67", "1.67", "–"]  # a sample of GAM costs three gradients more


def test_the_report_draws_each_measure_of_each_run(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(report, "write_picture", lambda path, save, **_: drawn.append(save))
    measures = {name: (f"the {name}", "{:.1f}") for name in ("a", "b", "c", "d")}
    results = {
        "base": [{"measures": {"a": 1, "b": 2, "c": 3, "d": 4}}],
        "sam": [{"measures": dict.fromkeys("abcd", value)} for value in (5, 9)],
    }
    path = report._save_measures(tmp_path, "_a$b", results, measures)
    assert path == tmp_path / "measures.png"
    figure = drawn[0].__self__
    panels = figure.axes
    assert [panel.get_xlabel() for panel in panels if panel.axison] == [
        *("the a", "the b", "the c", "the d")
    ]
    assert [label.get_text() for label in panels[0].get_yticklabels()] == ["base", "sam"]
    points = [line.get_xydata().tolist() for line in panels[3].lines]
    assert points == [[[4, 0]], [[4, 0]], [[5, 1], [9, 1]], [[7, 1]]]


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


def test_pictures_of_other_runs_in_the_folder_are_not_in_the_report(tmp_path):
    config = {"name": "tiny", "method": ["sam", "base"], "seeds": [0, 2]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    for method, seed in (("base", 0), ("base", 1), ("base", 2), ("sam", 2), ("old", 0)):
        place = tmp_path / method / f"seed{seed}"
        place.mkdir(parents=True)
        (place / "drawn.png").write_bytes(f"{method} {seed}".encode())
    report.write(tmp_path, Task.measures, Console(quiet=True))
    page = (tmp_path / "report.html").read_text()
    shown = re.findall(r"<figcaption>(\w+/\w+)/drawn.png<", page)
    assert shown == ["sam/seed2", "base/seed0", "base/seed2"]
    assert base64.b64encode(b"sam 2").decode() in page


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
    digest = (folder / "checkpoint").read_bytes().partition(b'"arrays"')[2]
    return result["measures"], result["percent_sam"], (folder / "steps.csv").read_text(), digest


@pytest.mark.parametrize("method", ["arsam", "sampa"])
def test_an_interrupted_run_ends_with_the_same_bits(method, tiny, whole, tmp_path):
    for stop in (7, 6, 5):
        with pytest.raises(StoppedError, match=f"{method}, seed 3, at step"):
            final(tiny, tmp_path, method, should_stop=stop_at(stop))
        if stop == 6:  # what was recorded after the checkpoint is of a lost future
            with (tmp_path / "steps.csv").open("a") as file:
                file.write("14,0.5,1\n")
    assert final(tiny, tmp_path, method) == whole[1][method]


def test_a_crash_between_records_and_checkpoint_loses_nothing(tiny, whole, tmp_path, monkeypatch):
    save = checkpoints.save

    def crash(path, checkpoint):
        if checkpoint.step >= 13:
            raise RuntimeError("power cut")
        save(path, checkpoint)

    options = dataclasses.replace(OPTIONS, checkpoint_seconds=0, evaluate_every=1)
    monkeypatch.setattr(tiny, "options", options)
    monkeypatch.setattr(checkpoints, "save", crash)
    with pytest.raises(RuntimeError, match="power cut"):
        tiny.train("arsam", 3, tmp_path)
    monkeypatch.undo()
    assert checkpoints.restore(tmp_path / "checkpoint", tiny.new_state("arsam", 3)).step == 12
    assert (tmp_path / "steps.csv").read_text().count("\n") == 19
    assert final(tiny, tmp_path)[1:] == whole[1]["arsam"][1:]


def test_threads_that_read_ahead_train_alike(tiny, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(tiny, "options", dataclasses.replace(OPTIONS, input_threads=2))
    with pytest.raises(StoppedError):
        final(tiny, tmp_path, "sampa", should_stop=stop_at(7))
    assert final(tiny, tmp_path, "sampa") == whole[1]["sampa"]


def test_damaged_records_are_an_error_that_names_them(tiny, whole, tmp_path):
    for name in ("checkpoint", "steps.csv", "evaluations.json"):
        (tmp_path / name).write_bytes((whole[0] / "arsam" / name).read_bytes())
    (tmp_path / "evaluations.json").write_text("[" * 10_000)
    with pytest.raises(CheckpointError, match=r"steps.csv or .*json is damaged.*To train"):
        tiny.train("arsam", 3, tmp_path)


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
    table = records.Table(whole[0] / "arsam/steps.csv", ("step", "loss", "sampled"))
    table.load()
    np.testing.assert_allclose([e.value for e in losses], table.column("loss"), rtol=1e-6)
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


def test_methods_get_the_settings_that_are_theirs(tiny):
    options = dataclasses.replace(OPTIONS, rho_of_weights=0.1, microbatches=4)
    training = methods.Training(options, 24, 6, 48, lambda step: 0.1, seed=7)
    params = {"w": jnp.full(4, 2.0)}
    grad_fn = jax.tree.map(lambda w: 2 * w, params)
    for name in ("sam", "momentum_sam"):
        tx = methods.make_method(name, training, optax.sgd(0.1))
        _, state = tx.update(grad_fn, tx.init(params), params, grad_fn=lambda p: p)
        factor = methods.MOMENTUM_SAM_RADIUS if name == "momentum_sam" else 1
        rho = arsam_jax.get_metrics(state).rho
        np.testing.assert_allclose(rho, factor * 0.1 * 4, rtol=1e-6)
    assert methods._arguments("m_sam", training)["num_microbatches"] == 4
    plain = training._replace(options=OPTIONS)
    assert methods._arguments("m_sam", plain)["num_microbatches"] == 2
    assert methods._arguments("budgeted_sam", plain)["num_microbatches"] is None
    state = methods.make_method("wsam", training, optax.sgd(0.1)).init(params)
    assert isinstance(state, arsam_jax.decoupling.DecoupleState)


@pytest.mark.parametrize("method", ["base", "wsam"])
def test_a_task_gives_parts_learning_rates_of_their_own(method, tmp_path):
    class Partial(Task):
        """Trains the last layer alone."""

        def new_state(self, tx, seed):
            last = optimizers.multiply_rates(lambda path: float(path[0] == "layers_2"))
            return super().new_state(optax.chain(tx, last), seed)

    trainer = Trainer(OPTIONS, task := Partial(OPTIONS))
    start = trainer.new_state(method, 0).params
    trained = []
    task.finish = lambda state, folder: trained.append(state.params) or {"loss": 0.0}
    trainer.train(method, 0, tmp_path)
    for layer in ("layers_0", "layers_2"):
        same = jax.tree.map(np.array_equal, start[layer], trained[-1][layer])
        assert jax.tree.leaves(same) == [layer == "layers_0"] * 2


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
    assert run(tmp_path, "--smoke", "--method", "sam", "--seeds", "4", "5") == 0
    assert "Training 1 runs of 4 steps" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_a_short_run_with_long_segments_is_warned_about(capsys):
    for method, length, warned in (("arsam", 20, True), ("arsam", 8, False), ("base", 20, False)):
        options = dataclasses.replace(OPTIONS, method=(method,), segment_length=length)
        comparison._warn(options, 50, Console())
        assert ("changes only 2 times" in capsys.readouterr().out) == warned


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--method sma", "--method: there is no sma; there are base, sam,"),
        ("--optimizer adam", "--optimizer: there is no adam; there are sgd, adamw"),
        ("--optimizer lion --momentum 0.8", "--momentum is for --optimizer sgd; lion"),
        ("--rho -1", "--rho must not be negative, not -1"),
        ("--rho inf", "--rho must be a finite float32 number, not inf"),
        ("--rho nan", "--rho must be a finite float32 number, not nan"),
        ("--rho 1e39", "--rho must be a finite float32 number"),
        ("--alpha inf", "--alpha must be a finite"),
        ("--alpha 1e400", "--alpha must be a finite float32 number, not inf"),
        ("--learning-rate inf", "--learning-rate must be a finite"),
        ("--decay-at 0.5 nan", "--decay-at must be a finite"),
        ("--segment-length 2147483648", r"--segment-length must be less than 2\*\*31"),
        ("--share 0", r"--share must be in \(0, 1\], not 0"),
        ("--warmup 1", r"--warmup must be in \[0, 1\), not 1"),
        ("--decay-at 0.9 0.5", r"--decay-at must rise within \(0, 1\), not 0\.9 0\.5"),
        ("--seeds 1 1", "--seeds contains a value twice"),
        ("--seeds -1", r"--seeds must be in \[0, 2\*\*32\)"),
        ("--seeds", "--seeds needs at least one value"),
        ("--method m_sam --batch-size 7", "--batch-size 7 must be a multiple of the 2 micro-b"),
        ("--name a/b", "--name must be the name of one folder, not 'a/b'"),
    ],
)
def test_invalid_options_are_errors(arguments, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        comparison.parse(Options, "tiny", ["--output", str(tmp_path), *arguments.split()])


@pytest.mark.parametrize(
    "wrong",
    ["--batch-size 49", "--schedule wsd --warmup 0.9", "--devices 9", "--epochs 2147483647"],
)
def test_what_is_refused_leaves_no_folder(wrong, tmp_path, capsys):
    assert run(tmp_path, *wrong.split()) == 2
    assert capsys.readouterr().err.startswith("error: --")
    assert not (tmp_path / "tiny").exists()


def test_an_interrupted_start_leaves_a_folder_that_starts_again(tmp_path, monkeypatch, capsys):
    """The settings are the first file of a run, so there is nothing between two files."""
    assert run(tmp_path, "--resume") == 2
    assert "there is no run to resume in" in capsys.readouterr().err

    def killed(path, content):
        path.with_name(path.name + ".tmp").write_bytes(content[:9])
        raise KeyboardInterrupt

    def killed_later(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(records, "write_bytes", killed)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, "--method", "base")
    monkeypatch.undo()
    assert [file.name for file in (tmp_path / "tiny").iterdir()] == ["config.json.tmp"]
    monkeypatch.setattr(Trainer, "train", killed_later)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, "--method", "base")
    monkeypatch.undo()
    assert [file.name for file in (tmp_path / "tiny").iterdir()] == ["config.json"]
    assert run(tmp_path, "--method", "base", "--resume") == 0


WRONG = {
    "rho": "0.1",
    "epochs": 4.0,
    "seeds": 0,
    "method": ["sam", 1],
    "validation": 1,
    "decay_at": [0.5, None],
    "output": None,
    "name": ["tiny"],
    "batch_size": True,
}


@pytest.mark.parametrize("name", WRONG)
def test_a_setting_of_the_wrong_type_in_the_file_is_an_error(name, tmp_path, capsys):
    file = tmp_path / "tiny" / "config.json"
    file.parent.mkdir()
    stored = settings.to_dict(dataclasses.replace(OPTIONS, output=tmp_path))
    records.write_json(file, stored | {name: WRONG[name]})
    assert comparison.main(Options, Task, "tiny", ["--resume", "--output", str(tmp_path)]) == 2
    printed = " ".join(capsys.readouterr().err.split())
    assert f"config.json: {name} must be of the type" in printed


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read as the settings of a run"),
        ("[" * 100_000, "cannot be read as the settings of a run"),
        ("[]", "does not hold the settings of this program. Missing: alpha"),
        ('{"program": "evil.py"}', "unknown: program"),
        (None, "must be a finite float32 number, not inf"),
    ],
)
def test_a_damaged_file_of_settings_is_an_error(content, message, tmp_path, capsys):
    file = tmp_path / "tiny" / "config.json"
    file.parent.mkdir()
    stored = settings.to_dict(dataclasses.replace(OPTIONS, output=tmp_path, rho=math.inf))
    file.write_text(content if content is not None else json.dumps(stored))
    assert comparison.main(Options, Task, "tiny", ["--resume", "--output", str(tmp_path)]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_settings_are_read_as_they_were_written(tmp_path):
    records.write_json(tmp_path / "config.json", settings.to_dict(OPTIONS))
    assert settings.read(Options, tmp_path / "config.json") == OPTIONS


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
    named = comparison.parse(Limited, "tiny", ["--method", "all", "wsam"]).method
    assert named == ("base", *METHODS)  # the task raises an error for it
