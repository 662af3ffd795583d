"""The time that is left, judging by what has been compiled and trained so far."""

import pytest

from arsam_jax.methods import METHODS as FACTS
from examples.common import methods
from examples.common.comparison import Options
from examples.common.estimate import Estimate, duration


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
    runs, costs = ["base", "sam", "base", "sam"], {"base": 1, "sam": 2}
    left = Estimate(100, runs, costs, costs, clock=clock)
    assert left.gradients == left.gradients_left() == 600
    assert left.seconds_left() is None
    left.compiled("base", 3)
    train(left, clock, 10, seconds=1, total=100, first=50)
    assert left.seconds_left() is None
    train(left, clock, 30, seconds=1, total=100, first=50)
    assert left.gradients_left() == 570
    # 70 steps, 100 like them, twice 100 of two gradients, and a program of two gradients
    assert left.seconds_left() == pytest.approx(70 + 100 + 400 + 6)
    train(left, clock, 100, seconds=1, total=100)
    left.compiled("sam", 9)
    assert left.seconds_left() == pytest.approx(100 + 400)
    train(left, clock, 100, seconds=4, total=100)
    assert left.seconds_left() == pytest.approx(100 + 400)
    train(left, clock, 100, seconds=1, total=100)
    train(left, clock, 50, seconds=4, total=100)
    assert left.seconds_left() == pytest.approx(200)


def test_a_resumed_run_counts_from_its_checkpoint():
    clock = Clock()
    left = Estimate(100, ["base"], {"base": 1}, {"base": 1}, clock=clock)
    left.start_run()
    for now, step in ((0, 60), (5, 70), (15, 80)):
        clock.now = now
        left.reach(step)
    assert left.seconds_left() == pytest.approx(20)


def test_a_run_without_a_second_report_is_judged_as_a_whole():
    clock = Clock()
    left = Estimate(10, ["base", "base"], {"base": 1}, {"base": 1}, clock=clock)
    train(left, clock, 10, seconds=2, total=10)
    assert left.seconds_left() == pytest.approx(20)


def test_every_method_has_a_price():
    options = Options(share=1 / 8)
    assert methods.gradients("base") == methods.step_cost("base", options) == 1
    for method in methods.METHODS:
        price = methods.gradients(method)
        assert 1 <= methods.step_cost(method, options) <= price <= 4
        if method in FACTS and FACTS[method].gradients:
            assert price == FACTS[method].gradients
    assert methods.step_cost("budgeted_sam", options) == 1 + 1 / 8
    assert methods.step_cost("gam", options) == 4


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(8.4, "8 s"), (119, "2 min"), (5400, "90 min"), (8000, "2 h 13 min"), (90_000, "25 h")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text
