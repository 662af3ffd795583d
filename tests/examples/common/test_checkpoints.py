"""Checkpoints: what is restored is what was saved, or an error that says what to do."""

import jax.numpy as jnp
import numpy as np
import pytest

from examples.common import checkpoints
from examples.common.errors import CheckpointError

STATE = {
    "w": np.float32([1, np.nan, -0.0]),
    "half": jnp.bfloat16([[1.5, -2]]),
    "empty": np.zeros((0, 3), np.float32),
    "step": np.array(3, np.int32),
}


def test_every_bit_is_restored(tmp_path):
    path = tmp_path / "checkpoint"
    for step in (1, 2):
        checkpoints.save(path, STATE, {"losses": [0.1, step]})
    state, record = checkpoints.restore(path, STATE)
    assert record == {"losses": [0.1, 2]}
    for name, expected in STATE.items():
        assert (state[name].dtype, state[name].shape) == (expected.dtype, expected.shape)
        assert np.asarray(state[name]).tobytes() == np.asarray(expected).tobytes()
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint"]


@pytest.mark.parametrize("where", [0, 30, 70, 200, -1])
def test_a_flipped_bit_is_reported(where, tmp_path):
    path = tmp_path / "checkpoint"
    checkpoints.save(path, STATE, {"step": 1})
    content = bytearray(path.read_bytes())
    content[where] ^= 4
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"does not match its digest.*again, delete"):
        checkpoints.restore(path, STATE)
    path.write_bytes(content[:40])
    with pytest.raises(CheckpointError, match="does not match its digest"):
        checkpoints.restore(path, STATE)
    assert path.read_bytes() == content[:40]


@pytest.mark.parametrize(
    "other",
    [
        STATE | {"w": np.zeros(4, np.float32)},
        STATE | {"w": np.zeros(3, np.int32)},
        STATE | {"more": np.zeros(2)},
        {name: STATE[name] for name in ("w", "step")},
    ],
)
def test_another_state_is_an_error(other, tmp_path):
    checkpoints.save(tmp_path / "checkpoint", STATE, {"step": 1})
    with pytest.raises(CheckpointError, match="of another model, method or version"):
        checkpoints.restore(tmp_path / "checkpoint", other)


def test_one_that_cannot_be_written_keeps_the_previous_one(tmp_path, monkeypatch):
    def fail(descriptor):
        raise OSError("disk full")

    path = tmp_path / "checkpoint"
    checkpoints.save(path, STATE, {"step": 1})
    monkeypatch.setattr(checkpoints.os, "fsync", fail)
    with pytest.raises(CheckpointError, match=r"cannot .*disk full.* is kept.*--resume"):
        checkpoints.save(path, STATE, {"step": 2})
    assert checkpoints.restore(path, STATE)[1] == {"step": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint"]
