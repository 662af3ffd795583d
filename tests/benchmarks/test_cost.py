"""What does it cost: kinds of step, bytes that are sent, and the time limit on an accelerator."""

import jax.numpy as jnp
import optax
import pytest

from benchmarks.cost import accelerator, communication, report, steps
from benchmarks.cost.accelerator import Clock, OutOfTime


def test_an_accelerator_is_asked_for(tmp_path):
    with pytest.raises(SystemExit, match="finds no accelerator"):
        accelerator.run(tmp_path / "accelerator.csv", 8, tmp_path, accelerator.FULL)


@pytest.mark.parametrize("name", steps.STEPS)
def test_kinds_of_step_take_their_number_of_gradients(name):
    kind = steps.STEPS[name]
    evaluated = []

    def grad_fn(params, *_):
        evaluated.append(1)
        return params

    params = {"w": jnp.ones(3)}
    tx = steps.OPTIMIZERS[kind.optimizer](optax.sgd(0.1))
    state = tx.init(params)
    sampled = steps.STEPS.get(f"{kind.optimizer}, sampled step")
    if sampled is not None:  # so that there is something to reuse
        _, state = tx.update(params, sampled.prepare(state), params, grad_fn=grad_fn)
        evaluated.clear()
    state = kind.prepare(state)
    updates, _ = tx.update(params, state, params, grad_fn=grad_fn)
    is_plain = kind.optimizer == "base" or "plain" in name
    assert bool(evaluated) == (not is_plain and "reuse" not in name)
    assert (float(updates["w"][0]) == pytest.approx(-0.1, rel=1e-6)) == is_plain


def test_ratios_are_medians_over_rounds():
    times = {"base": [1.0, 2.0, 4.0], "sam": [2.0, 6.0, 8.0]}
    found = steps._measured(times, "sam")
    assert found["times_base"] == 2.0  # of 2, 3, 2, not 6 / 2
    assert found["milliseconds"] == 6000
    assert found["times_sam"] != found["times_sam"]  # NaN: optax.contrib.sam was not measured


def test_bytes_are_read_from_a_program_for_each_branch():
    hlo = """%branch (x: f32[2,3]) -> f32[2,3] {
  ROOT %r = f32[2,3]{1,0} all-reduce(%x), replica_groups={{0,1}}
}

ENTRY %main {
  %a = (f32[4]{0}, bf16[]) all-reduce-start(%p, %q), channel_id=1
  %b = f32[4]{0} add(%a, %all-reduce.7)
}"""
    assert communication.all_reduces(hlo.split("\nENTRY ")[1]) == (1, 4 * 4 + 2)
    assert communication.all_reduces(hlo) == (2, 4 * 4 + 2 + 6 * 4)


def test_the_clock_stops_before_the_time_is_over(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(accelerator.time, "monotonic", lambda: now[0])
    clock = Clock(minutes=1)
    for at in (0.0, 20.0, 40.0):
        now[0] = at
        clock.check("a task")
    now[0] = 41.0  # the longest task took 20 seconds, and 19 are left
    with pytest.raises(OutOfTime, match="the last task"):
        clock.check("the last task")


def test_an_accelerator_run_continues_where_it_stopped(tmp_path, monkeypatch):
    measured, trained = [], []

    def measure(name, *arguments):
        measured.append(name)
        return [{"network": name, "step": "base", "commit": "0ddba11"}]

    def train_once(method, seed, *arguments):
        if len(trained) == 5:
            raise OutOfTime("the rest")
        trained.append((method, seed))
        return {"method": method, "seed": seed, "commit": "0ddba11"}

    monkeypatch.setattr(accelerator.steps, "measure", measure)
    monkeypatch.setattr(accelerator, "train_once", train_once)
    plan = accelerator.SMOKE._replace(max_seeds=2)
    csv = tmp_path / "accelerator.csv"
    accelerator.run(csv, 8, tmp_path, plan)
    assert measured == ["mlp", "cnn"]
    assert trained == [*((method, 0) for method in accelerator.TRAINED), ("base", 1)]
    trained.clear()
    accelerator.run(csv, 8, tmp_path, plan)
    assert measured == ["mlp", "cnn"]
    assert trained == [(method, 1) for method in accelerator.TRAINED if method != "base"]
    assert report.training_file(csv).exists()
