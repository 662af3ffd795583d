"""Devices and processes: each takes its part of a batch, and all agree or stop."""

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils

from examples.common import devices, processes
from examples.common.errors import ConfigError


@pytest.mark.parametrize("num_processes", [1, 2, 5])
def test_no_example_of_a_batch_is_lost_or_doubled(num_processes, monkeypatch):
    batch, parts = np.random.default_rng(0).permutation(100), []
    monkeypatch.setattr(jax, "process_count", lambda: num_processes)
    for index in range(num_processes):
        monkeypatch.setattr(jax, "process_index", lambda: index)
        parts.append(batch[devices.own_rows(100)])
    assert {len(part) for part in parts} == {100 // num_processes}
    np.testing.assert_array_equal(np.concatenate(parts), batch)


def test_a_mesh_is_a_row_of_the_devices_that_there_are():
    assert devices.make_mesh(0).size == 1
    assert list(devices.make_mesh(4).devices) == jax.devices()[:4]
    with pytest.raises(ConfigError, match="--devices 9, but there are 8"):
        devices.make_mesh(9)


def test_processes_that_differ_stop_and_others_go_on(monkeypatch):
    answers = iter([np.uint32([1, 1]), np.uint32([1, 2])])
    monkeypatch.setattr(multihost_utils, "process_allgather", lambda digest: next(answers))
    processes.require_same("the seed", 1)
    with pytest.raises(processes.DisagreementError, match="differ in the seed; process 0 has 1"):
        processes.require_same("the seed", 1)
