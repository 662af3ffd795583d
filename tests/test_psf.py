"""The benchmark of what a PSF is: its estimators, and a run on a training of three steps."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import frontier, psf
from benchmarks.workloads import MLP, WORKLOADS, Setting, Source, Workload, example_losses

CENTER = Setting(rho=0.1, learning_rate=0.1, weight_decay=1e-3)


def examples():
    rng = np.random.default_rng(0)
    return rng.normal(size=(300, 4)).astype(np.float32), np.arange(300, dtype=np.int32) % 10


def forbidden():
    raise AssertionError("the test set was read")


@pytest.fixture
def tiny(monkeypatch):
    workload = Workload(
        source=Source(examples, forbidden),
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
        yield workload


def test_products_of_means_take_no_batch_with_itself():
    vectors = np.random.default_rng(0).normal(size=(5, 3, 7))  # mini-batches, vectors, parameters
    found = psf.Moments(vectors.sum(0), np.einsum("nip,njp->ij", vectors, vectors))
    pairs = [vectors[a] @ vectors[b].T for a, b in itertools.permutations(range(5), 2)]
    np.testing.assert_allclose(psf.products_of_means(found, 5), np.mean(pairs, 0))


def test_moments_are_of_the_gradient_and_of_the_psf_at_each_radius(tiny):
    x, labels = examples()
    variables = tiny.network.init(jax.random.key(0), x[:2], train=True)["params"], {}
    order = np.arange(12).reshape(3, 4)
    found = psf.moments(tiny, variables, 0.1, x, labels, order)

    def grad(params, indices):
        def loss_fn(params):
            batch = x[indices], labels[indices]
            return example_losses(tiny.network, params, {}, batch)[0].mean()

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


def test_a_training_is_measured_once(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(psf, "PROGRESS", (0.3,))
    monkeypatch.setattr(psf, "LAGS", (1,))
    settings = tmp_path / "settings.csv"
    columns = dict.fromkeys(frontier.COLUMNS, 1.0) | dict.fromkeys(frontier.WORDS, "a")
    for run in frontier.tuning_runs(("tiny", "sam", 1), 8):
        frontier.append_row(settings, columns | run._asdict())
    options = psf.Options(
        workloads=("tiny",), seeds=(1,), batches=8, csv=tmp_path / "psf.csv", settings=settings
    )
    psf.main(options)
    rows = psf.read_rows(options.csv)
    assert [row["multiplier"] for row in rows] == [0, *psf.MULTIPLIERS]
    assert rows[0]["norm"] == rows[1]["force"] == 1
    assert 0 < rows[1]["norm"] < rows[2]["norm"]
    assert {path.name for path in tmp_path.iterdir()} >= {"psf.md", "psf.png"}
    text = options.csv.read_text()
    psf.main(options)
    assert options.csv.read_text() == text


def test_a_training_that_is_too_short_is_refused(tiny, monkeypatch):
    monkeypatch.setattr(frontier, "best_setting", lambda *_: CENTER)
    with pytest.raises(ValueError, match="tiny has 3 steps"):
        psf.measure("tiny", 1, 8, {}, lambda: None)


def test_options_are_checked():
    with pytest.raises(SystemExit):
        psf.Options(workloads=("x",))
    with pytest.raises(SystemExit):
        psf.Options(batches=1)
