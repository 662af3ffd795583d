"""check_wiring: it names each mistake, and says nothing about what is right."""

import functools
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

import arsam_jax
from arsam_jax import check_wiring, microbatches, parallel, sparse
from arsam_jax.flax import nnx_value_and_grad
from tests.library import test_flax
from tests.problem import example_loss_fn, loss_fn, make_batch, make_params
from tests.versions import as_pure, cases, needs_nnx

BATCH = make_batch(0)
FROZEN = {"kernel": True, "bias": False, "scale": False}


@jax.jit
def gradient(params, batch=BATCH):
    return jax.grad(loss_fn)(params, batch)


def scaled(factor):
    return lambda params: jax.tree.map(lambda g: g * jnp.asarray(factor, g.dtype), gradient(params))


def make_chain(link=None):
    return optax.chain(arsam_jax.sam(0.1) if link is None else link, optax.sgd(0.05))


def freeze():
    return optax.masked(optax.set_to_zero(), FROZEN)


def params_of_three(dtype=jnp.float32):
    return {name: x for name, x in make_params(dtype).items() if name in FROZEN}


def check(tx=None, grads=None, params=None, **extra_args):
    params = params_of_three() if params is None else params
    extra_args = {"grad_fn": gradient} | extra_args
    grads = gradient(params) if grads is None else grads
    check_wiring(make_chain() if tx is None else tx, grads, params, **extra_args)


def dropout_gradient(params, key):
    mask = jax.random.bernoulli(key, 0.5, params["kernel"].shape)
    return gradient(params | {"kernel": jnp.where(mask, 2 * params["kernel"], 0)})


def fresh_keys():
    count = iter(range(100))
    return lambda params: dropout_gradient(params, jax.random.key(next(count)))


def with_zeros(grads):
    return grads | {"kernel": jnp.zeros_like(grads["kernel"])}


def with_decay(params):
    return jax.tree.map(lambda g, w: g + 0.1 * w, gradient(params), params)


GRADS = gradient(params_of_three())
MISTAKES = {
    "other mini-batch": (
        lambda: check(grads=gradient(params_of_three(), make_batch(1))),
        "Compared with grad_fn.*another mini-batch, dropout key",
    ),
    "micro-batches of another mini-batch": (
        lambda: check(
            tx=make_chain(arsam_jax.m_sam(0.1, 2)),
            example_loss_fn=example_loss_fn,
            batch=BATCH,
            microbatch_grads=microbatches.value_and_grad(example_loss_fn, 2)(
                params_of_three(), make_batch(1)
            )[2],
        ),
        "microbatch_grads of micro-batch 0, .*another mini-batch",
    ),
    "micro-batches of another cut": (
        lambda: check(
            tx=make_chain(arsam_jax.m_sam(0.1, 2)),
            example_loss_fn=example_loss_fn,
            batch=BATCH,
            microbatch_grads=jax.vmap(gradient, (None, 0))(
                params_of_three(), jax.tree.map(lambda x: x.reshape(2, 8, *x.shape[1:]), BATCH)
            ),
        ),
        "microbatch_grads of micro-batch 0, of examples 0, 2, .*another mini-batch",
    ),
    "other dropout key": (
        lambda: check(
            grads=dropout_gradient(params_of_three(), jax.random.key(0)),
            grad_fn=lambda w: dropout_gradient(w, jax.random.key(1)),
        ),
        "another mini-batch, dropout key",
    ),
    "key drawn in grad_fn": (
        lambda: check(
            grads=dropout_gradient(params_of_three(), jax.random.key(0)), grad_fn=fresh_keys()
        ),
        "not a function of its params(?s:.*)another mini-batch, dropout key",
    ),
    "loss scale": (
        lambda: check(grads=scaled(1000.5)(params_of_three())),
        "grads are 1000 times as large: a loss scale",
    ),
    "sum over devices": (
        lambda: check(grads=scaled(8)(params_of_three())),
        r"grads are 8 times as large: a sum in place of a mean over 8 .*there are 8 devices",
    ),
    "sum over devices, of shard_map": (
        lambda: check(grads=mapped("sum")(params_of_three())),
        r"grads are 8 times as large: a sum in place of a mean over 8 .*there are 8 devices",
    ),
    "sum in grad_fn": (
        lambda: check(grad_fn=scaled(3)),
        r"grads are 0.3333 times as large: a sum in place of a mean over 3 ",
    ),
    "zeros in grads": (
        lambda: check(grads=with_zeros(GRADS)),
        r"grads are 0 at \['kernel'\]",
    ),
    "zeros in grad_fn": (
        lambda: check(grad_fn=lambda w: with_zeros(gradient(w))),
        r"grads alone are not 0 at \['kernel'\]\. Frozen leaves come alive",
    ),
    "mask before the link": (
        lambda: check(optax.chain(freeze(), make_chain())),
        r"must be the first of the chain.* there they are 0 at \['kernel'\]\. Frozen",
    ),
    "an optimizer before the link": (
        lambda: check(optax.chain(optax.adam(0.1), make_chain())),
        r"must be the first of the chain.* an optimizer, a clip or a mask is in front of it",
    ),
    "mask before the link, behind a cond": (
        lambda: check(optax.apply_if_finite(optax.chain(freeze(), make_chain()), 3)),
        r"must be the first of the chain.* there they are 0 at \['kernel'\]\. Frozen",
    ),
    "behind the optimizer": (
        lambda: check(optax.chain(optax.sgd(0.05), arsam_jax.sam(0.1))),
        r"there they are -0.05 times as large: an optimizer returned them",
    ),
    "clipped before": (
        lambda: check(optax.chain(optax.clip_by_global_norm(1e-3), make_chain())),
        r"there they are 0\.\d+ times as large: a loss scale, a clip",
    ),
    "a clip before that does not bite": (
        lambda: check(optax.chain(optax.clip_by_global_norm(1e3), make_chain())),
        r"before they reach it if they are 1e\+06 times as large: .* a clip",
    ),
    "an adaptive clip before that does not bite": (
        lambda: check(optax.chain(optax.adaptive_grad_clip(1e2), make_chain())),
        r"before they reach it if they are 1e\+06 times as large: .*a clip or a mask",
    ),
    "weight decay before": (
        lambda: check(optax.chain(optax.add_decayed_weights(0.01), make_chain())),
        r"there they have 0.01 · params added: weight decay",
    ),
    "weight decay on one side": (
        lambda: check(grads=with_decay(params_of_three())),
        r"grads have 0.1 · params added: weight decay",
    ),
    "auxiliary output": (
        lambda: check(grad_fn=lambda w: (gradient(w), {"batch_stats": 0})),
        r"grad_fn\(params\) must return gradients only",
    ),
    "missing examples": (lambda: check(make_chain(arsam_jax.esam(0.1))), "needs example_loss_fn"),
    "two mistakes": (
        lambda: check(make_chain(arsam_jax.esam(0.1)), scaled(8)(params_of_three())),
        "needs example_loss_fn(?s:.*)8 times as large",
    ),
    "missing grad_fn": (lambda: check(grad_fn=None), "needs grad_fn"),
    "no link": (
        lambda: check(optax.sgd(0.1)),
        "exactly one sharpness-aware transformation, found 0",
    ),
    "not finite": (lambda: check(grads=scaled(np.inf)(params_of_three())), "grads are not finite"),
    "other loss in value_fn": (
        lambda: check(value_fn=lambda w: loss_fn(w, make_batch(1))),
        "Compared with the gradient of value_fn, grads differ",
    ),
    "both sides N times too large": (
        lambda: check(
            grads=scaled(8)(params_of_three()),
            grad_fn=scaled(8),
            value_fn=lambda w: loss_fn(w, BATCH),
        ),
        "Compared with the gradient of value_fn, grads are 8 times as large",
    ),
    "other loss in example_loss_fn": (
        lambda: check(
            make_chain(arsam_jax.m_sam(0.1, 2)),
            example_loss_fn=example_loss_fn,
            batch=make_batch(1),
        ),
        "gradient of the mean of example_loss_fn, grads differ",
    ),
    "gradients of other parameters": (
        lambda: check(grads=GRADS | {"kernel": None}),
        r"grads must be shaped like params, got nothing in place of \(5, 4\) at \['kernel'\]",
    ),
    "not conjugated": (
        lambda: check(
            grads=jax.grad(complex_loss)(COMPLEX),
            params=COMPLEX,
            grad_fn=None,
            value_fn=complex_loss,
        ),
        "grads are the complex conjugates",
    ),
}

COMPLEX = {"w": jnp.array([1 + 2j, 0.5 - 1j], jnp.complex64)}


def complex_loss(params):
    return jnp.sum(jnp.abs(params["w"] - jnp.array([0.2j, 1 + 1j], jnp.complex64)) ** 2)


@pytest.mark.parametrize("mistake", cases(MISTAKES))
def test_names_the_mistake(mistake):
    call, message = MISTAKES[mistake]
    with pytest.raises(ValueError, match=rf"^check_wiring found:(?s:.*){message}"):
        call()


@pytest.mark.usefixtures("standard_promotion")
def test_names_multi_steps_around_the_link():
    with pytest.raises(ValueError, match=r"MultiSteps is around .*Accumulate inside grad_fn"):
        check(optax.MultiSteps(make_chain(), 2))


def narrow_compute(params):
    narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    return jax.tree.map(lambda g: g.astype(jnp.float32), gradient(narrow))


def accumulated(params):
    parts = [gradient(params, jax.tree.map(lambda x, k=k: x[k::4], BATCH)) for k in range(4)]
    return jax.tree.map(lambda *g: sum(g) / 4, *parts)


def mapped(transform):
    """The gradient averaged over eight devices in pmap or shard_map, for whole arrays."""
    mean = parallel.grad(loss_fn, "batch")
    if transform == "sum":  # what is averaged is already a sum over the devices
        mean = lambda *args: jax.lax.pmean(jax.grad(loss_fn)(*args), "batch")  # noqa: E731
    if transform != "pmap":
        mesh = Mesh(jax.devices(), ("batch",))
        sharded = jax.jit(jax.shard_map(mean, mesh=mesh, in_specs=(P(), P("batch")), out_specs=P()))
        return lambda params: sharded(params, BATCH)
    shards = jax.tree.map(lambda x: x.reshape(8, 2, *x.shape[1:]), BATCH)
    return lambda params: jax.pmap(mean, "batch")(params, shards)


RIGHT = {
    "plain": {},
    "jitted grads, eager grad_fn": {"grad_fn": lambda w: jax.grad(loss_fn)(w, BATCH)},
    "dropout": {
        "grads": dropout_gradient(params_of_three(), jax.random.key(1)),
        "grad_fn": lambda w: dropout_gradient(w, jax.random.key(1)),
    },
    "value_fn": {"grad_fn": None, "value_fn": lambda w: loss_fn(w, BATCH)},
    "both": {"value_fn": lambda w: loss_fn(w, BATCH)},
    "arsam": {"tx": make_chain(arsam_jax.arsam(0.1, 0.5))},
    "examples": {
        "tx": make_chain(arsam_jax.esam(0.1)),
        "example_loss_fn": example_loss_fn,
        "batch": BATCH,
    },
    "micro-batches": {
        "tx": make_chain(arsam_jax.m_sam(0.1, 2)),
        "example_loss_fn": example_loss_fn,
        "batch": BATCH,
        "microbatch_grads": microbatches.value_and_grad(example_loss_fn, 2)(
            params_of_three(), BATCH
        )[2],
    },
    "unread examples": {"example_loss_fn": lambda w, batch: 1 / 0, "batch": BATCH},
    "fisher of another mode": {  # running statistics there, as its docstring says
        "tx": make_chain(arsam_jax.sparse_sam(0.1, mask=sparse.fisher_mask)),
        "example_loss_fn": lambda w, batch: 2 * example_loss_fn(w, batch),
        "batch": BATCH,
    },
    "momentum": {"tx": make_chain(arsam_jax.momentum_sam(0.1))},
    "accumulation": {"grads": GRADS, "grad_fn": accumulated},
    "bfloat16 params": {"params": params_of_three(jnp.bfloat16)},
    "bfloat16 compute": {"grads": gradient(params_of_three()), "grad_fn": narrow_compute},
    "complex": {
        "params": COMPLEX,
        "grads": jax.tree.map(jnp.conj, jax.grad(complex_loss)(COMPLEX)),
        "grad_fn": lambda w: jax.tree.map(jnp.conj, jax.grad(complex_loss)(w)),
        "value_fn": complex_loss,
    },
    "if finite": {"tx": optax.apply_if_finite(make_chain(), 3)},
    "named": {"tx": optax.named_chain(("link", arsam_jax.sam(0.1)), ("base", optax.sgd(0.1)))},
    "injected": {
        "tx": optax.inject_hyperparams(lambda rho: make_chain(arsam_jax.sam(rho)))(rho=0.1)
    },
    "frozen at the end": {
        "tx": optax.chain(make_chain(), optax.masked(optax.set_to_zero(), FROZEN))
    },
    "zero gradient": {
        "grads": jax.tree.map(jnp.zeros_like, GRADS),
        "grad_fn": functools.partial(jax.tree.map, jnp.zeros_like),
    },
    "shard_map": {"grad_fn": lambda params: mapped("shard_map")(params)},
}


@pytest.mark.parametrize("use", cases(RIGHT))
def test_says_nothing_of_what_is_right(use):
    check(**RIGHT[use])


def test_says_nothing_of_what_pmap_returns():
    params = jax.tree.map(lambda x: jnp.stack([x] * 8), params_of_three())
    grad_fn = mapped("pmap")
    check(grads=grad_fn(params), params=params, grad_fn=grad_fn)


@pytest.mark.long
def test_its_advice_for_pmap_works_as_it_stands():
    """Inside pmap ``disable_jit`` does not help, so the error shows what does."""
    tx, params = make_chain(), params_of_three()
    batch = jax.tree.map(lambda x: x.reshape(8, 2, *x.shape[1:]), BATCH)

    def step(params, batch):
        check_wiring(tx, gradient(params, batch), params, grad_fn=lambda p: gradient(p, batch))

    with jax.disable_jit(), pytest.raises(TypeError, match="disable_jit does not help") as caught:
        jax.pmap(step, "i", in_axes=(None, 0))(params, batch)
    code = textwrap.dedent(str(caught.value).partition("of one device:\n")[2])
    names = {"jax": jax, "loss_fn": loss_fn, "params": params, "batch": batch, "tx": tx}
    exec(code, names | {"check_wiring": check_wiring})
    with pytest.raises(ValueError, match="grads are 8 times as large"):
        exec(code.replace("pmean(", "psum(", 1), names | {"check_wiring": against_the_mean})


def against_the_mean(tx, grads, params, *, grad_fn):
    check_wiring(tx, grads, params, grad_fn=gradient)


def test_inside_jit_there_is_nothing_to_compare():
    with pytest.raises(TypeError, match=r"(?s)check_wiring compares numbers.*disable_jit"):
        jax.jit(lambda w: check(params=w))(params_of_three())


def test_in_a_train_step_that_runs_once_without_jit():
    @jax.jit
    def step(params, batch):
        def grad_fn(params):
            return jax.grad(loss_fn)(params, batch)

        grads = gradient(params, make_batch(1))
        check_wiring(make_chain(), grads, params, grad_fn=grad_fn)

    with jax.disable_jit(), pytest.raises(ValueError, match="another mini-batch"):
        step(params_of_three(), BATCH)


@pytest.mark.usefixtures("standard_promotion")
def test_linen_with_batch_norm_and_dropout():
    state = test_flax.linen_state(test_flax.make_tx(arsam_jax.sam(0.1)))
    grad = jax.jit(jax.grad(test_flax.linen_loss, has_aux=True))

    def grad_fn(key):
        return lambda params: grad(params, state, key)[0]

    grads = grad_fn(jax.random.key(1))(state.params)
    check_wiring(state.tx, grads, state.params, grad_fn=grad_fn(jax.random.key(1)))
    with pytest.raises(ValueError, match="another mini-batch, dropout key"):
        check_wiring(state.tx, grads, state.params, grad_fn=grad_fn(jax.random.key(2)))


@needs_nnx
@pytest.mark.usefixtures("standard_promotion")
def test_nnx_with_batch_norm_and_dropout():
    model, optimizer = test_flax.nnx_setup(arsam_jax.sam(0.1))
    _, grads, grad_fn = nnx_value_and_grad(test_flax.nnx_loss, model)
    params = nnx.state(model, nnx.Param)
    check_wiring(optimizer.tx, grads, params, grad_fn=grad_fn)
    check_wiring(optimizer.tx, *as_pure((grads, params)), grad_fn=grad_fn)
    _, _, late = nnx_value_and_grad(test_flax.nnx_loss, model)
    with pytest.raises(ValueError, match="another mini-batch, dropout key"):
        check_wiring(optimizer.tx, grads, params, grad_fn=late)


@pytest.mark.long
@needs_nnx
@pytest.mark.usefixtures("standard_promotion")
def test_nnx_step_that_runs_once_without_jit():
    model, optimizer = test_flax.nnx_setup(arsam_jax.sam(0.1))

    @nnx.jit
    def step(model, optimizer):
        _, grads, grad_fn = nnx_value_and_grad(
            test_flax.with_aux, model, test_flax.X, test_flax.Y, has_aux=True, num_microbatches=2
        )
        params = nnx.state(model, nnx.Param)
        check_wiring(optimizer.tx, grads, params, grad_fn=grad_fn)
        optimizer.update(model, grads, grad_fn=grad_fn)

    with jax.disable_jit():
        step(model, optimizer)
    assert arsam_jax.metrics_dict(optimizer.opt_state)["num_sampled"] == 1


@needs_nnx
@pytest.mark.usefixtures("standard_promotion")
def test_nnx_model_that_grad_fn_moves():
    model, optimizer = test_flax.nnx_setup(arsam_jax.sam(0.1))

    def grad_fn(params):
        nnx.update(model, params)
        return as_pure(nnx.grad(test_flax.nnx_loss)(model))

    params = as_pure(nnx.state(model, nnx.Param))
    with pytest.raises(ValueError, match="not a function of its params alone"):
        check_wiring(optimizer.tx, grad_fn(params), params, grad_fn=grad_fn)
