"""``fast_convolutions`` gives the same bits and effects, with canonical convolutions on CPU."""

import functools
import re
import subprocess
import sys
import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.core import eval_jaxpr
from jax.experimental import io_callback
from jax.extend.core import Primitive
from jax.interpreters import mlir
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from arsam_jax import _convolutions as module
from arsam_jax import microbatches
from arsam_jax._convolutions import fast_convolutions
from tests.versions import needs_set_mesh

NHWC = ("NHWC", "HWIO", "NHWC")
NCHW = ("NCHW", "OIHW", "NCHW")
CROSSED = ("NHWC", "HWOI", "NHWC")


def normal(seed, shape, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def conv(x, w, numbers=NHWC, strides=(1, 1), padding: Any = "SAME", **kwargs):
    return lax.conv_general_dilated(x, w, strides, padding, dimension_numbers=numbers, **kwargs)


def in_cond(fn):
    """Calls `fn` in a branch that XLA cannot know to be taken."""

    def branching(params):
        shapes = jax.eval_shape(fn, params)
        probe = jnp.ravel(jax.tree.leaves(params)[0])[0]
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        return lax.cond(probe == probe, fn, lambda _: zeros, params)

    return branching


def convolutions(fn, *args):
    """The dimension numbers of the convolutions of the lowered fn, letters and digits only."""
    text = jax.jit(fn).lower(*args).as_text()
    numbers = re.findall(r"dim_numbers = \[(.*?)\]x\[(.*?)\]->\[(.*?)\]", text)
    assert len(numbers) == text.count("stablehlo.convolution")
    return [tuple(part.replace(", ", "") for part in n) for n in numbers]


def is_canonical(numbers):
    lhs, rhs, out = numbers
    spatial = "012"[: len(lhs) - 2]
    return lhs == out == f"b{spatial}f" and rhs == f"{spatial}io"


def all_canonical(fn, *args):
    found = convolutions(fn, *args)
    assert found
    return all(map(is_canonical, found))


def assert_same_bits(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def assert_close(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        tolerance = 8 * float(jnp.finfo(b.dtype).eps) * np.max(np.abs(b), initial=0)
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance)


def check(fn, params, inside=assert_same_bits):
    """The result is that of the jitted fn, by `inside` within a cond, its convolutions canonical.

    Bits within a cond can be compared with those of a convolution at the top level, not in a loop.
    """
    assert not all_canonical(fn, params), "nothing to rewrite: the test would be void"
    fast = fast_convolutions(fn)
    with jax.enable_checks(True):
        jaxpr = jax.make_jaxpr(fast)(params)
    assert jaxpr.out_avals == jax.make_jaxpr(fn)(params).out_avals
    assert all_canonical(in_cond(fast), params)
    inside(jax.jit(in_cond(fast))(params), jax.jit(fn)(params))


CONVOLUTIONS = {
    "plain": ((2, 8, 8, 3), (3, 3, 3, 4), {}),
    "strided": ((2, 9, 9, 3), (3, 3, 3, 4), {"strides": (2, 3)}),
    "lhs dilated": (
        (2, 5, 5, 3),
        (3, 3, 3, 4),
        {"lhs_dilation": (2, 1), "padding": ((1, 1), (1, 1))},
    ),
    "grouped": ((2, 8, 8, 4), (3, 3, 2, 6), {"feature_group_count": 2}),
    "depthwise": ((2, 8, 8, 4), (3, 3, 1, 4), {"feature_group_count": 4}),
    "NCHW": ((2, 3, 8, 8), (4, 3, 3, 3), {"numbers": NCHW}),
    "mixed layout": ((8, 2, 3, 8), (3, 4, 3, 3), {"numbers": ("HNCW", "IOWH", "CWNH")}),
    "1-D": ((2, 9, 3), (3, 3, 4), {"numbers": ("NHC", "HIO", "NHC"), "strides": (2,)}),
}


# XLA turns a grouped convolution into another one before it looks at the form.
REGROUPED = ["grouped"]


def gradient_and_params(name, dtype):
    x_shape, w_shape, kwargs = CONVOLUTIONS[name]
    params = {"x": normal(0, x_shape, dtype), "w": normal(1, w_shape, dtype)}
    return jax.grad(lambda p: jnp.sum(conv(p["x"], p["w"], **kwargs) ** 2)), params


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_gradients_of_every_convolution(name):
    gradient, params = gradient_and_params(name, jnp.float32)
    check(gradient, params, assert_close if name in REGROUPED else assert_same_bits)
    assert_same_bits(jax.jit(fast_convolutions(gradient))(params), jax.jit(gradient)(params))


@pytest.mark.parametrize("name", ["plain", "strided"])
def test_bfloat16(name):
    check(*gradient_and_params(name, jnp.bfloat16))


@jax.custom_jvp
def scaled_relu(x):
    return jnp.maximum(x, 0)


@scaled_relu.defjvp
def _(primals, tangents):
    return scaled_relu(*primals), 3.0 * tangents[0] * (primals[0] > 0).astype(tangents[0].dtype)


@jax.custom_vjp
def scaled_gradient(x):
    return x


scaled_gradient.defvjp(lambda x: (x, None), lambda _, g: (g * 5,))


@jax.custom_jvp
def jvp_conv(x, w):
    return conv(x, w, NCHW)


@jvp_conv.defjvp
def _(primals, tangents):
    (x, w), (dx, dw) = primals, tangents
    return conv(x, w, NCHW), 7 * (conv(dx, w, NCHW) + conv(x, dw, NCHW))


@jax.custom_vjp
def vjp_conv(x, w):
    return conv(x, w, NCHW)


vjp_conv.defvjp(
    lambda x, w: (conv(x, w, NCHW), (x, w)),
    lambda res, g: (conv(g, jnp.swapaxes(res[1], 0, 1), NCHW), 11 * jnp.ones_like(res[1])),
)


def scanned(w, x):
    return lax.scan(lambda x, w: (jnp.tanh(conv(x, w)), None), x, jnp.stack([w, 2 * w]))[0]


def checkpointed(w, x):
    return jax.checkpoint(lambda x: jnp.tanh(conv(jnp.tanh(conv(x, w)), w)))(x)


def branching(w, x):
    return lax.cond(x[0, 0, 0, 0] > 9, jnp.tanh, lambda x: jnp.tanh(conv(x, w)), x)


def switching(w, x):
    index = (x[0, 0, 0, 0] > -9).astype(int)
    return lax.switch(index, [jnp.tanh, lambda x: conv(x, w), lambda x: conv(conv(x, w), w)], x)


def looping(w, x):
    def body(c):
        return c[0] + 1, jnp.tanh(conv(c[1], frozen, CROSSED))

    frozen = lax.stop_gradient(w)
    x = lax.while_loop(
        lambda c: (c[0] < 3) & (jnp.sum(conv(c[1], frozen, CROSSED)) < 1e9),
        body,
        (0, x),
    )[1]
    return conv(x, w)


def nested_jit(w, x):
    layer = jax.jit(lambda x, w: jnp.tanh(conv(x, w)))
    return jax.jit(lambda x: layer(layer(x, w), w))(x)


def custom_rules_beside(w, x):
    return scaled_gradient(conv(scaled_relu(conv(x, w)), w))


def custom_rules_around(w, x):
    w = jnp.transpose(w, (3, 2, 0, 1))
    return vjp_conv(jvp_conv(jnp.transpose(x, (0, 3, 1, 2)), w), w)


def mapped(w, x):
    xs, ws = jnp.stack([x, 2 * x]), jnp.stack([w, 3 * w], axis=1)
    return jax.vmap(conv, in_axes=(0, 1))(xs, ws)


FLAT = [checkpointed, nested_jit, custom_rules_beside, custom_rules_around]
NESTED = [scanned, branching, switching, looping, mapped]


@pytest.mark.parametrize("model", FLAT + NESTED, ids=lambda m: m.__name__)
def test_reaches_every_depth(model):
    x = normal(0, (2, 6, 6, 4))
    gradient = jax.grad(lambda w: jnp.mean(model(w, x) ** 2))
    inside = assert_same_bits if model in FLAT else assert_close
    check(gradient, normal(1, (3, 3, 4, 4)) / 5, inside)


def test_gradients_of_microbatches():
    def example_loss_fn(w, x):
        return jnp.mean(conv(x, w) ** 2, axis=(1, 2, 3))

    take = microbatches.value_and_grad(example_loss_fn, 2)
    assert all_canonical(take, normal(1, (3, 3, 4, 4)), normal(0, (4, 6, 6, 4)))


@pytest.mark.parametrize("transform", [jax.jit, jax.vmap, lambda f: f])
def test_closes_over_outer_tracers(transform):
    xs, w = normal(0, (3, 2, 6, 6, 4)), normal(1, (3, 3, 4, 4))

    def step(wrap, x):
        return wrap(jax.grad(lambda w: jnp.sum(conv(x, w) ** 2)))(w)

    fast = transform(functools.partial(step, fast_convolutions))
    untouched = transform(functools.partial(step, lambda fn: fn))
    argument = xs if transform is jax.vmap else xs[0]
    assert_same_bits(fast(argument), untouched(argument))


def test_same_function_object_closing_over_something_else():
    x = normal(0, (2, 6, 6, 4))
    cell = {}
    fast = fast_convolutions(jax.grad(lambda w: jnp.sum(conv(cell["x"], w))))

    def step(w, x):
        cell["x"] = x
        return fast(w)

    w = normal(1, (3, 3, 4, 4))
    first = jax.jit(lambda w, x: step(w, x))(w, x)
    second = jax.jit(lambda w, x: step(w, 2 * x))(w, x)
    np.testing.assert_allclose(second, 2 * first)


def test_derivatives_of_the_result():
    x, w = normal(0, (2, 3, 6, 6)), normal(1, (3, 3, 3, 3))

    def forward(w):
        return jnp.mean(scaled_relu(vjp_conv(jvp_conv(x, w), w)) ** 2)

    assert all_canonical(fast_convolutions(forward), w)
    assert_same_bits(
        jax.jit(jax.grad(fast_convolutions(forward)))(w), jax.jit(jax.grad(forward))(w)
    )
    gradient = jax.grad(lambda w: jnp.mean(jnp.tanh(conv(x, w, NCHW)) ** 2))
    for derivative in [jax.jacfwd, jax.jacrev]:
        np.testing.assert_allclose(
            jax.jit(derivative(fast_convolutions(gradient)))(w),
            jax.jit(derivative(gradient))(w),
            rtol=1e-5,
            atol=1e-6,
        )


def printed(fn, *args):
    return re.sub("0x[0-9a-f]+", "", str(jax.make_jaxpr(fn)(*args)))


def test_untouched_equations_are_the_same():
    w = normal(0, (3, 3, 4, 4))

    def fn(w):
        y = jax.jit(scaled_relu)(scaled_gradient(jax.checkpoint(jnp.sin)(w)))
        return lax.scan(lambda c, x: (c + x, c), 0.0, jnp.ravel(y)), conv(w, w)

    assert printed(fast_convolutions(fn), w) == printed(fn, w)


class Pair(NamedTuple):
    first: Any
    second: Any


def test_pytrees_and_weak_types():
    params = {"w": normal(0, (3, 3, 3, 4)), "none": None, "pair": Pair(jnp.float32(1), 2.0)}
    x = normal(1, (2, 6, 6, 3))

    def fn(p):
        gradient = jax.grad(lambda w: jnp.sum(conv(x, w)) * p["pair"].first)(p["w"])
        weak = lax.full((2, 3, 6, 6), 2.0)
        return Pair({"g": gradient, "none": None}, [p["pair"], 3.0, 2, np.ones(2)]), conv(
            weak, lax.full((3, 3, 3, 3), 1.0), NCHW
        )

    fast = fast_convolutions(fn)
    actual, expected = (jax.make_jaxpr(f, return_shape=True)(params) for f in (fast, fn))
    assert actual[0].out_avals == expected[0].out_avals
    assert any(aval.weak_type for aval in actual[0].out_avals)
    assert jax.tree.structure(actual[1]) == jax.tree.structure(expected[1])
    assert_same_bits(jax.jit(fast)(params), jax.jit(fn)(params))
    assert fast(params)[0].first["none"] is None


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit, lambda f: jax.jit(in_cond(f))])
def test_effects_happen_once(transform, capfd):
    seen = []
    x = normal(0, (2, 6, 6, 3))

    def receive(value):
        seen.append(float(value))

    def reply(value):
        receive(value)
        return np.float32(1)

    def loss(w):
        y = jnp.sum(conv(x, w))
        jax.debug.callback(receive, y)
        jax.debug.print("y")
        return y

    def fn(w):
        gradient = jax.grad(loss)(w)
        out = io_callback(reply, jax.ShapeDtypeStruct((), jnp.float32), gradient[0, 0, 0, 0])
        return gradient * out

    fast = transform(fast_convolutions(fn))
    w = normal(1, (3, 3, 3, 4))
    jax.block_until_ready(fast(w))
    jax.block_until_ready(fast(w))
    jax.effects_barrier()
    assert len(seen) == 4
    assert capfd.readouterr().out == "y\ny\n"


def test_traces_once():
    traced = []
    x = normal(0, (2, 6, 6, 3))

    def loss(w):
        traced.append(w)
        return jnp.sum(conv(x, w))

    jax.jit(fast_convolutions(jax.grad(loss)))(normal(1, (3, 3, 3, 4)))
    assert len(traced) == 1


def test_other_platforms_get_the_untouched_function(monkeypatch):
    x, w = normal(0, (2, 6, 6, 4)), normal(1, (3, 3, 4, 4))
    gradient = jax.grad(lambda w: jnp.mean(jnp.tanh(conv(x, w)) ** 2))
    assert printed(fast_convolutions(gradient), w) != printed(gradient, w)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert printed(fast_convolutions(gradient), w) == printed(gradient, w)


def test_no_convolution_leaves_the_function_alone():
    w = normal(0, (4, 4))
    gradient = jax.grad(lambda w: jnp.sum(scaled_relu(w @ w)))
    assert printed(fast_convolutions(gradient), w) == printed(gradient, w)


@pytest.mark.filterwarnings("error")
def test_errors_of_the_function_pass():
    error = ValueError("mine")

    def fn(w):
        raise error

    with pytest.raises(ValueError, match="mine") as caught:
        fast_convolutions(fn)(1.0)
    assert caught.value is error


def test_falls_back_with_one_warning(monkeypatch):
    def broken(eqn):
        raise NotImplementedError("no such convolution")

    monkeypatch.setattr(module, "_canonical_convolution", broken)
    module._warn_once.cache_clear()
    x, w = normal(0, (2, 6, 6, 4)), normal(1, (3, 3, 4, 4))
    gradient = jax.grad(lambda w: jnp.mean(nested_jit(w, x) ** 2))
    with pytest.warns(RuntimeWarning, match="slow on CPU: .*no such convolution"):
        result = jax.jit(fast_convolutions(gradient))(w)
    assert_same_bits(result, jax.jit(gradient)(w))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        jax.jit(fast_convolutions(gradient))(w)


def test_unknown_higher_order_primitive():
    def call(*args, jaxpr):
        return eval_jaxpr(jaxpr.jaxpr, jaxpr.consts, *args)

    call_p = Primitive("call_of_unknown_kind")
    call_p.multiple_results = True
    call_p.def_impl(call)
    call_p.def_abstract_eval(lambda *_, jaxpr: jaxpr.out_avals)
    mlir.register_lowering(call_p, mlir.lower_fun(call, multiple_results=True))
    x, w = normal(0, (2, 3, 6, 6)), normal(1, (3, 3, 3, 3))
    jaxpr = jax.make_jaxpr(lambda x, w: conv(x, w, NCHW))(x, w)
    check(lambda w: call_p.bind(x, w, jaxpr=jaxpr), w)


@pytest.fixture
def mesh():
    return Mesh(np.array(jax.devices()[:2]), ("i",))


def shard_map(fn, mesh, in_specs, out_specs):
    if hasattr(jax, "shard_map"):
        return jax.shard_map(fn, mesh=mesh, in_specs=in_specs, out_specs=out_specs)
    from jax.experimental.shard_map import shard_map

    return shard_map(fn, mesh=mesh, in_specs=in_specs, out_specs=out_specs)


def mean_gradient(wrap, w, x):
    def loss(w):
        return lax.pmean(jnp.mean(jnp.tanh(conv(x, w)) ** 2), "i")

    return in_cond(wrap(lambda w: lax.psum(jax.grad(loss)(w), "i")))(w)


def test_pmap():
    w, x = normal(0, (3, 3, 4, 4)), normal(1, (2, 4, 8, 8, 4))
    ws = jnp.stack([w, w])
    fast = jax.pmap(functools.partial(mean_gradient, fast_convolutions), axis_name="i")
    untouched = jax.pmap(functools.partial(mean_gradient, lambda fn: fn), axis_name="i")
    np.testing.assert_allclose(fast(ws, x), untouched(ws, x), rtol=1e-5, atol=1e-7)


def test_shard_map_inside(mesh):
    x = normal(1, (8, 8, 8, 4))

    def local_loss(w, x):
        return lax.pmean(jnp.mean(jnp.tanh(conv(x, w)) ** 2), "i")

    loss = shard_map(local_loss, mesh, (P(), P("i")), P())
    check(jax.grad(lambda w: loss(w, x)), normal(0, (3, 3, 4, 4)))


@needs_set_mesh
def test_explicit_sharding():
    explicit = jax.make_mesh((2,), ("i",), axis_types=(jax.sharding.AxisType.Explicit,))
    with jax.set_mesh(explicit):
        x = jax.device_put(normal(1, (8, 4, 8, 8)), P("i"))

        def loss(w):
            return jnp.mean(conv(x, w, NCHW, out_sharding=P("i")) ** 2)

        loss = jax.grad(loss)
        fast, w = fast_convolutions(loss), normal(0, (4, 4, 3, 3))
        assert all_canonical(fast, w)
        assert_same_bits(jax.jit(fast)(w), jax.jit(loss)(w))


WITHOUT_INTERNALS = """
import sys, warnings
import jax.extend.core.primitives as primitives
del primitives.{name}
warnings.simplefilter("error")
import jax, jax.numpy as jnp
import arsam_jax

def loss_fn(w, x):
    y = jax.lax.conv(x, w, (1, 1), "SAME") if w.ndim == 4 else x @ w
    return jnp.sum(y**2)

def step(w, x):
    tx = arsam_jax.sam_every_k(0.1, 2)
    grad_fn = lambda w: jax.grad(loss_fn)(w, x)
    return jax.jit(lambda w: tx.update(grad_fn(w), tx.init(w), w, grad_fn=grad_fn)[0])(w)

step(jnp.ones((3, 2)), jnp.ones((4, 3)))  # no convolution, no warning
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for _ in range(2):
        result = step(jnp.ones((2, 3, 3, 3)), jnp.ones((1, 3, 5, 5)))
assert jnp.isfinite(result).all()
print(*(w.message for w in caught), sep="\\n")
"""


def test_without_jax_internals_the_package_works_and_warns_once():
    """Another version of JAX may have moved the names that the rewriting needs."""
    code = WITHOUT_INTERNALS.format(name="conv_general_dilated_p")
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    (warning,) = result.stdout.splitlines()
    assert "20 to 40 times slower on CPU" in warning
    assert "conv_general_dilated_p" in warning
