"""Starting from a checkpoint of the base optimizer."""

import chex
import jax
import jax.numpy as jnp
import optax
import orbax.checkpoint as ocp
import pytest

import arsam_jax
from tests.problem import make_params, train

BASE = optax.chain(optax.trace(0.9), optax.scale_by_learning_rate(lambda step: 0.05 / (1 + step)))
WAYS = {
    "chain": lambda link: optax.chain(link, BASE),
    "nested": lambda link: optax.chain(optax.chain(link), optax.identity(), BASE),
    "named": lambda link: optax.named_chain(("sharpness", link), ("base", BASE)),
}

pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.mark.parametrize("way", WAYS)
def test_a_checkpoint_of_the_base_optimizer_goes_on(way, tmp_path):
    """At ρ = 0 to the bit as without the transformation, whose schedule counts from the step."""
    base = optax.with_extra_args_support(BASE)
    params, state = train(base, 7)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "base", (params, state))
        checkpointer.wait_until_finished()
        params, state = checkpointer.restore(tmp_path / "base", (params, state))
    expected, _ = train(base, 5, params, first=7, opt_state=state)

    for rho in (0.0, lambda step: jnp.where(step < 7, 1e3, 0.0)):
        tx = WAYS[way](arsam_jax.sam(rho))
        opt_state = arsam_jax.from_base_state(tx.init(params), state, step=7)
        ours, opt_state = train(tx, 5, params, first=7, opt_state=opt_state)
        chex.assert_trees_all_close(ours, expected, rtol=1e-6)
        assert arsam_jax.get_state(opt_state).step == 12


def test_what_does_not_fit_is_refused():
    params = make_params()
    tx = optax.chain(arsam_jax.sam(0.1), optax.adam(0.1))
    good = optax.adam(0.1).init(params)
    arsam_jax.from_base_state(tx.init(params), good)
    wide = jax.tree.map(lambda x: x.astype(jnp.float16) if x.ndim else x, good)
    for bad, message in (
        (optax.sgd(0.1, momentum=0.9).init(params), "leaves, got"),
        (wide, r"leaf 1: float16\[4\] instead of float32\[4\]"),
    ):
        with pytest.raises(ValueError, match=message):
            arsam_jax.from_base_state(tx.init(params), bad)
    with pytest.raises(ValueError, match="exactly one sharpness-aware state"):
        arsam_jax.from_base_state(good, good)
    with pytest.raises(ValueError, match="step must be an integer"):
        arsam_jax.from_base_state(tx.init(params), good, step=-1)
