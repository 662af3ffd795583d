"""The examples in the README and the docs run, and the README stands on a package index."""

import doctest
import re
import tomllib
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

import arsam_jax
import arsam_jax.flax

ROOT = Path(__file__).parent.parent.parent
README, USE = ROOT / "README.md", ROOT / "docs" / "use.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "docs/api").glob("*.md"))]

pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_examples_run(page):
    result = doctest.testfile(str(page), module_relative=False)
    assert result.failed == 0
    assert result.attempted or page != README


PARAMS = {"w": jnp.ones((3, 2))}
BATCH = {"x": jnp.eye(3), "y": jnp.zeros((3, 2))}


def example_losses(params, batch):
    return jnp.mean((jnp.tanh(batch["x"] @ params["w"]) - batch["y"]) ** 2, axis=1)


def grad_fn(params):
    return jax.grad(lambda params: example_losses(params, BATCH).mean())(params)


# What the text before a block takes for granted, and, after the yield, what the block has to do.
def a_chain():
    namespace = {"schedule": optax.constant_schedule(0.1), "params": PARAMS, "grad_fn": grad_fn}
    yield namespace | {"grads": grad_fn(PARAMS)}


def every_extra_argument():
    tx = arsam_jax.ausam(rho=0.1, num_examples=3, steps_per_epoch=1)  # takes the most of them
    namespace = {"tx": tx, "opt_state": tx.init(PARAMS), "params": PARAMS}
    namespace |= {"grads": grad_fn(PARAMS), "grad_fn": grad_fn, "previous_grad_fn": grad_fn}
    namespace |= {"example_loss_fn": example_losses, "batch": BATCH, "index": jnp.arange(3)}
    yield namespace
    assert arsam_jax.get_metrics(namespace["opt_state"]).num_sampled == 1


def losses_of_examples():
    namespace = {"apply": lambda params, x: x @ params["w"]}
    yield namespace
    batch = {"x": jnp.eye(3), "y": jnp.array([0, 1, 0])}
    losses = namespace["losses_of"](PARAMS, batch)
    assert losses.shape == (3,)
    assert namespace["loss_fn"](PARAMS, batch) == losses.mean()


def a_linen_step():
    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.BatchNorm(use_running_average=False)(nn.Dense(2)(x))
            return nn.Dropout(0.5, deterministic=False)(x)

    def loss_fn(params, batch_stats, batch, dropout_key):
        variables = {"params": params, "batch_stats": batch_stats}
        rngs = {"dropout": dropout_key}
        y, changed = Network().apply(variables, batch["x"], rngs=rngs, mutable=["batch_stats"])
        return jnp.mean((y - batch["y"] - 1) ** 2), changed["batch_stats"]

    class State(arsam_jax.flax.TrainState):
        batch_stats: dict

    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    variables = Network().init(keys, BATCH["x"])
    tx = optax.chain(arsam_jax.sam(rho=0.1), optax.sgd(0.1))
    state = State.create(apply_fn=Network().apply, tx=tx, **variables)
    namespace = {"state": state, "loss_fn": loss_fn, "batch": BATCH}
    namespace["dropout_key"] = jax.random.key(2)
    yield namespace
    assert namespace["state"].step == 1
    assert arsam_jax.get_metrics(namespace["state"].opt_state).num_sampled == 1
    moved = loss_fn(state.params, state.batch_stats, BATCH, jax.random.key(2))[1]
    stats = namespace["state"].batch_stats
    assert jax.tree.all(jax.tree.map(jnp.allclose, stats, moved))


def an_nnx_step():
    def loss_fn(model, batch):
        return jnp.mean((model(batch["x"]) - batch["y"]) ** 2)

    namespace = {"nnx": nnx, "loss_fn": loss_fn}
    yield namespace
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    tx = optax.chain(arsam_jax.sam(rho=0.1), optax.sgd(0.1))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    before = loss_fn(model, BATCH)
    assert namespace["train_step"](model, optimizer, BATCH) == pytest.approx(float(before))
    assert loss_fn(model, BATCH) < before


def an_nnx_step_of_microbatches():
    def example_loss_fn(model, batch):
        return jnp.mean((model(batch["x"]) - batch["y"]) ** 2, axis=1)

    namespace = {"nnx": nnx, "example_loss_fn": example_loss_fn}
    yield namespace
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    tx = optax.chain(arsam_jax.m_sam(0.1, num_microbatches=2), optax.sgd(0.1))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    batch = {"x": jnp.eye(4, 3), "y": jnp.ones((4, 2))}
    before = example_loss_fn(model, batch).mean()
    assert namespace["train_step"](model, optimizer, batch) == pytest.approx(float(before))
    assert example_loss_fn(model, batch).mean() < before


def ones_own_combination():
    namespace = {}
    yield namespace
    state = namespace["tx"].init(PARAMS)
    grads, _ = namespace["tx"].update(grad_fn(PARAMS), state, PARAMS, grad_fn=grad_fn)
    assert jax.tree.structure(grads) == jax.tree.structure(PARAMS)


SETTINGS = {
    "optax.clip_by_global_norm": a_chain,
    "previous_grad_fn=": every_extra_argument,
    "def losses_of": losses_of_examples,
    "class TrainState": a_linen_step,
    "nnx_value_and_grad": an_nnx_step,
    "nnx_microbatches": an_nnx_step_of_microbatches,
    "arsam_jax.sharpness_aware(": ones_own_combination,
}
BLOCKS = [
    block
    for block in re.findall(r"^```python\n(.*?)^```", USE.read_text(), re.DOTALL | re.MULTILINE)
    if not block.startswith(">>> ")
]


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_block_of_the_guide_runs(block):
    (setting,) = (setting() for text, setting in SETTINGS.items() if text in block)
    namespace = next(setting)
    namespace |= {"jax": jax, "jnp": jnp, "optax": optax, "arsam_jax": arsam_jax}
    exec(compile(block, "use.md", "exec"), namespace)
    assert next(setting, None) is None


def test_the_description_for_an_index_has_no_links_into_the_repository():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    hook = project["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]
    (fragment,) = hook["fragments"]
    text = (ROOT / fragment["path"]).read_text()
    for rule in hook["substitutions"]:
        text = re.sub(rule["pattern"], rule["replacement"], text)
    assert re.findall(r"\]\((?!https?:)", text) == []
    assert "]()" not in text
    assert "the methods and every decision" in text  # the words of a link stay
