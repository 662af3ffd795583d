"""Checkpoints: what is restored is what was saved, of the right step, or an error that helps."""

import numpy as np
import pytest

from examples.common import checkpoints
from examples.common.errors import CheckpointError

STATE = {"w": np.float32([1, np.nan, -0.0]), "step": np.array(3, np.int32)}


def test_the_last_one_is_kept_and_a_lost_future_is_replaced(tmp_path):
    with checkpoints.open_in(tmp_path / "checkpoint") as saved:
        assert saved.latest_step() is None
        for step, value in ((3, 0.0), (5, 1.0), (4, 2.0)):  # 5 is of a future that was lost
            checkpoints.save(saved, step, STATE | {"w": np.full(3, value, np.float32)}, step / 2)
        assert saved.all_steps() == [4]
        state, seconds = checkpoints.restore(saved, 4, STATE)
    assert seconds == 2
    np.testing.assert_array_equal(state["w"], np.full(3, 2.0))


def test_every_bit_is_restored_and_another_state_is_an_error(tmp_path):
    with checkpoints.open_in(tmp_path) as saved:
        checkpoints.save(saved, 1, STATE, 0.5)
        state, _ = checkpoints.restore(saved, 1, STATE)
        assert np.asarray(state["w"]).tobytes() == STATE["w"].tobytes()
        with pytest.raises(CheckpointError, match="of another model, method or version"):
            checkpoints.restore(saved, 1, STATE | {"more": np.zeros(2)})
        assert saved.all_steps() == [1]


def test_one_that_cannot_be_written_keeps_the_one_before(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("disk full")

    with checkpoints.open_in(tmp_path) as saved:
        checkpoints.save(saved, 1, STATE, 0.5)
        monkeypatch.setattr(saved, "save", fail)
        with pytest.raises(CheckpointError, match=r"step 2 cannot .*disk full.* step 1 is kept"):
            checkpoints.save(saved, 2, STATE, 0.5)
        assert saved.latest_step() == 1
