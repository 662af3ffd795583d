"""Devices and processes: each takes its part of a batch."""

import jax
import numpy as np
import pytest

from examples.common import devices
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
