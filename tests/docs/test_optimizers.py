"""Every row of the table of base optimizers works behind ARSAM and keeps what it says."""

import re
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import optax
import pytest

import arsam_jax

PAGE = Path(__file__).parents[2] / "docs" / "optimizers.md"
ROWS = re.findall(r"^\| `(optax\.\S.*)` \| ([\d.]+) \| .+ \|$", PAGE.read_text(), re.MULTILINE)
X = jax.random.normal(jax.random.key(0), (32, 256))
PARAMS = {"w": 0.1 * jax.random.normal(jax.random.key(1), (256, 256)), "b": jnp.zeros(256)}

pytestmark = pytest.mark.usefixtures("standard_promotion")


def loss_fn(params):
    return jnp.mean((jnp.tanh(X @ params["w"] + params["b"]) - 0.5) ** 2)


def train(tx, steps):
    @jax.jit
    def step(params, opt_state):
        grad_fn = jax.grad(loss_fn)
        update = optax.with_extra_args_support(tx).update
        updates, opt_state = update(grad_fn(params), opt_state, params, grad_fn=grad_fn)
        return optax.apply_updates(params, updates), opt_state

    params, opt_state = PARAMS, tx.init(PARAMS)
    for _ in range(steps):
        params, opt_state = step(params, opt_state)
    return params, opt_state


def test_every_row_is_read():
    table = PAGE.read_text().split("|---|---|---|\n")[1].split("\n\n")[0]
    assert len(ROWS) == len(table.splitlines())


@pytest.mark.parametrize(("code", "keeps"), ROWS, ids=[code for code, _ in ROWS])
def test_a_base_trains_behind_arsam_and_keeps_what_the_row_says(code, keeps):
    base = eval(code)
    link = arsam_jax.arsam(rho=0.1, alpha=0.4, segment_length=5, initial_samples=2)
    tx, grad_fn = optax.chain(link, base), jax.grad(loss_fn)
    arsam_jax.check_wiring(tx, grad_fn(PARAMS), PARAMS, grad_fn=grad_fn)
    params, opt_state = train(tx, 20)
    assert loss_fn(params) < loss_fn(PARAMS)
    assert 0 < arsam_jax.get_metrics(opt_state).num_sampled < 20

    matrix = {"w": PARAMS["w"]}
    kept = sum(x.size for x in jax.tree.leaves(base.init(matrix)) if x.ndim) / matrix["w"].size
    assert float(f"{kept:.1g}") == float(keeps)


@pytest.mark.parametrize("code", [code for code, _ in ROWS])
def test_at_rho_0_a_base_is_itself_bit_for_bit(code):
    base = eval(code)
    ours, _ = train(optax.chain(arsam_jax.sam(rho=0.0), base), 3)
    expected, _ = train(base, 3)
    chex.assert_trees_all_equal(ours, expected)
