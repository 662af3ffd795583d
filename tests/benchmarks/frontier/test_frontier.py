"""The protocol of the frontier benchmark, on fake runs and a workload of three batches."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import arsam_jax
from benchmarks.frontier import report as frontier_report
from benchmarks.frontier import study as frontier
from benchmarks.frontier.study import TUNING_SEEDS, Options, Run
from benchmarks.harness.methods import ABLATIONS, METHODS
from benchmarks.harness.workloads import MLP, WORKLOADS, Setting, Source, Workload, make_data

CENTER = Setting(rho=0.1, learning_rate=0.1, weight_decay=1e-3)


def examples(first, count):
    """Every example is known by its first number."""
    x = np.random.default_rng(first).normal(size=(count, 4)).astype(np.float32)
    x[:, 0] = np.arange(first, first + count)
    return x, np.arange(count, dtype=np.int32) % 10


@pytest.fixture
def tiny(monkeypatch):
    """A workload whose test set counts how often it is read."""
    reads = []

    def test_set():
        reads.append(1)
        return examples(1000, 50)

    workload = Workload(
        source=Source(lambda: examples(0, 300), test_set),
        network=MLP((4,)),
        noise=0.4,
        num_train=200,
        num_validation=80,
        epochs=1,
        setting=CENTER,
        seconds=1,
    )
    monkeypatch.setitem(WORKLOADS, "tiny", workload)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield workload, reads


def row_of(run: Run, accuracy=50.0):
    row = run._asdict() | dict.fromkeys(set(frontier.COLUMNS) - set(Run._fields), 1.0)
    return row | {"accuracy": accuracy, "date": "today", "device": "cpu", "versions": "a, b"}


def fake_run(run: Run):
    return row_of(run, accuracy=50 + run.seed + run.rho)


def failing_run(run: Run):
    if run.seed == 1:
        raise RuntimeError("interrupted")
    return fake_run(run)


def forbidden_run(run: Run):
    raise AssertionError(f"{run} was done again")


def a_run(seed: int, **changes) -> Run:
    run = Run("transfer", "m1d_mlp_clean", "sam_every_k", 0.125, seed, 0.3, 0.2, 5e-4)
    return run._replace(**changes)


def test_gap_closed():
    gap = frontier_report.gap_closed([73, 75, 74], [70, 71, 72], [74, 75, 76])
    assert gap.mean == pytest.approx(100 * 3 / 4)
    # d = 3, 4, 2 and D = 4, 4, 4: residuals 0, 1, -1
    assert gap.error == pytest.approx(100 * (1 / math.sqrt(3)) / 4)


def test_gap_of_the_references_is_exact():
    sgd, sam = [70, 71.5, 72], [74, 75, 75.5]
    assert frontier_report.gap_closed(sgd, sgd, sam) == (0, 0)
    assert frontier_report.gap_closed(sam, sgd, sam) == pytest.approx((100, 0))


def test_error_of_the_gap_is_that_of_repeated_experiments():
    rng = np.random.default_rng(0)
    gaps, errors = [], []
    for _ in range(2000):
        shared = rng.normal(size=8)
        sgd, sam, method = (m + shared + 0.5 * rng.normal(size=8) for m in (70, 80, 78))
        gap = frontier_report.gap_closed(list(method), list(sgd), list(sam))
        gaps.append(gap.mean)
        errors.append(gap.error)
    assert np.mean(errors) == pytest.approx(np.std(gaps), rel=0.1)


def test_one_seed_has_no_error_and_no_gain_no_gap():
    assert math.isnan(frontier_report.gap_closed([73], [70], [74]).error)
    assert math.isnan(frontier_report.gap_closed([73, 73], [70, 71], [71, 70]).mean)


def test_every_method_gets_the_same_search():
    options = Options(stage="tuned", draws=5)
    searches = {}
    for point in frontier.points(options, "tuned"):
        runs = frontier.tuning_runs(point, options.draws)
        assert {(run.workload, run.method, run.share) for run in runs} == {point}
        tried = [(run.seed, *run[5:]) for run in runs]
        assert len(set(tried)) == 5 * len(TUNING_SEEDS)
        assert searches.setdefault(point[0], tried) == tried
    assert {name for name in METHODS if not METHODS[name].is_between} == {
        method for _, method, _ in frontier.points(options, "tuned")
    }
    assert not set(TUNING_SEEDS) & set(options.seeds)


def test_only_methods_in_units_of_its_radius_take_over_that_of_sam():
    taken_over = {method for _, method, _ in frontier.points(Options(), "transfer")}
    assert set(METHODS) - taken_over == {"asam", "usam"}
    with pytest.raises(SystemExit, match="stage transfer compares none of asam, usam"):
        frontier.points(Options(methods=("asam", "usam")), "transfer")


def test_search_stays_in_its_range_and_grows_by_its_end():
    settings = frontier.candidates(CENTER, 40)
    assert settings[0] == CENTER
    assert frontier.candidates(CENTER, 7) == settings[:7]
    for (low, high), center, values in zip(
        frontier.RANGES, CENTER, zip(*settings, strict=True), strict=True
    ):
        assert low * center * 0.99 < min(values) < center < max(values) < high * center * 1.01


def test_best_setting_is_that_of_the_highest_mean(tiny):
    point = ("tiny", "sam", 1)
    runs = frontier.tuning_runs(point, 4)
    scores = [50, 60, 70, 50, 80, 51, 65, 65]  # two seeds a setting; means 55, 60, 65.5, 65
    done = {run: row_of(run, score) for run, score in zip(runs, scores, strict=True)}
    assert frontier.best_setting(point, 4, done) == frontier.candidates(CENTER, 4)[2]
    assert frontier.best_setting(point, 1, {}) == CENTER


def test_validation_is_held_out_and_clean(tiny):
    workload, reads = tiny
    data = make_data(workload, 100, "validation")
    assert not reads
    assert len(data.x) == 200
    assert len(data.held_out_x) == 80
    kept, held_out = set(data.x[:, 0]), set(data.held_out_x[:, 0])
    assert not kept & held_out
    assert kept | held_out <= set(range(300))
    np.testing.assert_array_equal(data.held_out_labels, data.held_out_x[:, 0] % 10)


def test_test_set_is_used_whole_and_noise_is_symmetric(tiny):
    workload, reads = tiny
    data = make_data(workload._replace(num_train=300), 0, "test")
    assert len(reads) == 1
    np.testing.assert_array_equal(data.held_out_x[:, 0], np.arange(1000, 1050))
    shift = (data.labels - data.x[:, 0].astype(int)) % 10
    assert 0.3 < (shift != 0).mean() < 0.5
    assert set(shift) == set(range(10))


def test_data_follow_from_the_seed(tiny):
    workload, _ = tiny
    first, again, other = (make_data(workload, seed, "test") for seed in (0, 0, 1))
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert (first.x[:, 0] != other.x[:, 0]).any()


def test_tuning_never_reads_the_test_set_and_runs_are_reproducible(tiny):
    _, reads = tiny
    run = Run("tune", "tiny", "sam", 1, 100, *CENTER)
    row = frontier.execute(run)
    assert not reads
    assert set(row) == set(frontier.COLUMNS)
    assert row["gradients_per_step"] == 2
    assert row["steps"] == 3
    again = frontier.execute(run)
    assert (row["accuracy"], row["train_loss"]) == (again["accuracy"], again["train_loss"])
    reported = frontier.execute(run._replace(stage="transfer", seed=0))
    assert reads
    assert reported["top_hessian_eigenvalue"] > 0


def test_sgd_is_the_base_optimizer_at_its_price(tiny):
    rows = [
        frontier.execute(Run("tune", "tiny", "sgd", 0, 100, *CENTER._replace(rho=rho)))
        for rho in (0.0, 9.0)
    ]
    assert rows[0]["gradients_per_step"] == 1
    assert rows[0]["train_loss"] == rows[1]["train_loss"]


@pytest.mark.parametrize("name", ABLATIONS)
def test_ablations_cost_what_they_say(name):
    """One step in eight, or as many as its price buys; at random within some deviation."""
    method, steps = ABLATIONS[name], 256
    (share,) = method.shares
    tx = method.make(0.1, share, steps, 0)

    def example_loss(params, batch):
        return jnp.sum(jnp.square(batch @ params["w"] - params["b"]), axis=-1)

    def step(carry, key):
        params, state = carry
        batch = jax.random.normal(key, (8, 3))
        grad_fn = jax.grad(lambda params: example_loss(params, batch).mean())
        updates, state = tx.update(
            grad_fn(params),
            state,
            params,
            grad_fn=grad_fn,
            example_loss_fn=example_loss,
            batch=batch,
        )
        params = jax.tree.map(lambda w, u: w - 0.01 * u, params, updates)
        return (params, state), arsam_jax.get_metrics(state)

    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        params = {"w": jnp.ones((3, 2)), "b": jnp.zeros(2)}
        keys = jax.random.split(jax.random.key(0), steps)
        (params, _), metrics = jax.jit(lambda c: jax.lax.scan(step, c, keys))(
            (params, tx.init(params))
        )
    cost = method.cost(float(metrics.sampled.mean()), share)
    assert cost == pytest.approx(1 + share, abs=0.03 if name == "when: at random" else 0.008)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(params))


def test_every_method_can_be_made_at_every_share():
    for method in METHODS.values():
        for share in method.shares:
            link = method.make(0.1, share, 100, 0)
            link.init({"w": np.zeros(3, np.float32)})
            assert 1 <= method.cost(share, share) <= 3


def test_a_run_is_never_done_again(tmp_path):
    options = Options(csv=tmp_path / "deep" / "frontier.csv", workers=2)
    runs = [a_run(0), a_run(1), a_run(2), a_run(0, method="sam", share=1)]
    with pytest.raises(RuntimeError, match="interrupted"):
        frontier.run_all(runs[:3], options, failing_run)
    assert set(frontier.read_rows(options.csv)) == {runs[0]}
    done = frontier.run_all(runs, options, fake_run)
    assert set(done) == set(runs)
    assert done[runs[2]]["accuracy"] == 52.3
    text = options.csv.read_text()
    assert frontier.run_all(runs, options, forbidden_run).keys() == done.keys()
    assert options.csv.read_text() == text
    assert len(text.splitlines()) == 1 + len(runs)


def test_a_line_that_was_cut_off_is_dropped(tmp_path):
    path = tmp_path / "frontier.csv"
    frontier.append_row(path, row_of(a_run(0)))
    whole = path.read_bytes()
    frontier.append_row(path, row_of(a_run(1)))
    path.write_bytes(path.read_bytes()[:-9])
    assert list(frontier.read_rows(path)) == [a_run(0)]
    frontier.append_row(path, row_of(a_run(1)))
    assert list(frontier.read_rows(path)) == [a_run(0), a_run(1)]
    assert path.read_bytes().startswith(whole)


def test_report(tmp_path):
    accuracies = {("sgd", 0): 70, ("sam", 1): 80, ("budgeted_sam", 0.125): 79}
    rows = [
        row_of(a_run(seed, method=method, share=share, workload=workload), accuracy + seed)
        for workload in ("m1d_mlp_clean", "fmnist_mlp_noisy")
        for (method, share), accuracy in accuracies.items()
        for seed in range(3)
    ]
    rows.append(row_of(a_run(0, method="looksam"), 70))  # on one workload only: no mean
    sgd, sam, ours, looksam = frontier_report.summarize(rows)
    assert sgd.mean_gap == (0, 0)
    assert sam.mean_gap == (100, 0)
    assert ours.mean_gap.mean == pytest.approx(90)
    assert ours.accuracies["m1d_mlp_clean"] == pytest.approx((80, 1 / math.sqrt(3)))
    assert math.isnan(looksam.mean_gap.mean)
    assert ours.costs["peak_bytes"] == 1
    written = frontier_report.write(rows, tmp_path / "frontier.csv")
    assert [path.name for path in written] == ["frontier.png", "frontier.md"]
    assert "90.0 ± 0.0" in written[1].read_text()

    rows += [row | {"method": "reuse: none"} for row in rows if row["method"] == "budgeted_sam"]
    written = frontier_report.write(rows, tmp_path / "frontier.csv", ablations=["reuse: none"])
    assert [path.name for path in written][1] == "frontier_ablations.png"
    assert written[-1].read_text().count("`reuse: none`") == 1

    # The other protocol has no ablations, and does not take the place of those of this one.
    tuned = [row | {"stage": "tuned"} for row in rows if row["method"] != "reuse: none"]
    tuned += [row | {"share": 1 / 16} for row in tuned if row["method"] == "budgeted_sam"]
    written = frontier_report.write([*rows, *tuned], tmp_path / "t.csv", ablations=["reuse: none"])
    assert [path.name for path in written] == [
        *("t.png", "t_ablations.png", "t_tuned.png", "t.md"),
    ]


def test_ablations_are_not_taken_for_methods():
    asked = {name for _, name, _ in frontier.points(Options(stage="ablations"), "ablations")}
    assert asked == {"sgd", "sam", "budgeted_sam", "budgeted_sam_rising", *ABLATIONS}
    assert not set(ABLATIONS) & {name for _, name, _ in frontier.points(Options(), "transfer")}


def test_a_collapse_is_bounded_in_the_mean():
    accuracies = {("sgd", 0): 74, ("sam", 1): 75, ("esam", 0.5): 10}
    rows = [
        row_of(a_run(seed, method=method, share=share), accuracy)
        | {"top_hessian_eigenvalue": math.nan if method == "esam" else 1}
        for (method, share), accuracy in accuracies.items()
        for seed in range(2)
    ]
    esam = frontier_report.summarize(rows)[-1]
    assert esam.gaps["m1d_mlp_clean"].mean == pytest.approx(-6400)
    assert esam.mean_gap.mean == frontier_report.FLOOR
    assert math.isnan(esam.costs["top_hessian_eigenvalue"])


def test_report_of_nothing(tmp_path):
    assert frontier_report.write([], tmp_path / "frontier.csv") == []


def test_options_are_checked():
    wrong: list[dict[str, Any]] = [
        {"methods": ("asm",)},
        {"workloads": ("x",)},
        {"draws": 0},
        {"workers": 0},
        {"seeds": (0, 100)},
    ]
    for changes in wrong:
        with pytest.raises(SystemExit):
            Options(**changes)
    assert frontier.quick(Options()).csv == Path("runs/frontier/quick.csv")
    names = {name for name, _, _ in frontier.points(Options(methods=("arsam",)), "transfer")}
    assert names == set(WORKLOADS)
    chosen = dataclasses.replace(Options(), methods=("looksam",), shares=(0.5,))
    assert {p[1:] for p in frontier.points(chosen, "transfer")} == {
        ("sgd", 0),
        ("sam", 1),
        ("looksam", 0.5),
    }
