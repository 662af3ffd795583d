"""The search for the law of the radius, on fake runs whose best radius is known."""

import functools
import math
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.frontier.__main__ import Options as FrontierOptions
from benchmarks.harness import search, tuning
from benchmarks.harness.methods import METHODS
from benchmarks.harness.workloads import WORKLOADS, Setting
from benchmarks.radius_law import __main__ as program
from benchmarks.radius_law import fits
from benchmarks.radius_law import study as radius_law
from benchmarks.radius_law.__main__ import Options
from benchmarks.radius_law.fits import RULES, Curve
from benchmarks.radius_law.study import SWEEPS, VARIANTS
from tests.benchmarks.conftest import row_of

SAM = Setting(rho=0.2, learning_rate=0.1, weight_decay=1e-3)
EXPONENT = 0.8


def fake_run(run):
    """SGD 70, SAM 80; log-quadratic around ρ s^(−0.8), in which seeds differ a little."""
    if run.method == "sgd":
        return row_of(run, 70.0)
    away = math.log(run.rho / SAM.rho) + EXPONENT * math.log(run.share) - 0.1 * (run.seed % 2)
    return row_of(run, 80 + run.seed % 3 - 9 * away**2)


def options(tmp_path: Path) -> Options:
    return Options(csv=tmp_path / "radius_law.csv", workers=0)


@pytest.mark.parametrize("variant", SWEEPS["radius"])
def test_grid_brackets_the_rules(variant):
    for share in (*VARIANTS[variant].shares, 1 / 16):
        tried = radius_law.multipliers(variant, share)
        if share == 1:
            assert tried[0] < 0.7
            assert tried[-1] > 2.5
        elif share:
            assert tried[0] < share**-0.5 / 1.14
            assert tried[-1] > 1.14 / share
            np.testing.assert_allclose(np.diff(np.log(tried)), math.log(radius_law.RATIO))


def forbidden(run):
    raise AssertionError(f"{run} was done again")


def test_seeds_serve_nothing_else():
    for variant in VARIANTS:
        for workload in WORKLOADS:
            found = set(radius_law.seeds(variant, workload))
            assert not found & {*tuning.TUNING_SEEDS, *FrontierOptions().seeds}
            assert found <= set(radius_law.seeds("base", workload))


def test_fit_of_a_known_law():
    law = {share: 1.3 * share**-0.6 for share in (1 / 2, 1 / 4, 1 / 8, 1 / 20)}
    assert fits.exponent(law, 1.3) == pytest.approx((0.6, 0))
    assert fits.exponent(law, None) == pytest.approx((0.6, 0))
    assert fits.exponent(law, 1).mean > 0.65


def test_error_of_the_fit_is_that_of_repeated_experiments():
    rng = np.random.default_rng(0)
    shares = [1 / 2, 1 / 4, 1 / 8, 1 / 20]
    for origin in (1, None):
        found = [
            fits.exponent({s: s**-0.6 * math.exp(0.2 * rng.normal()) for s in shares}, origin)
            for _ in range(2000)
        ]
        variance = np.mean([fit.error**2 for fit in found])
        assert math.sqrt(variance) == pytest.approx(np.std([fit.mean for fit in found]), rel=0.1)


def test_a_collapse_does_not_move_the_best():
    tried = radius_law.RATIO ** np.arange(5)
    accuracy = 80 - 9 * (np.log(tried / 2.2)) ** 2
    assert fits.best(Curve(tried, accuracy[None]), 70) == pytest.approx(2.2, rel=0.15)
    for depth in (10, 60):
        accuracy[-1] = depth
        found = fits.best(Curve(tried, accuracy[None]), 70)
        assert found == pytest.approx(2.2, rel=0.15)
    rising = Curve(tried, tried[None])
    assert fits.best(rising, 0) == pytest.approx(tried[-1])


def test_the_exponent_is_found_again(tmp_path):
    sam = dict.fromkeys(("m1d_cnn_noisy", "fmnist_cnn_clean"), SAM)
    runs = [
        run
        for variant in VARIANTS
        for workload in sam
        for run in radius_law.runs_of(variant, workload, SAM)
    ]
    done = {run: fake_run(run) for run in runs}
    curves = radius_law.curves_of("base", "m1d_cnn_noisy", SAM, done)
    study = fits.Findings(curves)
    assert study.exponents()["free"].mean == pytest.approx(EXPONENT, abs=0.05)
    rules = [RULES[name] for name in ("s^0", "s^(−1/2)", "s^(−2/3)")]
    regrets = [study.regret(1 / 8, rule, False).mean for rule in (*rules, lambda s: s**-EXPONENT)]
    assert regrets[0] > regrets[1] > regrets[2] > regrets[3] > -5
    assert regrets[2] == pytest.approx(
        100 * 9 * ((EXPONENT - 2 / 3) * math.log(8)) ** 2 / 11, abs=4
    )
    written = program.write(sam, done, tmp_path / "radius_law.csv")
    assert [p.name for p in written] == ["radius_law.png", "radius_law.md"]
    text = written[1].read_text()
    assert "| 0.4 |" in text
    assert "batch 256" in text


def one_best(multiplier, run):
    away = math.log(run.rho / SAM.rho / multiplier)
    return row_of(run, 70.0 if run.method == "sgd" else 80 - away**2 + 0.01 * run.seed)


@pytest.mark.parametrize("best_of_sam", [0.2, 1.0, 6.0])
def test_a_best_beyond_the_grid_is_gone_after(tmp_path, monkeypatch, best_of_sam):
    """One best radius at all shares: exponent 0, which no grid that follows s^(−1/2) has."""
    done = {}

    def run_all(runs, study, options):
        del options
        done.update({run: study.execute(run) for run in runs if run not in done})
        return done

    monkeypatch.setattr(search, "run_all", run_all)
    sam = {"m1d_cnn_noisy": SAM}
    study = radius_law.STUDY._replace(execute=functools.partial(one_best, best_of_sam))
    radius_law.search_all(["lr/3"], sam, study, options(tmp_path))
    findings = fits.Findings(radius_law.curves_of("lr/3", "m1d_cnn_noisy", SAM, done))
    for top in findings.bests.values():
        assert math.exp(top.mean) == pytest.approx(best_of_sam, rel=0.1)
    assert findings.exponents()["from the best ρ"].mean == pytest.approx(0, abs=0.05)
    radius_law.search_all(["lr/3"], sam, study._replace(execute=forbidden), options(tmp_path))


def test_the_best_is_never_far_from_the_best_point():
    tried = radius_law.RATIO ** np.arange(5)
    accuracy = np.array([[77.0, 80.0, 70.0, 70.0, 70.0]])
    found = fits.best(Curve(tried, accuracy), 50)
    assert abs(math.log(found / tried[1])) <= math.log(radius_law.RATIO) / 2 + 1e-9


def test_what_all_shares_take_from_the_best_of_sam_is_in_the_error():
    tried = radius_law.RATIO ** np.arange(-2.0, 9)

    def curve(best_of_seeds):
        rows = [80 - np.log(tried / best) ** 2 for best in best_of_seeds]
        return Curve(tried, np.array(rows))

    curves = {s: curve([s**-0.6] * 4) for s in (1 / 2, 1 / 4, 1 / 8, 1 / 20)}
    curves[0] = Curve(np.array([1.0]), np.full((4, 1), 70.0))
    steady = fits.Findings(curves | {1: curve([1.0] * 4)}).exponents()
    noisy = fits.Findings(curves | {1: curve([0.5, 0.8, 1.25, 2.0])}).exponents()
    assert steady["from the best ρ"].error < 0.02
    assert noisy["from the best ρ"].error > 0.08
    assert noisy["from ρ"] == pytest.approx(steady["from ρ"])


def test_an_interrupted_run_is_resumed_and_reported(tmp_path):
    runs = radius_law.runs_of("lr/3", "m1d_cnn_noisy", SAM)
    part = runs[: len(runs) // 3]
    fake = radius_law.STUDY._replace(execute=fake_run)
    done = search.run_all(part, fake, options(tmp_path))
    assert set(done) == set(part)
    csv = options(tmp_path).csv
    assert program.write({"m1d_cnn_noisy": SAM}, done, csv) == []
    assert set(search.run_all(runs, fake, options(tmp_path))) == set(runs)
    done = search.run_all(runs, fake._replace(execute=forbidden), options(tmp_path))
    assert program.write({"m1d_cnn_noisy": SAM}, done, csv)


def test_variants_train_at_the_radius_on_validation_examples(monkeypatch):
    calls = []
    monkeypatch.setattr(tuning, "train_row", lambda *args, **kwargs: calls.append((args, kwargs)))
    for variant, share in (
        ("base", 1),
        ("base", 1 / 4),
        ("batch 256", 1 / 4),
        ("kappa 0.4", 1 / 4),
    ):
        radius_law.execute(radius_law.make_run(variant, "m1d_mlp_clean", share, 2.0, 200, SAM))
    workload = WORKLOADS["m1d_mlp_clean"]
    assert all(kwargs == {"held_out": "validation"} for _, kwargs in calls)
    assert all(run.rho == 2 * SAM.rho for (run, *_), _ in calls)
    assert [args[1].batch_size for args, _ in calls] == [64, 64, 256, 64]
    assert all(args[1]._replace(batch_size=64) == workload for args, _ in calls)
    sam, base, batch, kappa = (args[2] for args, _ in calls)
    assert sam is METHODS["sam"].make
    assert base is batch is radius_law.at_radius(0.1)  # one program for both, if of one batch size
    assert kappa is radius_law.at_radius(0.4)


@pytest.mark.parametrize("bound", [0.1, 0.4])
def test_the_gradient_is_taken_at_the_radius_and_reuse_is_bounded(bound):
    link = radius_law.at_radius(bound)(0.3, 1 / 4, 100, 0)
    params = jnp.zeros(2)
    grad = jnp.array([3.0, 4.0])

    def grad_fn(point):
        return grad + 20 * point

    state = link.init(params)
    norms = []
    for _ in range(4):
        updates, state = link.update(grad, state, params, grad_fn=grad_fn)
        norms.append(float(jnp.linalg.norm(updates - grad)))
    assert norms[1] == pytest.approx(20 * 0.3, rel=1e-5)
    assert norms[2] == norms[3] == pytest.approx(5 * bound, rel=1e-5)


def test_options_are_checked():
    for changes in ({"variants": ("x",)}, {"workloads": ("x",)}, {"workers": -1}):
        with pytest.raises(SystemExit):
            Options(**changes)
