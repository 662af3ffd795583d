"""What a train step does to the shapes of a network; nothing is computed."""

import jax
import numpy as np

from examples.common.comparison import Trainer


def assert_a_step_keeps_shapes(task, new_state=None, least=1e5, method="sam"):
    """Check a batch of two, from the state of ``new_state``, by default the task's.

    The largest array must have more than ``least`` elements, to be of the expected network.
    """
    tx = Trainer(task.options, task).make_optimizer(method, 0)
    state = jax.eval_shape(lambda: (new_state or task.new_state)(tx, 0))
    batch = task.batch(np.arange(2), 0, 0)
    new, loss = jax.eval_shape(task.train_step, state, batch, batch)
    assert loss.shape == ()
    assert jax.tree.structure(new) == jax.tree.structure(state)
    shapes = [[(x.shape, x.dtype) for x in jax.tree.leaves(tree)] for tree in (new, state)]
    assert shapes[0] == shapes[1]
    assert max(np.prod(shape) for shape, _ in shapes[0]) > least
