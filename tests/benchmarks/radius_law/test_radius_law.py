"""The search for the law of the radius, on fake runs whose best radius is known."""

import functools
import math
from pathlib import Path

import numpy as np
import pytest

from benchmarks import frontier, radius_law, radius_law_report
from benchmarks.radius_law import SWEEPS, VARIANTS, Options
from benchmarks.radius_law_report import RULES, Curve
from benchmarks.harness.workloads import WORKLOADS, Setting
from tests.benchmarks.test_frontier import forbidden_run, row_of, tiny  # noqa: F401

SAM = Setting(rho=0.2, learning_rate=0.1, weight_decay=1e-3)
EXPONENT = 0.8


def fake_run(run):
    """SGD 70, SAM 80; log-quadratic around ρ s^(−0.8), in which seeds differ a little."""
    if run.method == "sgd":
        return row_of(run, 70.0)
    away = math.log(run.rho / SAM.rho) + EXPONENT * math.log(run.share) - 0.1 * (run.seed % 2)
    return row_of(run, 80 + run.seed % 3 - 9 * away**2)


def options(tmp_path: Path) -> frontier.Options:
    return frontier.Options(csv=tmp_path / "radius_law.csv")


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


def test_seeds_serve_nothing_else():
    for variant in VARIANTS:
        for workload in WORKLOADS:
            found = set(radius_law.seeds(variant, workload))
            assert not found & {*frontier.TUNING_SEEDS, *frontier.Options().seeds}
            assert found <= set(radius_law.seeds("base", workload))


def test_fit_of_a_known_law():
    law = {share: 1.3 * share**-0.6 for share in (1 / 2, 1 / 4, 1 / 8, 1 / 20)}
    assert radius_law_report.exponent(law, 1.3) == pytest.approx((0.6, 0))
    assert radius_law_report.exponent(law, None) == pytest.approx((0.6, 0))
    assert radius_law_report.exponent(law, 1).mean > 0.65


def test_error_of_the_fit_is_that_of_repeated_experiments():
    rng = np.random.default_rng(0)
    shares = [1 / 2, 1 / 4, 1 / 8, 1 / 20]
    for origin in (1, None):
        fits = [
            radius_law_report.exponent(
                {s: s**-0.6 * math.exp(0.2 * rng.normal()) for s in shares}, origin
            )
            for _ in range(2000)
        ]
        variance = np.mean([fit.error**2 for fit in fits])
        assert math.sqrt(variance) == pytest.approx(np.std([fit.mean for fit in fits]), rel=0.1)


def test_a_collapse_does_not_move_the_best():
    tried = radius_law.RATIO ** np.arange(5)
    accuracy = 80 - 9 * (np.log(tried / 2.2)) ** 2
    assert radius_law_report.best(Curve(tried, accuracy[None]), 70) == pytest.approx(2.2, rel=0.15)
    for depth in (10, 60):
        accuracy[-1] = depth
        found = radius_law_report.best(Curve(tried, accuracy[None]), 70)
        assert found == pytest.approx(2.2, rel=0.15)
    rising = Curve(tried, tried[None])
    assert radius_law_report.best(rising, 0) == pytest.approx(tried[-1])


def test_the_exponent_is_found_again(tmp_path):
    sam = dict.fromkeys(WORKLOADS, SAM)
    runs = [
        run
        for variant in VARIANTS
        for workload in sam
        for run in radius_law.runs_of(variant, workload, SAM)
    ]
    for run in runs:
        assert radius_law.Run(*run) == run
    path = options(tmp_path).csv
    lines = [fake_run(run) for run in runs]
    _write(path, lines)
    done = frontier.read_rows(path)
    assert set(done) == set(runs)
    curves = radius_law.curves_of("base", "m1d_cnn_noisy", SAM, done)
    study = radius_law_report.Study(curves)
    assert study.exponents()["free"].mean == pytest.approx(EXPONENT, abs=0.05)
    rules = [RULES[name] for name in ("s^0", "s^(−1/2)", "s^(−2/3)")]
    regrets = [study.regret(1 / 8, rule, False).mean for rule in (*rules, lambda s: s**-EXPONENT)]
    assert regrets[0] > regrets[1] > regrets[2] > regrets[3] > -5
    assert regrets[2] == pytest.approx(
        100 * 9 * ((EXPONENT - 2 / 3) * math.log(8)) ** 2 / 11, abs=4
    )
    written = radius_law.report(sam, path)
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

    def run_all(runs, options, run_one):
        del options
        done.update({run: run_one(run) for run in runs if run not in done})
        return done

    monkeypatch.setattr(frontier, "run_all", run_all)
    sam = {"m1d_cnn_noisy": SAM}
    run_one = functools.partial(one_best, best_of_sam)
    radius_law.search(["lr/3"], sam, options(tmp_path), run_one)
    study = radius_law_report.Study(radius_law.curves_of("lr/3", "m1d_cnn_noisy", SAM, done))
    for top in study.bests.values():
        assert math.exp(top.mean) == pytest.approx(best_of_sam, rel=0.1)
    assert study.exponents()["from the best ρ"].mean == pytest.approx(0, abs=0.05)
    radius_law.search(["lr/3"], sam, options(tmp_path), forbidden_run)


def test_the_best_is_never_far_from_the_best_point():
    tried = radius_law.RATIO ** np.arange(5)
    accuracy = np.array([[77.0, 80.0, 70.0, 70.0, 70.0]])
    found = radius_law_report.best(Curve(tried, accuracy), 50)
    assert abs(math.log(found / tried[1])) <= math.log(radius_law.RATIO) / 2 + 1e-9


def test_what_all_shares_take_from_the_best_of_sam_is_in_the_error():
    tried = radius_law.RATIO ** np.arange(-2.0, 9)

    def curve(best_of_seeds):
        rows = [80 - np.log(tried / best) ** 2 for best in best_of_seeds]
        return Curve(tried, np.array(rows))

    curves = {s: curve([s**-0.6] * 4) for s in (1 / 2, 1 / 4, 1 / 8, 1 / 20)}
    curves[0] = Curve(np.array([1.0]), np.full((4, 1), 70.0))
    steady = radius_law_report.Study(curves | {1: curve([1.0] * 4)}).exponents()
    noisy = radius_law_report.Study(curves | {1: curve([0.5, 0.8, 1.25, 2.0])}).exponents()
    assert steady["from the best ρ"].error < 0.02
    assert noisy["from the best ρ"].error > 0.08
    assert noisy["from ρ"] == pytest.approx(steady["from ρ"])


def _write(path, rows):
    """`frontier.append_row` syncs each line to disk: too slow for so many."""
    frontier.append_row(path, rows[0])
    with path.open("a") as file:
        for row in rows[1:]:
            values = (row[column] for column in frontier.COLUMNS)
            file.write(
                ",".join(f'"{v}"' if isinstance(v, str) else f"{v:.7g}" for v in values) + "\n"
            )


def test_an_interrupted_run_is_resumed_and_reported(tmp_path):
    runs = radius_law.runs_of("lr/3", "m1d_cnn_noisy", SAM)
    part = runs[: len(runs) // 3]
    assert set(frontier.run_all(part, options(tmp_path), fake_run)) == set(part)
    assert radius_law.report({"m1d_cnn_noisy": SAM}, options(tmp_path).csv) == []
    done = frontier.run_all(runs, options(tmp_path), fake_run)
    assert set(done) == set(runs)
    frontier.run_all(runs, options(tmp_path), forbidden_run)
    assert radius_law.report({"m1d_cnn_noisy": SAM}, options(tmp_path).csv)


def test_variants_train_at_the_radius_on_validation_examples(tiny, monkeypatch):  # noqa: F811
    _, reads = tiny
    for name in ("batch 256", "kappa 0.4"):
        monkeypatch.setitem(VARIANTS, name, VARIANTS[name]._replace(batch_size=20))
    setting = SAM._replace(learning_rate=1e-3)

    def train(variant, share):
        return radius_law.execute(radius_law.make_run(variant, "tiny", share, 2.0, 200, setting))

    base, batch, kappa = (train(name, 1 / 4) for name in ("base", "batch 256", "kappa 0.4"))
    assert not reads
    assert base["steps"] == 3
    assert batch["steps"] == kappa["steps"] == 10
    assert batch["train_loss"] != kappa["train_loss"]
    sam = frontier.execute(frontier.Run("tune", "tiny", "sam", 1, 200, 0.4, 1e-3, 1e-3))
    assert sam["train_loss"] == train("base", 1)["train_loss"]


def test_options_are_checked():
    for changes in ({"variants": ("x",)}, {"workloads": ("x",)}, {"workers": 0}):
        with pytest.raises(SystemExit):
            Options(**changes)
