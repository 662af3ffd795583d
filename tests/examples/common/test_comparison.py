"""Comparing methods on a task: what is recorded, resumed, refused and reported, on a tiny one."""

import base64
import itertools
import json
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from rich.console import Console

import arsam_jax.flax
from examples.common import comparison, methods, optimizers
from examples.common.comparison import Options, Trainer, report
from examples.common.errors import ConfigError, StoppedError

pytestmark = pytest.mark.usefixtures("standard_promotion")

RNG = np.random.default_rng(0)
X = RNG.normal(size=(48, 4)).astype(np.float32)
Y = np.tanh(X @ RNG.normal(size=4)).astype(np.float32)


class Task:
    """Regression with a network of 21 parameters."""

    num_examples = len(X)
    measures = {"loss": ("loss", "{:.3f}")}  # noqa: RUF012

    def __init__(self, options):
        self.options, self.model = options, nn.Sequential([nn.Dense(4), nn.tanh, nn.Dense(1)])

    def new_state(self, tx, seed):
        params = self.model.init(jax.random.key(seed), X[:1])["params"]
        return arsam_jax.flax.TrainState.create(apply_fn=self.model.apply, params=params, tx=tx)

    def batch(self, index, step, seed):
        return X[index], Y[index], index.astype(np.int32)

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
        return self.finish(state, None)

    def finish(self, state, folder):
        predicted = self.model.apply({"params": state.params}, X)[:, 0]
        return {"loss": float(jnp.square(predicted - Y).mean())}


OPTIONS = Options(
    epochs=4, batch_size=8, learning_rate=0.05, rho=0.05, evaluate_every=2, name="tiny"
)


def run(folder, *arguments):
    def make_task(options):
        return Task(options)

    common = [
        "--output",
        str(folder),
        "--epochs",
        "4",
        "--batch-size",
        "8",
        "--evaluate-every",
        "2",
    ]
    return comparison.main(Options, make_task, "tiny", [*common, *arguments])


def test_a_comparison_leaves_a_table_and_all_numbers(tmp_path, capsys):
    assert run(tmp_path, "--seeds", "0", "1") == 0
    report = json.loads((tmp_path / "tiny/report.json").read_text())
    assert report["table"]["method"] == ["base", "sam", "arsam"]
    assert report["table"]["seeds"] == ["2"] * 3
    assert report["table"]["%SAM"][:2] == ["0.0", "100.0"]
    losses = [own["measures"]["loss"] for own in report["runs"]["sam"]]
    mean, error = np.mean(losses), abs(losses[0] - losses[1]) / 2
    assert report["table"]["loss"][1] == f"{mean:.3f} ± {error:.3f}"
    assert [row["step"] for row in report["runs"]["sam"][0]["evaluations"]] == [12, 24]
    text = (tmp_path / "tiny/report.html").read_text()
    row = ["2", f"{mean:.3f} ± {error:.3f}", "100.0"]
    assert f'<td class="left">sam</td><td>{"</td><td>".join(row)}</td>' in text
    curves = (tmp_path / "tiny/curves.png").read_bytes()
    assert base64.b64encode(curves).decode() in text
    assert "a dot is a seed" in text
    assert not list(tmp_path.rglob("*.tmp"))
    assert "arsam" in capsys.readouterr().out

    assert run(tmp_path) == 2
    assert "is not empty. Go on with its runs" in capsys.readouterr().err
    assert run(tmp_path, "--resume", "--rho", "0.3") == 2
    assert "--rho 0.1 → 0.3" in capsys.readouterr().err
    assert run(tmp_path, "--resume", "--method", "gsam", "--seeds", "0") == 0
    report = json.loads((tmp_path / "tiny/report.json").read_text())
    assert report["table"]["method"] == ["base", "sam", "arsam", "gsam"]
    assert report["runs"]["sam"][0]["measures"]["loss"] == losses[0]


def test_the_time_that_is_left_is_told_from_the_first_steps_on(tmp_path, capsys):
    assert run(tmp_path, "--method", "base", "sam", "--seeds", "0", "1") == 0
    printed = " ".join(capsys.readouterr().out.split())
    told = re.findall(r"about \d+ \w+ left, judging by the first steps of (\w+)", printed)
    assert told == ["base"]
    after = re.findall(r"(\w+, seed \d) is trained; about \d+ \w+ left", printed)
    assert after == ["base, seed 0", "base, seed 1", "sam, seed 0"]


def test_where_a_run_starts_is_told_once_it_is_compiled(tmp_path):
    trainer, starts = Trainer(OPTIONS, Task(OPTIONS)), []

    def start(step):
        starts.append((step, list(trainer.compile_seconds)))

    calls = iter(range(1, 100))
    with pytest.raises(StoppedError):
        final(trainer, tmp_path, should_stop=lambda: next(calls) == 7, on_start=start)
    final(trainer, tmp_path, on_start=start)
    assert starts == [(0, ["arsam"]), (7, ["arsam"])]


def test_the_report_draws_each_measure_of_each_run(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(report, "write_picture", lambda path, save, **_: drawn.append(save))
    measures = {name: (f"the {name}", "{:.1f}") for name in ("a", "b", "c", "d")}
    results = {
        "base": [{"measures": {"a": 1, "b": 2, "c": 3, "d": 4}}],
        "sam": [{"measures": dict.fromkeys("abcd", value)} for value in (5, 9)],
    }
    assert report._save_measures(tmp_path, results, measures) == tmp_path / "measures.png"
    panels = drawn[0].__self__.axes
    assert [panel.get_xlabel() for panel in panels if panel.axison] == [
        *("the a", "the b", "the c", "the d")
    ]
    assert [label.get_text() for label in panels[0].get_yticklabels()] == ["base", "sam"]
    points = [line.get_xydata().tolist() for line in panels[3].lines]
    assert points == [[[4, 0]], [[4, 0]], [[5, 1], [9, 1]], [[7, 1]]]


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


def final(trainer, folder, method="arsam", **kwargs):
    result = trainer.train(method, 3, folder, **kwargs)
    return result["measures"], result["percent_sam"], (folder / "steps.csv").read_text()


def test_an_interrupted_run_ends_at_the_same_bits(tmp_path):
    trainer = Trainer(OPTIONS, Task(OPTIONS))
    whole = final(trainer, tmp_path / "whole")
    for stops in (7, 6, 5):
        calls = iter(range(1, 100))
        with pytest.raises(StoppedError, match="arsam, seed 3, at step"):
            final(trainer, tmp_path / "parts", should_stop=lambda: next(calls) == stops)
        if stops == 6:  # what was recorded after the checkpoint is of a lost future
            with (tmp_path / "parts/steps.csv").open("a") as file:
                file.write("14,0.5,1\n")
    assert final(trainer, tmp_path / "parts") == whole


@pytest.mark.parametrize("method", methods.METHODS)
def test_every_method_trains(method, tmp_path):
    task = Task(OPTIONS)
    trainer = Trainer(OPTIONS, task)
    before = task.evaluate(trainer.new_state(method, 0))["loss"]
    result = trainer.train(method, 0, tmp_path)
    assert result["measures"]["loss"] < before
    assert result["percent_sam"] > 0


def test_batches_are_drawn_by_step_and_seed_after_a_resumption_too(tmp_path):
    class Noisy(Task):
        """Augments: adds noise to the inputs."""

        def batch(self, index, step, seed):
            x, y, index = super().batch(index, step, seed)
            noise = np.random.default_rng((seed, step)).normal(size=x.shape)
            return x + noise.astype(np.float32), y, index

    trainer = Trainer(OPTIONS, Noisy(OPTIONS))
    whole = final(trainer, tmp_path / "whole", "sampa")
    assert whole != final(Trainer(OPTIONS, Task(OPTIONS)), tmp_path / "plain", "sampa")
    calls = iter(range(1, 100))
    with pytest.raises(StoppedError):
        final(trainer, tmp_path / "parts", "sampa", should_stop=lambda: next(calls) == 7)
    assert final(trainer, tmp_path / "parts", "sampa") == whole


@pytest.mark.parametrize("method", ["base", "sam", "wsam"])
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--method", "sma"), "--method: there is no sma; there are base, sam,"),
        (("--optimizer", "adam"), "--optimizer: there is no adam; there are sgd, adamw"),
        (("--optimizer", "lion", "--momentum", "0.8"), "--momentum is for --optimizer sgd; lion"),
        (("--rho", "-1"), "--rho must not be negative"),
        (("--share", "0"), r"--share must be in \(0, 1\]"),
        (("--warmup", "1"), r"--warmup must be in \[0, 1\)"),
        (("--decay-at", "0.9", "0.5"), r"--decay-at must rise within \(0, 1\), not 0\.9 0\.5"),
        (("--seeds", "1", "1"), "--seeds names one twice"),
        (("--resume",), "there is no run to resume in"),
        (("--name", "a/b"), "--name is one folder"),
    ],
)
def test_what_makes_no_sense_is_an_error(arguments, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        comparison.parse(Options, "tiny", ["--output", str(tmp_path), *arguments])


@pytest.mark.parametrize(
    "wrong", [("--batch-size", "49"), ("--schedule", "wsd", "--warmup", "0.9")]
)
def test_what_is_refused_leaves_no_folder(wrong, tmp_path):
    assert run(tmp_path, *wrong) == 2
    assert not (tmp_path / "tiny").exists()


def test_a_batch_that_cannot_be_is_an_error():
    for changed, message in (
        ({"batch_size": 49}, "more than the 48"),
        ({"devices": 3}, "multiple"),
    ):
        options = Options(**{"epochs": 1, "batch_size": 8} | changed)
        with pytest.raises(ConfigError, match=message):
            Trainer(options, Task(options))
