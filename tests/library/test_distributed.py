"""Methods on four devices give the results of one device, and devices decide alike."""

import functools
import os
import subprocess
import sys
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import arsam_jax
from arsam_jax import microbatches, parallel, sampling
from tests.methods import METHODS, every_method
from tests.versions import cases, needs_set_mesh, needs_shard_map

STEPS, DEVICES, BATCH, INPUTS, HIDDEN = 40, 4, 16, 8, 16
EXAMPLES = 64  # The size of the data set in tests.methods.
ALL = ("pmap", "shard_map", "shard_map unchecked", "jit sharded", "explicit", "explicit sharded")
# Every kind of parallelism, and every method that takes gradients itself in one of them.
CASES = [("arsam", where) for where in ALL]
CASES += [("sparse_sam", "shard_map"), ("budgeted_m_sam", "shard_map")]
CASES += [("esam", "explicit sharded"), ("ausam", "explicit")]
MORE = [(name, "shard_map") for name in ("sampa", "k_sam", "rw_sam", "gam")]
MORE += [(name, where) for name in ("esam", "m_sam", "ausam", "sparse_sam") for where in ALL]
MORE = [case for case in MORE if case not in CASES]


@pytest.fixture(autouse=True)
def double(x64):
    """Float64 keeps rounding errors small over many steps."""


def make_params():
    rng = np.random.default_rng(0)
    return {
        "first": jnp.asarray(rng.normal(size=(INPUTS, HIDDEN)) / 3),
        "scale": jnp.ones(HIDDEN),
        "shift": jnp.zeros(HIDDEN),
        "last": jnp.asarray(rng.normal(size=(HIDDEN,)) / 4),
    }


def make_batches():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(STEPS, BATCH, INPUTS))
    y = np.sin(x.sum(-1)) + 0.1 * rng.normal(size=(STEPS, BATCH))
    index = np.stack([rng.permutation(EXAMPLES)[:BATCH] for _ in range(STEPS)])
    return jnp.asarray(x), jnp.asarray(y), jnp.asarray(index, jnp.int32)


def forward(params, x, mean, variance, keep):
    """A layer with BatchNorm and dropout, and one number for each example."""

    def wide(row):
        return jnp.broadcast_to(row, hidden.shape)

    hidden = x @ params["first"]
    hidden = (hidden - wide(mean)) / jnp.sqrt(wide(variance) + 1e-3)
    hidden = jnp.tanh(hidden * wide(params["scale"]) + wide(params["shift"]))
    return (hidden * keep.astype(hidden.dtype) / 0.8) @ params["last"]


def make_step(tx, axis_name=None, gathered=lambda params: params):
    """``(carry, batch) -> (carry, sampled)`` on the whole batch, or a device's part of it."""

    def mean(x):
        return x if axis_name is None else jax.lax.pmean(x, axis_name)

    def loss_fn(params, statistics, batch, key):
        params, (x, y) = gathered(params), batch
        hidden = x @ params["first"]
        batch_mean = mean(hidden.mean(0))
        variance = mean(jnp.square(hidden).mean(0)) - jnp.square(batch_mean)
        keep = jax.random.bernoulli(key, 0.8, (BATCH, HIDDEN))
        if axis_name is not None:  # of the whole batch, on each device its own rows
            keep = jax.lax.dynamic_slice_in_dim(
                keep, jax.lax.axis_index(axis_name) * len(x), len(x)
            )
        error = forward(params, x, batch_mean, variance, keep) - y
        moved = jax.tree.map(lambda a, b: 0.9 * a + 0.1 * b, statistics, (batch_mean, variance))
        return jnp.square(error).mean(), moved

    def example_loss_fn(params, batch, statistics):
        params, (x, y) = gathered(params), batch
        keep = jnp.ones((len(x), HIDDEN), bool)
        mean, variance = statistics
        return jnp.square(forward(params, x, mean, variance, keep) - y)

    if axis_name is None:
        value_and_grad = jax.value_and_grad(loss_fn, has_aux=True)
    else:
        value_and_grad = parallel.value_and_grad(loss_fn, axis_name, has_aux=True)

    def step(carry, batch):
        params, statistics, opt_state = carry
        *batch, index = batch
        key = jax.random.fold_in(jax.random.key(0), arsam_jax.get_state(opt_state).step)
        (_, moved), grads = value_and_grad(params, statistics, batch, key)
        updates, opt_state = tx.update(
            grads,
            opt_state,
            params,
            grad_fn=lambda params: value_and_grad(params, statistics, batch, key)[1],
            previous_grad_fn=lambda params: value_and_grad(params, statistics, batch, key)[1],
            direction=params,
            example_loss_fn=functools.partial(example_loss_fn, statistics=statistics),
            batch=batch,
            example_index=index,
            axis_name=axis_name,
        )
        carry = optax.apply_updates(params, updates), moved, opt_state
        return carry, arsam_jax.get_metrics(opt_state).sampled

    return step


def scanned(step):
    return lambda carry, batches: jax.lax.scan(step, carry, batches)


def make_tx(name):
    return optax.chain(METHODS[name].make(), optax.sgd(0.05, momentum=0.9))


def start(tx, params):
    return params, (jnp.zeros(HIDDEN), jnp.ones(HIDDEN)), tx.init(params)


@functools.cache
def on_one_device(name):
    tx = make_tx(name)
    return jax.jit(scanned(make_step(tx)))(start(tx, make_params()), make_batches())


def mesh_of(regime):
    kind = jax.sharding.AxisType.Explicit if "explicit" in regime else jax.sharding.AxisType.Auto
    devices = jax.devices()[:DEVICES]
    return jax.make_mesh((DEVICES,), ("batch",), axis_types=(kind,), devices=devices)


def spec_of_params(regime):
    return P("batch") if "sharded" in regime else P()


def on_shards(tx, regime):
    """The steps without an axis name, and their arguments, on the mesh that is set."""
    params = jax.device_put(make_params(), spec_of_params(regime))
    batches = jax.device_put(make_batches(), P(None, "batch"))

    def gathered(params):
        return jax.sharding.reshard(params, P()) if "explicit" in regime else params

    return scanned(make_step(tx, gathered=gathered)), (start(tx, params), batches)


def in_shard_map(tx, check_vma=True):
    return jax.jit(
        jax.shard_map(
            scanned(make_step(tx, "batch")),
            mesh=jax.sharding.Mesh(jax.devices()[:DEVICES], ("batch",)),
            in_specs=(P(), P(None, "batch")),
            out_specs=P(),
            check_vma=check_vma,
        )
    )


@functools.cache
def on_devices(name, regime):
    tx, devices = make_tx(name), jax.devices()[:DEVICES]
    if regime == "pmap":
        carry = jax.tree.map(lambda x: jnp.stack([x] * DEVICES), start(tx, make_params()))
        parts = jax.tree.map(
            lambda x: x.reshape(STEPS, DEVICES, -1, *x.shape[2:]).swapaxes(0, 1), make_batches()
        )
        result = jax.pmap(scanned(make_step(tx, "batch")), "batch", devices=devices)(carry, parts)
        first = jax.tree.map(lambda x: x[0], result)
        for device in range(1, DEVICES):  # replicas stay replicas, bit for bit
            chex.assert_trees_all_equal(jax.tree.map(lambda x, d=device: x[d], result), first)
        return first
    if regime.startswith("shard_map"):
        mapped = in_shard_map(tx, check_vma=regime == "shard_map")
        return mapped(start(tx, make_params()), make_batches())

    mesh = mesh_of(regime)
    with jax.set_mesh(mesh):
        step, (carry, batches) = on_shards(tx, regime)
        (params, *rest), sampled = jax.jit(step, donate_argnums=0)(carry, batches)
        # A buffer shaped like the parameters is where they are.
        sharding = NamedSharding(mesh, spec_of_params(regime))
        for tree in (params, getattr(arsam_jax.get_state(rest[1]).correction, "psf", params)):
            assert all(sharding.is_equivalent_to(x.sharding, x.ndim) for x in tree.values())
        return (params, *rest), sampled


@pytest.mark.parametrize(("name", "regime"), cases(CASES) + cases(MORE, pytest.mark.long))
def test_devices_give_the_results_of_one_device(name, regime):
    carry, sampled = jax.device_get(on_devices(name, regime))
    if METHODS[name].method.is_local and not regime.startswith(("jit", "explicit")):
        expected = on_devices(name, "pmap")  # By definition it is not that of one device.
    else:
        expected = on_one_device(name)
    expected_carry, expected_sampled = jax.device_get(expected)
    np.testing.assert_array_equal(sampled, expected_sampled)
    assert sampled.any()
    chex.assert_trees_all_close(carry, expected_carry, rtol=1e-6, atol=1e-7)


@needs_shard_map
@pytest.mark.parametrize("name", METHODS)
def test_parameters_state_and_decisions_are_replicated_by_their_types(name):
    """Otherwise ``shard_map`` does not return them with the specification ``P()``."""
    tx = make_tx(name)
    arguments = jax.eval_shape(lambda: (start(tx, make_params()), make_batches()))
    traced = in_shard_map(tx).trace(*arguments)
    assert jax.tree.structure(traced.out_info[0]) == jax.tree.structure(arguments[0])


@needs_set_mesh
@pytest.mark.parametrize("name", every_method())
def test_shardings_are_those_of_the_start(name):
    """With explicit sharding the shardings of parameters and state are part of their types."""
    with jax.set_mesh(mesh_of("explicit")):
        step, (carry, batches) = on_shards(make_tx(name), "explicit sharded")
        *after, _ = jax.jit(step).trace(carry, batches).jaxpr.out_avals
    before = map(jax.typeof, jax.tree.leaves(carry))
    assert [x.sharding.spec for x in after] == [x.sharding.spec for x in before]


def unit_loss(w, x):
    return jnp.square(x @ w).mean()


def mapped_over(devices, function, in_specs, out_specs=None, check_vma=True):
    mesh = jax.sharding.Mesh(devices, ("batch",))
    return jax.jit(
        jax.shard_map(
            function,
            mesh=mesh,
            in_specs=in_specs,
            out_specs=P() if out_specs is None else out_specs,
            check_vma=check_vma,
        )
    )


@pytest.mark.parametrize("has_aux", [False, True])
@pytest.mark.parametrize("regime", cases(["pmap", "vmap", "shard_map", "shard_map unchecked"]))
def test_value_and_grad_is_that_of_the_whole_batch(regime, has_aux):
    rng = np.random.default_rng(0)
    w, x = jnp.asarray(rng.normal(size=3)), jnp.asarray(rng.normal(size=(8, 3)))

    def loss_fn(w, x):
        return (unit_loss(w, x), jax.lax.pmean(x.sum(), "batch")) if has_aux else unit_loss(w, x)

    function = parallel.value_and_grad(loss_fn, "batch", has_aux=has_aux)
    grads_only = parallel.grad(loss_fn, "batch", has_aux=has_aux)

    def both(w, x):
        return function(w, x), grads_only(w, x)

    if regime == "pmap":
        pmapped = jax.pmap(both, "batch", in_axes=(None, 0), devices=jax.devices()[:4])
        result = jax.tree.map(lambda x: x[0], pmapped(w, x.reshape(4, 2, 3)))
    elif regime == "vmap":
        vmapped = jax.vmap(both, in_axes=(None, 0), axis_name="batch")
        result = jax.tree.map(lambda x: x[0], vmapped(w, x.reshape(4, 2, 3)))
    else:
        checked = regime == "shard_map"
        specs = (P(), P("batch"))
        result = mapped_over(jax.devices()[:4], both, specs, check_vma=checked)(w, x)
    (value, grads), only = result
    value, aux = value if has_aux else (value, None)
    only, other_aux = only if has_aux else (only, None)
    expected_value, expected_grads = jax.value_and_grad(unit_loss)(w, x)
    np.testing.assert_allclose(value, expected_value, rtol=1e-12)
    np.testing.assert_allclose(grads, expected_grads, rtol=1e-12)
    np.testing.assert_array_equal(only, grads)
    if has_aux:
        np.testing.assert_allclose(np.array([aux, other_aux]), float(x.sum()) / 4, rtol=1e-12)


@needs_shard_map
def test_a_loss_that_is_averaged_already_is_refused():
    function = parallel.grad(lambda w, x: jax.lax.pmean(unit_loss(w, x), "batch"), "batch")
    with pytest.raises(ValueError, match="without a mean over devices"):
        mapped_over(jax.devices()[:4], function, (P(), P("batch")))(jnp.ones(3), jnp.ones((8, 3)))


@needs_shard_map
@pytest.mark.parametrize("cause", ["gradients", "keys", "parameters"])
def test_a_decision_that_varies_is_an_error_at_trace_time(cause):
    """What would hang, or measure the norm of a shard, as far as shard_map can see."""
    tx = arsam_jax.arsam(0.1, 0.4)

    def step(w, state, x):
        if cause == "keys":
            key = state.sampling.key.reshape(2)
            state = state._replace(sampling=state.sampling._replace(key=key))
            grad_fn = parallel.grad(lambda w: unit_loss(w, x), "batch")
        else:  # those of the device's own examples

            def grad_fn(w):
                if cause == "gradients":
                    w = jax.lax.pcast(w, ("batch",), to="varying")
                return jax.grad(unit_loss)(w, x)

        return tx.update(grad_fn(w), state, w, grad_fn=grad_fn)[0]

    state, specs = tx.init(jnp.ones(3)), P()
    if cause == "keys":
        keys = jnp.stack([jnp.arange(2, dtype=jnp.uint32) + i for i in range(4)])
        state = state._replace(sampling=state.sampling._replace(key=keys))
        specs = jax.tree.map(lambda _: P(), state)
        specs = specs._replace(sampling=specs.sampling._replace(key=P("batch")))
    of_params = P("batch") if cause == "parameters" else P()
    with pytest.raises(ValueError, match=r"over the mapped axis 'batch'.*Average the gradients"):
        mapped_over(jax.devices()[:4], step, (of_params, specs, P("batch")), P("batch"))(
            jnp.ones(12 if cause == "parameters" else 3), state, jnp.ones((8, 3))
        )


@needs_shard_map
@pytest.mark.parametrize("name", [name for name, m in METHODS.items() if m.needs_examples])
@pytest.mark.parametrize("axis_name", [None, "model"])
def test_a_forgotten_axis_name_is_an_error_at_trace_time(name, axis_name):
    """Every part that takes gradients of its own would sum them, or see one device's alone."""
    tx = METHODS[name].make(**({"gamma": 0.5} if name == "esam_per_tensor" else {}))

    def step(w, state, x):
        grad_fn = parallel.grad(lambda w: unit_loss(w, x), ("batch", "model"))
        extra = {"example_loss_fn": lambda w, x: jnp.square(x @ w), "batch": x}
        extra["example_index"] = jnp.arange(len(x), dtype=jnp.int32)
        return tx.update(grad_fn(w), state, w, grad_fn=grad_fn, axis_name=axis_name, **extra)[0]

    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("batch", "model"))
    specs = P(), P(), P(("batch", "model"))
    mapped = jax.jit(jax.shard_map(step, mesh=mesh, in_specs=specs, out_specs=P()))
    missing = "'batch', 'model'" if axis_name is None else "'batch'"
    with pytest.raises(ValueError, match=f"mapped axis {missing}, and axis_name is {axis_name!r}"):
        mapped(jnp.ones(3), tx.init(jnp.ones(3)), jnp.ones((8, 3)))


SAM = arsam_jax.sam(0.1)


def count_gradient_all_reduces(hlo: str) -> int:
    """All-reduces of something as large as the parameters, a (40, 30) matrix."""
    results = [line.split(" all-reduce(")[0] for line in hlo.splitlines() if " all-reduce(" in line]
    return sum("[40,30]" in result or "[30,40]" in result for result in results)


@pytest.mark.parametrize(
    ("link", "expected"),
    [
        (arsam_jax.sharpness_aware(0.1, sampling=sampling.never()), 1),
        (SAM, 2),
        (arsam_jax.arsam(0.1, 0.4), 2),  # one of them in the branch of the sampled step
        (arsam_jax.budgeted_sam(0.1), 2),
    ],
    ids=["unsampled", "sam", "arsam", "budgeted_sam"],
)
def test_gradient_all_reduces_with_named_sharding(link, expected):
    mesh = jax.sharding.Mesh(jax.devices()[:4], ("batch",))
    w = jax.device_put(jnp.ones((40, 30)), NamedSharding(mesh, P()))
    x = jax.device_put(jnp.ones((8, 40)), NamedSharding(mesh, P("batch")))

    def step(w, state, x):
        grad_fn = jax.grad(lambda w: unit_loss(w, x))
        updates, state = link.update(grad_fn(w), state, w, grad_fn=grad_fn)
        return optax.apply_updates(w, updates), state

    state = link.init(w)
    hlo = str(jax.jit(step).lower(w, state, x).compile().as_text())
    assert count_gradient_all_reduces(hlo) == expected
    outside_of_branches = hlo.split("\nENTRY ")[1]
    always = 2 if link is SAM else 1  # which samples every step, so that it has no branches
    assert count_gradient_all_reduces(outside_of_branches) == always


@needs_shard_map
@pytest.mark.parametrize("gives_its_gradient", [False, True])
def test_perturbation_of_each_shard_needs_one_all_reduce_and_is_its_formula(gives_its_gradient):
    """g_A = mean_i ∇L_i(w + ρ ∇L_i(w) / ‖∇L_i(w)‖), i over the devices."""
    link = arsam_jax.m_sam(0.1, num_microbatches=1)
    rng = np.random.default_rng(0)
    w, x = jnp.asarray(rng.normal(size=(40, 30))), jnp.asarray(rng.normal(size=(8, 40)))

    def step(w, state, x):
        grad_fn = parallel.grad(lambda w: unit_loss(w, x), "batch")
        extra: dict = {"batch": x, "axis_name": "batch"}
        grads: Any = grad_fn(w)
        if gives_its_gradient:
            take = microbatches.value_and_grad(example_loss_fn, 1, axis_name="batch")
            _, grads, extra["microbatch_grads"] = take(w, x)
        return link.update(
            grads, state, w, grad_fn=grad_fn, example_loss_fn=example_loss_fn, **extra
        )[0]

    def example_loss_fn(w, x):
        return jnp.square(x @ w).mean(1)

    mapped = mapped_over(jax.devices()[:4], step, (P(), P(), P("batch")))
    state = link.init(w)
    assert count_gradient_all_reduces(mapped.lower(w, state, x).compile().as_text()) == 1

    expected = np.zeros((40, 30))
    for part in np.split(np.asarray(x), 4):
        gradient = 2 * part.T @ (part @ w) / (len(part) * 30)
        point = w + 0.1 * gradient / np.linalg.norm(gradient)
        expected += 2 * part.T @ (part @ point) / (len(part) * 30) / 4
    np.testing.assert_allclose(mapped(w, state, x), expected, rtol=1e-10)


@pytest.mark.parametrize("name", ["arsam", pytest.param("sparse_sam", marks=pytest.mark.long)])
def test_a_state_moves_to_another_number_of_devices(name, tmp_path):
    """A run saved from four devices with sharded parameters continues on two of them."""
    tx = make_tx(name)
    batches = make_batches()
    run = jax.jit(scanned(make_step(tx)))

    def on(count):
        mesh = jax.sharding.Mesh(jax.devices()[:count], ("batch",))
        return lambda tree: jax.tree.map(
            lambda x: jax.device_put(
                x, NamedSharding(mesh, P("batch") if x.shape[:1] in ((8,), (16,)) else P())
            ),
            tree,
        )

    def first(batches, steps):
        return jax.tree.map(lambda x: x[:steps], batches)

    def last(batches, steps):
        return jax.tree.map(lambda x: x[steps:], batches)

    carry, _ = run(on(4)(start(tx, make_params())), first(batches, 20))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", carry)
        checkpointer.wait_until_finished()
        target = on(2)(start(tx, make_params()))
        restored = checkpointer.restore(tmp_path / "state", target)
    for x, y in zip(jax.tree.leaves(restored), jax.tree.leaves(target), strict=True):
        assert x.sharding == y.sharding
    chex.assert_trees_all_equal(jax.device_get(restored), jax.device_get(carry))
    parallel.check_same_everywhere(restored[2])
    result, sampled = jax.device_get(run(restored, last(batches, 20)))
    expected, expected_sampled = jax.device_get(on_one_device(name))
    np.testing.assert_array_equal(sampled, expected_sampled[20:])
    chex.assert_trees_all_close(result, expected, rtol=1e-6, atol=1e-7)


def test_a_state_that_differs_between_devices_is_found():
    def state_of(seed):
        return arsam_jax.arsam(0.1, 0.4, seed=seed).init({"w": jnp.ones(3)})

    devices = jax.devices()[:4]
    parallel.check_same_everywhere(state_of(0))
    parallel.check_same_everywhere(jax.pmap(lambda _: state_of(0), devices=devices)(jnp.arange(4)))
    with pytest.raises(ValueError, match=r"\['sampling'\]\.key differs between devices"):
        parallel.check_same_everywhere(jax.pmap(state_of, devices=devices)(jnp.arange(4)))


def launch(script, *arguments, devices):
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    if "hang" in arguments:
        flags += " --xla_cpu_collective_call_warn_stuck_timeout_seconds=2"
        flags += " --xla_cpu_collective_call_terminate_timeout_seconds=6"
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


SEPARATE_DECISIONS = """
import jax, jax.numpy as jnp, arsam_jax
from jax.sharding import PartitionSpec as P

def run(link, averaged, extra):
    def steps(seed, x):
        w = jnp.ones(3)
        state = link.init(w)
        if hasattr(state.sampling, "key"):
            key = jnp.stack([jnp.uint32(0), seed[0]])
            state = state._replace(sampling=state.sampling._replace(key=key))
        def step(carry, scale):
            w, state = carry
            def grad_fn(w):
                grads = jax.grad(lambda w: jnp.mean(jnp.square(x @ w * scale)))(w)
                mean = jax.lax.pmean(grads, "batch")
                return mean if averaged else mean + 9 * grads * seed[0].astype(jnp.float32)
            updates, state = link.update(grad_fn(w), state, w, grad_fn=grad_fn, **extra)
            return (w - 0.01 * updates, state), arsam_jax.get_metrics(state).sampled
        (w, _), sampled = jax.lax.scan(step, (w, state), jnp.arange(1.0, 41) % 7)
        return (sampled + 2 * jnp.isnan(w).any())[None]  # so that XLA cannot leave the steps out
    seeds, x = jnp.arange(4, dtype=jnp.uint32), jax.random.normal(jax.random.key(0), (4, 2, 3))
    by_pmap = jax.pmap(lambda s, x: steps(s[None], x), "batch")(seeds, x)
    by_shard_map = jax.jit(jax.shard_map(
        lambda s, x: steps(s, x[0]), mesh=jax.sharding.Mesh(jax.devices(), ("batch",)),
        in_specs=P("batch"), out_specs=P("batch"), check_vma=False,
    ))(seeds, x)
    return by_pmap[:, 0] % 2, by_shard_map % 2

keys = arsam_jax.sharpness_aware(0.1, sampling=arsam_jax.sampling.bernoulli(0.3))
gate = arsam_jax.ae_sam(0.1, 40)
if __import__("sys").argv[1] == "hang":
    run(keys, True, {})[0].block_until_ready()
for link, averaged in ((keys, True), (gate, False)):
    for sampled in run(link, averaged, {"axis_name": "batch"}):
        print(int(sampled.sum()), bool((sampled == sampled[0]).all()))
"""


@needs_shard_map
def test_with_axis_name_devices_that_would_decide_apart_decide_alike():
    """A key, or an unaveraged gradient, of its own on each device, where JAX does not see it."""
    process = launch(SEPARATE_DECISIONS, "", devices=4)
    output, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    lines = output.splitlines()
    assert len(lines) == 4
    for line in lines:
        count, is_uniform = line.split()
        assert 0 < int(count) < 4 * 40
        assert is_uniform == "True"


@pytest.mark.long
@needs_shard_map
def test_without_axis_name_devices_that_decide_apart_wait_until_xla_ends_them():
    """The error of shard_map, axis_name and check_same_everywhere prevent this."""
    process = launch(SEPARATE_DECISIONS, "hang", devices=4)
    _, errors = process.communicate(timeout=240)
    assert process.returncode != 0
    assert "rendezvous" in errors.lower()


ANOTHER_STEP = """
import sys, jax, numpy as np, arsam_jax
from jax.sharding import NamedSharding, PartitionSpec as P
port, process = sys.argv[1:]
jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=int(process))
sharding = NamedSharding(jax.sharding.Mesh(jax.devices(), ("batch",)), P())
def on_all_devices(x):
    return jax.make_array_from_process_local_data(sharding, np.asarray(x))
state = arsam_jax.sam_every_k(0.1, 2).init({"w": np.ones(3, np.float32)})
arsam_jax.parallel.check_same_everywhere(jax.tree.map(on_all_devices, state))
state = state._replace(step=np.int32(7 + int(process)))
try:
    arsam_jax.parallel.check_same_everywhere(jax.tree.map(on_all_devices, state))
except ValueError as error:
    print(error)
"""


def launch_two_processes(script, port):
    processes = [launch(script, port, i, devices=2) for i in range(2)]
    try:
        for process in processes:
            output, errors = process.communicate(timeout=900)
            assert process.returncode == 0, errors[-3000:]
            yield output
    finally:
        for process in processes:  # one waits for the other
            process.kill()
            process.communicate()


def test_a_process_that_was_resumed_from_another_step_is_found(free_port):
    for output in launch_two_processes(ANOTHER_STEP, free_port()):
        assert "['step'] differs between devices or processes: 7, 8." in output


IN_PROCESSES = """
import sys, jax, numpy as np
port, process = sys.argv[1:]
jax.config.update("jax_enable_x64", True)
jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=int(process))
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from tests.library import test_distributed as here
mesh = Mesh(jax.devices(), ("batch",))

def everywhere(tree, spec, part=lambda x: x):
    sharding = NamedSharding(mesh, spec)
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(sharding, part(np.asarray(x))), tree
    )

half = slice(int(process) * here.BATCH // 2, (int(process) + 1) * here.BATCH // 2)
batches = everywhere(here.make_batches(), P(None, "batch"), lambda x: x[:, half])
for name in here.IN_TWO_PROCESSES:
    tx = here.make_tx(name)
    carry = everywhere(here.start(tx, here.make_params()), P())
    run = jax.jit(here.scanned(here.make_step(tx)), out_shardings=NamedSharding(mesh, P()))
    result = jax.tree.map(lambda x: np.asarray(x.addressable_data(0)), run(carry, batches))
    if process == "0":
        expected = jax.device_get(here.on_one_device(name))
        np.testing.assert_array_equal(result[1], expected[1])
        here.chex.assert_trees_all_close(result[0], expected[0], rtol=1e-6, atol=1e-7)
    print("equal:", name, flush=True)
"""
IN_TWO_PROCESSES = ("arsam", "esam", "sparse_sam")


@pytest.mark.long
def test_two_processes_give_the_results_of_one_device(free_port):
    for output in launch_two_processes(IN_PROCESSES, free_port()):
        assert [output.count(f"equal: {name}\n") for name in IN_TWO_PROCESSES] == [1, 1, 1]
