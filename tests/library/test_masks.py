"""Masks by name: which parameters are perturbed, in every framework, and what that saves."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import arsam_jax
from arsam_jax import _tree, masks, probe, sharpness_aware
from tests.least_squares import assert_follows, gradient, split
from tests.problem import BATCH, loss_fn, make_batch, make_params

RHO = 0.3


class LinenNetwork(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.BatchNorm(use_running_average=False)(nn.Dense(3)(x))
        return nn.Dense(2, name="head")(nn.LayerNorm()(x))


class NNXNetwork(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(4, 3, rngs=rngs)
        self.ln1 = nnx.LayerNorm(3, rngs=rngs)
        self.head = nnx.Linear(3, 2, rngs=rngs)


class EquinoxNetwork(eqx.Module):
    layers: list
    norm: eqx.nn.RMSNorm
    head: eqx.nn.Linear

    def __init__(self):
        first, last = jax.random.split(jax.random.key(0))
        self.layers = [eqx.nn.Linear(4, 3, key=first)]
        self.norm = eqx.nn.RMSNorm(3)
        self.head = eqx.nn.Linear(3, 2, key=last)


def linen():
    variables = jax.eval_shape(LinenNetwork().init, jax.random.key(0), jnp.ones((2, 4)))
    return variables["params"]


def nnx_state():
    return nnx.eval_shape(lambda: nnx.state(NNXNetwork(nnx.Rngs(0)), nnx.Param))


def nnx_pure():
    return nnx.to_pure_dict(nnx_state())


def equinox():
    return eqx.filter(eqx.filter_eval_shape(EquinoxNetwork), lambda x: hasattr(x, "shape"))


def plain():
    names = ("bn_1", "ln", "head", "lnear", "encoder_norm")
    return {name: {"w": np.ones((2, 2)), "b": np.ones(2)} for name in names}


def selected(mask, params):
    found = mask(params)
    assert jax.tree.structure(found) == jax.tree.structure(params)
    return {name for name, x in zip(_tree.names(params), jax.tree.leaves(found), strict=True) if x}


@pytest.mark.parametrize(
    ("make", "normalization", "head", "biases"),
    [
        (
            linen,
            {"BatchNorm_0/scale", "BatchNorm_0/bias", "LayerNorm_0/scale", "LayerNorm_0/bias"},
            {"head/kernel", "head/bias"},
            {"BatchNorm_0/bias", "LayerNorm_0/bias", "Dense_0/bias", "head/bias"},
        ),
        (
            nnx_state,
            {"ln1/scale/value", "ln1/bias/value"},
            {"head/kernel/value", "head/bias/value"},
            {"first/bias/value", "ln1/bias/value", "head/bias/value"},
        ),
        (
            nnx_pure,
            {"ln1/scale", "ln1/bias"},
            {"head/kernel", "head/bias"},
            {"first/bias", "ln1/bias", "head/bias"},
        ),
        (
            equinox,
            {"norm/weight", "norm/bias"},
            {"head/weight", "head/bias"},
            {"layers/0/bias", "norm/bias", "head/bias"},
        ),
        (
            plain,
            {f"{name}/{leaf}" for name in ("bn_1", "ln", "encoder_norm") for leaf in "wb"},
            {"head/w", "head/b"},
            {f"{name}/b" for name in ("bn_1", "ln", "head", "lnear", "encoder_norm")},
        ),
    ],
    ids=["linen", "nnx", "nnx_pure", "equinox", "plain"],
)
@pytest.mark.usefixtures("standard_promotion")
def test_names_select_in_every_framework(make, normalization, head, biases):
    params = make()
    assert selected(masks.normalization(), params) == normalization
    assert selected(masks.matching("^Head/"), params) == head
    assert selected(masks.without_biases(), params) == set(_tree.names(params)) - biases


@pytest.mark.usefixtures("x64")
def test_masked_sam_follows_its_paper():
    """SAM-ON (arXiv 2306.04226) and its code: the norm is that of the selected gradients."""

    def reference(step, w, batch, sampled):
        g = gradient(w, batch)
        g[:6] = 0  # a
        return gradient(w + RHO * g / np.linalg.norm(g), batch), True

    assert_follows(arsam_jax.masked_sam(RHO, masks.matching("b")), reference)


@pytest.mark.usefixtures("x64")
def test_every_step_of_the_ascent_is_masked():
    def reference(step, w, batch, sampled):
        point = w
        for _ in range(2):
            g = gradient(point, batch)
            g[:6] = 0
            point = point + RHO / 2 * g / np.linalg.norm(g)
        return gradient(point, batch), True

    own_probe = probe.multi_step(2, mask=split(np.arange(8) > 5))
    with pytest.raises(ValueError, match="mask must be a tree of bools"):  # of arrays
        sharpness_aware(RHO, probe=own_probe).init(split(np.ones(8)))
    own_probe = probe.multi_step(2, mask={"a": False, "b": True})
    assert_follows(sharpness_aware(RHO, probe=own_probe), reference)


def perturbed_point(tx):
    params, seen = make_params(), []
    grads = jax.grad(loss_fn)(params, make_batch(0))

    def grad_fn(point):
        seen.append(point)
        return grads

    tx.update(grads, tx.init(params), params, grad_fn=grad_fn)
    return seen[-1]


def test_what_is_not_selected_is_the_same_array():
    point, params = (
        perturbed_point(arsam_jax.masked_sam(RHO, masks.matching("kernel"))),
        make_params(),
    )
    np.testing.assert_array_equal(point["bias"], params["bias"])
    step = np.asarray(point["kernel"] - params["kernel"])
    np.testing.assert_allclose(np.linalg.norm(step), RHO, rtol=1e-5)


def test_a_mask_that_selects_everything_is_sam_bit_for_bit():
    everything = arsam_jax.masked_sam(RHO, masks.matching(""))
    ours, sam = perturbed_point(everything), perturbed_point(arsam_jax.sam(RHO))
    for name in ("kernel", "bias", "scale"):
        np.testing.assert_array_equal(ours[name], sam[name])


def test_logits_sam_costs_a_quarter_more_than_the_base_optimizer():
    """A network of three layers: 8 matrix products, SAM 16, of the output layer alone 10."""
    params = {name: jnp.ones((32, 32)) for name in ("first", "second", "head")}

    def grad_fn(params, x):
        def loss(params):
            hidden = jnp.tanh(jnp.tanh(x @ params["first"]) @ params["second"])
            return jnp.square(hidden @ params["head"]).mean()

        return jax.grad(loss)(params)

    def products(tx):
        def step(state, params, x):
            update = optax.with_extra_args_support(tx).update
            return update(grad_fn(params, x), state, params, grad_fn=lambda p: grad_fn(p, x))

        lowered = jax.jit(step).lower(tx.init(params), params, jnp.ones((BATCH, 32)))
        return str(lowered.compile().as_text()).count(" dot(")

    assert products(optax.identity()) == 8
    assert products(arsam_jax.sam(RHO)) == 16
    assert products(arsam_jax.masked_sam(RHO, masks.matching("head"))) == 10


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (
            masks.matching("encoder"),
            r"pattern must match .* got 'encoder'.* names are bias, kernel",
        ),
        ({"kernel": True}, "mask must be a tree of bools like the parameters"),
        (lambda p: jax.tree.map(jnp.ones_like, p), "mask must be a tree of bools"),
        (lambda p: jax.tree.map(lambda x: False, p), "mask must select at least one parameter"),
    ],
    ids=["no_match", "structure", "arrays", "nothing"],
)
def test_a_wrong_mask_is_an_error_in_init(mask, message):
    with pytest.raises(ValueError, match=message):
        arsam_jax.masked_sam(RHO, mask).init(make_params())


def test_a_pattern_is_checked_when_the_mask_is_made():
    with pytest.raises(ValueError, match=r"pattern must be a regular expression, got '\('"):
        masks.matching("(")
    with pytest.raises(TypeError, match=r"pattern must be a string, got 3"):
        masks.matching(3)  # pyright: ignore


def test_inject_hyperparams_has_to_leave_a_mask_alone():
    tx = optax.inject_hyperparams(arsam_jax.masked_sam)(RHO, masks.matching("kernel"))
    with pytest.raises(TypeError, match=r"name 'mask' in its static_args"):
        tx.init(make_params())


def test_a_frozen_leaf_of_the_tree_stays_out_of_the_mask():
    params = {"trained": jnp.ones(2), "frozen": None}
    tx = arsam_jax.masked_sam(RHO, masks.matching("trained"))
    updates, _ = tx.update(params, tx.init(params), params, grad_fn=lambda p: p)
    assert updates["frozen"] is None
    np.testing.assert_allclose(join_of(updates), 1 + RHO / np.sqrt(2), rtol=1e-6)


def join_of(tree):
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])
