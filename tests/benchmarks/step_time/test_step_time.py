"""The benchmark of a step: its steps do what they are called, each comparison has a row."""

import csv
import dataclasses
import math
import types

import jax
import pytest

import arsam_jax
from benchmarks.harness.networks import MLP, Network
from benchmarks.step_time import __main__ as step_time
from benchmarks.step_time import growth
from benchmarks.step_time.__main__ import (
    COMPARISONS,
    COMPILED,
    MEMORY,
    SAMS,
    SCANNED,
    Options,
    Step,
)

STEPS = 8
TINY = Network(MLP((4,)), (2, 2, 1))
SAMPLED = {  # of these steps
    "sgd": None,
    "sgd again": None,
    "sgd and ‖g‖": None,
    "optax.contrib.sam": None,
    "sam": STEPS,
    "sam by policy": STEPS,
    "budgeted_sam": 1,
    "arsam sampled step": STEPS,
    "arsam reuse step": 0,
    "arsam plain step": 0,
    "arsam without reuse": STEPS,
    "arsam reuse in bfloat16": STEPS,
}


@pytest.fixture(scope="module")
def steps():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        steps, _ = step_time.make_steps(TINY, 2, STEPS)
        assert set(steps) == set(SAMPLED)
        yield steps


@pytest.mark.parametrize("name", SAMPLED)
def test_a_scan_samples_the_steps_that_the_name_says(steps, name):
    sampled, step = SAMPLED[name], steps[name]
    if sampled is None:
        step.scan()
        return
    before = arsam_jax.get_state(step.state()[2])
    assert (int(before.age) == 0) == (name == "arsam reuse step")
    step.scan()
    after = arsam_jax.get_state(step.state()[2])
    assert int(after.step) == STEPS
    assert int(after.metrics.num_sampled) == sampled


@pytest.mark.parametrize(("name", "has_cond"), [("sam", False), ("sam by policy", True)])
def test_which_step_has_a_cond(steps, name, has_cond):
    assert ("conditional(" in steps[name].lower().compile().as_text()) == has_cond


def test_a_row_for_each_comparison(tmp_path, monkeypatch):
    sizes = ("argument", "output", "alias", "temp")
    memory = types.SimpleNamespace(**{f"{name}_size_in_bytes": 8 for name in sizes})
    executable = types.SimpleNamespace(memory_analysis=lambda: memory)
    lowered = types.SimpleNamespace(compile=lambda: executable)
    step = Step(lambda: None, lambda: None, lambda: lowered, lambda: ())
    monkeypatch.setattr(step_time, "make_steps", lambda *_: (dict.fromkeys(SAMPLED, step), 4))
    monkeypatch.setattr(jax, "clear_caches", lambda: None)
    path = tmp_path / "rows.csv"
    step_time.main(Options(models=("mlp",), pairs=2, scanned_pairs=2, cores=0, csv=path))
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["measure"], row["step"], row["unit"]) for row in rows] == [
        *(("time", *names[:2]) for names in COMPARISONS),
        *(("scanned", *names[:2]) for names in SCANNED),
        *((kind, COMPILED[0], sam) for sam in SAMS for kind in ("tracing", "compile")),
        *(("memory", name, sam) for sam in SAMS for name, _ in MEMORY if name != sam),
    ]
    with Options().csv.open() as file:
        assert set(rows[0]) == set(csv.DictReader(file).fieldnames or ())


def test_growth_has_a_row_for_each_comparison_and_a_figure(tmp_path):
    options = growth.Options(layers=(1,), parameters=(1e4,), pairs=2, cores=0, folder=tmp_path)
    options = dataclasses.replace(options, batch_size=2, compilations=1)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        growth.main(options)
    with (tmp_path / "growth.csv").open() as file:
        rows = list(csv.DictReader(file))
    sizes = [("arrays", "7"), ("parameters", "9706")]
    expected = [(*size, "time", *pair) for size in sizes for pair in growth.COMPARISONS]
    expected += [
        (*size, kind, *growth.COMPILED) for size in sizes[:1] for kind in ("tracing", "compile")
    ]
    names = ("growth", "size", "measure", "step", "unit")
    assert sorted(tuple(row[n] for n in names) for row in rows) == sorted(expected)
    assert (tmp_path / "growth.png").exists()


def test_parameters_of_the_growing_network_are_as_many_as_asked_for():
    for wanted in growth.Options().parameters:
        module, image = growth.wide(wanted)
        images = jax.ShapeDtypeStruct((1, *image), "float32")
        with jax.numpy_rank_promotion("allow"):
            shapes = jax.eval_shape(module.init, jax.random.key(0), images)
        count = sum(math.prod(x.shape) for x in jax.tree.leaves(shapes))
        assert abs(count / wanted - 1) < 0.05


def test_a_scan_is_whole_periods():
    with pytest.raises(SystemExit, match="multiple of 8"):
        Options(scanned_steps=20)
