"""A workload of three batches, and rows of runs that nobody trained."""

import jax
import numpy as np
import pytest

from benchmarks.harness.networks import MLP
from benchmarks.harness.training import Result
from benchmarks.harness.tuning import Run
from benchmarks.harness.workloads import WORKLOADS, Setting, Source, Workload
from tests.benchmarks.fakes import PROVENANCE

CENTER = Setting(rho=0.1, learning_rate=0.1, weight_decay=1e-3)


def examples(first, count):
    """Every example is known by its first number."""
    x = np.random.default_rng(first).normal(size=(count, 4)).astype(np.float32)
    x[:, 0] = np.arange(first, first + count)
    return x, np.arange(count, dtype=np.int32) % 10


@pytest.fixture
def test_reads():
    """Grows where the test set of `tiny` is read."""
    return []


@pytest.fixture
def tiny(monkeypatch, test_reads):
    """The workload named so."""

    def test_set():
        test_reads.append(1)
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
        yield workload


def row_of(run: Run, accuracy=50.0):
    """As `tuning.train_row` gives it."""
    results = dict.fromkeys(Result._fields, 1.0) | {"gradients_per_step": 1.0}
    del results["sampled_share"]
    return run._asdict() | results | {"accuracy": accuracy} | PROVENANCE
