"""The benchmark of what a PSF is: its estimators, and a run on a training of three steps."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.harness import search, table, tuning
from benchmarks.harness.training import example_losses
from benchmarks.psf import __main__ as program
from benchmarks.psf import report
from benchmarks.psf import study as psf
from tests.benchmarks.conftest import CENTER, examples, row_of


def test_products_of_means_take_no_batch_with_itself():
    vectors = np.random.default_rng(0).normal(size=(5, 3, 7))  # mini-batches, vectors, parameters
    found = psf.Moments(vectors.sum(0), np.einsum("nip,njp->ij", vectors, vectors))
    pairs = [vectors[a] @ vectors[b].T for a, b in itertools.permutations(range(5), 2)]
    np.testing.assert_allclose(psf.products_of_means(found, 5), np.mean(pairs, 0))


def test_moments_are_of_the_gradient_and_of_the_psf_at_each_radius(tiny):
    x, labels = map(jnp.asarray, examples(0, 300))
    variables = tiny.network.init(jax.random.key(0), x[:2], train=True)["params"], {}
    order = np.arange(12).reshape(3, 4)
    found = psf.moments(tiny, variables, 0.1, x, labels, order)

    @jax.jit
    def grad(params, indices):
        def loss_fn(params):
            batch = x[indices], labels[indices]
            return example_losses(tiny, params, {}, batch)[0].mean()

        return jax.grad(loss_fn)(params)

    vectors = []
    for indices in order:
        g = grad(variables[0], indices)
        norm = np.sqrt(sum(np.square(leaf).sum() for leaf in jax.tree.leaves(g)))
        of_batch = [g]
        for m in psf.MULTIPLIERS:
            moved = jax.tree.map(lambda w, d, m=m, n=norm: w + m * 0.1 * d / n, variables[0], g)
            of_batch.append(jax.tree.map(jnp.subtract, grad(moved, indices), g))
        vectors.append(
            [np.concatenate([np.ravel(a) for a in jax.tree.leaves(v)]) for v in of_batch]
        )
    np.testing.assert_allclose(found.sums, np.sum(vectors, 0), rtol=1e-3, atol=1e-5)
    expected = np.einsum("nip,njp->ij", vectors, vectors)
    np.testing.assert_allclose(found.products, expected, rtol=1e-3, atol=1e-5)


def test_what_is_reported_of_vectors_of_known_mean_and_noise():
    rng = np.random.default_rng(0)
    n, size = 4000, 50
    mean = rng.normal(size=size) / size**0.5  # of the PSF at ρ
    turned = mean - 2 * mean[0] * np.eye(size)[0]  # of another direction, after a lag
    lengths = [1.0, *psf.MULTIPLIERS]
    spreads = [2.0, *(0.5 * m**0.9 for m in psf.MULTIPLIERS)]  # of each coordinate

    def moments(direction):
        vectors = np.stack(
            [
                a * direction + s * rng.normal(size=(n, size))
                for a, s in zip(lengths, spreads, strict=True)
            ],
            1,
        )
        return psf.Moments(vectors.sum(0), np.einsum("nip,njp->ij", vectors, vectors))

    rows = psf.describe(moments(mean), {8: moments(mean), 64: moments(turned)}, n)
    squared = float(mean @ mean)
    for row, a, s in zip(rows, lengths, spreads, strict=True):
        total = a**2 * squared + size * s**2
        assert row["common"] == pytest.approx(a**2 * squared / total, rel=0.1, abs=2e-3)
        assert row["force"] == pytest.approx(a, rel=0.1)
        assert row["noise"] == pytest.approx(s / 0.5, rel=0.02)
        assert row["norm"] == pytest.approx((total / (squared + size * 4)) ** 0.5, rel=0.02)
        assert row["kept_8"] == pytest.approx(1, abs=0.1)
        assert row["kept_64"] == pytest.approx(float(mean @ turned) / squared, abs=0.1)


def test_a_mean_that_cannot_be_told_from_none_has_no_direction():
    nothing = psf.Moments(np.zeros((6, 3)), np.eye(6))
    something = psf.Moments(np.ones((6, 3)), np.eye(6))
    for pair in ((nothing, something), (something, nothing), (nothing, nothing)):
        rows = psf.describe(pair[0], {8: pair[1]}, 4)
        assert all(np.isnan(row["kept_8"]) for row in rows)


def test_errors_are_over_trainings_not_over_their_points():
    rows = [{"seed": seed, "x": seed + trend} for seed in (0, 2) for trend in (-9, 0, 9)]
    assert report.estimate([*rows, {"seed": 0, "x": float("nan")}], "x") == (1, pytest.approx(1))


def test_a_training_is_measured_once(tiny, tmp_path, monkeypatch, test_reads):
    monkeypatch.setattr(psf, "PROGRESS", (0.3,))
    monkeypatch.setattr(psf, "LAGS", (1,))
    options = program.Options(workloads=("tiny",), seeds=(1,), batches=8, csv=tmp_path / "psf.csv")
    monkeypatch.setattr(tuning, "settings_of_sam", lambda *_: {"tiny": CENTER})
    monkeypatch.setattr(report, "LAGS", (1,))
    monkeypatch.setattr(report, "WORKLOADS", {"tiny": tiny})
    program.main(options)
    rows = table.read_table(options.csv, ("workload",))
    assert [row["multiplier"] for row in rows] == [0, *psf.MULTIPLIERS]
    assert 0 < rows[1]["norm"] < rows[2]["norm"]
    assert {path.name for path in tmp_path.iterdir()} == {"psf.csv", "psf.md", "psf.png"}
    assert not test_reads

    measured = []

    def fake_measure(name, setting, seed, n, on_point):
        measured.append(seed)
        return [row | {"seed": seed, "norm": 9.0} for row in rows]

    monkeypatch.setattr(psf, "measure", fake_measure)
    monkeypatch.setattr(report, "plot", lambda *_: None)
    text = options.csv.read_text()
    program.main(dataclasses.replace(options, seeds=(1, 2)))
    assert measured == [2]
    assert options.csv.read_text().startswith(text)
    # A training whose rows are not all there is measured again; what it had is not counted twice.
    lines = options.csv.read_text().splitlines(keepends=True)
    options.csv.write_text("".join(lines[:-2]))
    program.main(dataclasses.replace(options, seeds=(1, 2)))
    assert measured == [2, 2]
    assert len(program.read_rows(options.csv)) == 2 * len(rows)


def test_the_setting_is_that_of_the_search_for_sam(tiny, tmp_path):
    path = tmp_path / "settings.csv"
    runs = tuning.tuning_runs(("tiny", "sam", 1), tuning.DRAWS)
    for run in runs:
        table.append_row(path, row_of(run, 50 + 9 * (run[5:] == runs[4][5:])))
    assert tuning.settings_of_sam(("tiny",), path) == {"tiny": runs[4][5:]}
    assert len(search.read_rows(path, tuning.Run)) == len(runs)


def test_a_training_that_is_too_short_is_refused(tiny):
    with pytest.raises(ValueError, match="tiny has 3 steps"):
        psf.measure("tiny", CENTER, 1, 8, lambda: None)


def test_options_are_checked():
    with pytest.raises(SystemExit):
        program.Options(workloads=("x",))
    with pytest.raises(SystemExit):
        program.Options(batches=1)
