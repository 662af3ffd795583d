"""What the program says of the time that is left, and that it compiles a method once."""

import pytest
from jax import monitoring

from arsam_jax.methods import METHODS as FACTS
from examples.classification import methods
from examples.classification.__main__ import main
from examples.classification.config import Config
from examples.classification.estimate import Estimate, duration

pytestmark = pytest.mark.usefixtures("standard_promotion")


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def train(left, clock, steps, *, seconds, total, first=0.0):
    """A run that reports each ten steps; the first ten take ``first`` seconds more."""
    left.start_run()
    for step in range(0, steps + 1, 10):
        clock.now += (seconds * 10 + first * (step == 10)) if step else 0
        left.reach(step)
    if steps == total:
        left.end_run()


def test_what_is_left_is_known_from_the_steps_and_gradients_so_far():
    clock = Clock()
    runs = [("sgd", 1), ("sam", 1), ("sgd", 1), ("sam", 1)]
    left = Estimate(Config(), 100, runs, clock=clock)
    assert left.gradients == left.gradients_left() == 600
    assert left.seconds_left() is None
    left.compiled(("sgd", 1), 3)
    train(left, clock, 10, seconds=1, total=100, first=50)
    assert left.seconds_left() is None
    train(left, clock, 30, seconds=1, total=100, first=50)
    assert left.gradients_left() == 570
    # 70 steps, 100 like them, twice 100 of two gradients, and a program of two gradients
    assert left.seconds_left() == pytest.approx(70 + 100 + 400 + 6)
    train(left, clock, 100, seconds=1, total=100)
    left.compiled(("sam", 1), 9)
    assert left.seconds_left() == pytest.approx(100 + 400)
    train(left, clock, 100, seconds=4, total=100)
    assert left.seconds_left() == pytest.approx(100 + 400)
    train(left, clock, 100, seconds=1, total=100)
    train(left, clock, 50, seconds=4, total=100)
    assert left.seconds_left() == pytest.approx(200)


def test_a_resumed_run_counts_from_its_checkpoint():
    clock = Clock()
    left = Estimate(Config(), 100, [("sgd", 1)], clock=clock)
    left.start_run()
    for now, step in ((0, 60), (5, 70), (15, 80)):
        clock.now = now
        left.reach(step)
    assert left.seconds_left() == pytest.approx(20)


def test_a_run_without_a_second_report_is_judged_as_a_whole():
    clock = Clock()
    left = Estimate(Config(), 10, [("sgd", 1), ("sgd", 1)], clock=clock)
    train(left, clock, 10, seconds=2, total=10)
    assert left.seconds_left() == pytest.approx(20)


def test_seeds_at_once_pay_every_second_gradient():
    def cost(method, seeds):
        return Estimate(Config(share=1 / 8), 1, [(method, seeds)]).gradients

    assert cost("budgeted_sam", 1) == 1 + 1 / 8
    assert cost("budgeted_sam", 3) == 3 * 2


def test_every_method_has_a_price():
    for method in methods.METHODS:
        price = methods.gradients(method)
        assert 1 <= price <= 4
        assert 0 < methods.share_sampled(method, Config()) <= 1
        if method in FACTS and FACTS[method].gradients:
            assert price == FACTS[method].gradients


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(8.4, "8 s"), (119, "2 min"), (5400, "90 min"), (8000, "2 h 13 min"), (90_000, "25 h")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_each_method_is_compiled_once_and_the_time_is_told(data_dir, tmp_path, capsys):
    lowered = []

    def listen(event, seconds, **about):
        if event.endswith("jaxpr_to_mlir_module_duration"):
            lowered.append(about.get("fun_name"))

    monitoring.register_event_duration_secs_listener(listen)
    arguments = ["--method", "sgd", "sam", "--seeds", "0", "1", "2", "--epochs", "3"]
    arguments += ["--width", "2", "--batch-size", "100", "--data-dir", str(data_dir)]
    try:
        assert main([*arguments, "--output", str(tmp_path)]) == 0
    finally:
        monitoring.unregister_event_duration_listener(listen)
    steps = [name for name in lowered if name and "train_step" in name]
    assert len(steps) == 2, lowered
    assert "train_step" in steps[0]
    output = " ".join(capsys.readouterr().out.split())
    assert "To train: 6 runs of 30 steps, about 270 gradients in all" in output
    assert "left, judging by the first steps of sgd sgd, seed 0: " in output
    told = [line.split("; about ")[1] for line in output.split("SAM, ")[1:6]]
    assert all(" left" in text for text in told)
