"""What the scaling benchmark reads off a program, and its model on paper."""

import math

import jax
import pytest

from benchmarks.scaling import __main__ as scaling
from benchmarks.scaling import model


def test_bytes_are_read_off_a_program_apart_for_its_branches():
    hlo = """%branch (x: f32[2,3]) -> f32[2,3] {
  ROOT %r = f32[2,3]{1,0} all-reduce(%x), replica_groups={{0,1}}
}

ENTRY %main {
  %a = (f32[4]{0}, bf16[]) all-reduce-start(%p, %q), channel_id=1
  %b = f32[4]{0} add(%a, %all-reduce.7)
}"""
    assert scaling.all_reduced_bytes(hlo) == (4 * 4 + 2, 4 * 4 + 2 + 6 * 4)


def test_measured_bytes_are_one_or_two_gradients(tmp_path):
    options = scaling.Options(width=16, batch_size=2, repetitions=1, csv=tmp_path / "x.csv")
    with jax.numpy_rank_promotion("allow"):
        rows = {row["method"]: row for row in scaling.measure(2, options)}
    expected = {
        "SGD": (1, 1),
        "SAM": (2, 2),  # it has no plain step
        "SAM of each device": (1, 1),
        "budgeted_sam, 1/8": (1, 2),
    }
    assert set(rows) == set(model.METHODS)
    for name, (plain, sampled) in expected.items():
        size = rows[name]["parameter_bytes"]
        assert size == 3 * 16 * 16 * 4
        assert plain * size <= rows[name]["bytes_of_a_plain_step"] < (plain + 0.1) * size
        assert sampled * size <= rows[name]["bytes_of_a_sampled_step"] < (sampled + 0.1) * size


def test_model():
    training = model.Training(parameters=1e6, flop=1e9, batch=64)
    system = model.System(peak=1e12, bandwidth=1e9, latency=1e-6, utilisation=0.5)
    compute, reduce = model.gradient_seconds(training, system, 4)
    assert compute == pytest.approx(1e9 * 16 / 0.5e12)
    assert reduce == pytest.approx(1.5 * 4e6 / 1e9 + 4e-6)
    assert model.gradient_seconds(training, system, 1)[1] == 0
    one = model.step_seconds("SGD", training, system, 4, overlap=0)
    assert one == pytest.approx(compute + reduce)
    assert model.step_seconds("SAM", training, system, 4, 0) == pytest.approx(2 * one)
    own = model.step_seconds("SAM of each device", training, system, 4, 0)
    assert own == pytest.approx(one + compute)
    budgeted = model.step_seconds("budgeted_sam, 1/8", training, system, 4, 0)
    assert budgeted == pytest.approx(1.125 * one)
    assert model.step_seconds("SGD", training, system, 4, overlap=math.inf) == compute
    first = model.crossover(training, system)
    assert first is not None
    later, before = (model.gradient_seconds(training, system, n) for n in (first, first // 2))
    assert later[1] > later[0]
    assert before[1] <= before[0]


def test_figure_and_table(tmp_path):
    model.write_model(tmp_path / "scaling.csv")
    assert (tmp_path / "scaling.png").exists()
    lines = (tmp_path / "scaling.md").read_text().splitlines()
    assert len(lines) == 4 + 2 * len(model.SYSTEMS) * len(model.TRAININGS)
