"""metrics_dict: plain floats, whatever the state is kept in."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import arsam_jax
from arsam_jax import metrics_dict
from tests.versions import as_pure, needs_nnx

LINK = arsam_jax.arsam(0.1, 0.5, segment_length=4, warmup_steps=1)
TX = optax.chain(LINK, optax.sgd(0.05))
W = jnp.array([1.0, -2.0])


def grad_fn(w):
    return 2 * w


def run(steps=4, w=W):
    step = jax.jit(lambda w, state: TX.update(grad_fn(w), state, w, grad_fn=grad_fn))
    state = TX.init(w)
    for _ in range(steps):
        _, state = step(w, state)
    return state


def test_every_metric_and_what_the_policy_has():
    state = run()
    values = metrics_dict(state)
    assert set(values) == {
        *arsam_jax.Metrics._fields,
        *("sampled_share", "probability", "ratio", "ema_ratio", "samples"),
    }
    assert all(type(x) is float for x in values.values())
    assert json.loads(json.dumps(values)) == values
    assert metrics_dict(jax.device_get(state)) == values
    link = arsam_jax.get_state(state)
    for name, x in (link.metrics._asdict() | link.sampling._asdict()).items():
        if name in values:
            assert values[name] == float(x)
    assert values["sampled_share"] == values["num_sampled"] / 4 >= 0.25


def test_a_policy_without_these_and_no_step_yet():
    values = metrics_dict(arsam_jax.sam(0.1).init(W))
    assert set(values) == {*arsam_jax.Metrics._fields, "sampled_share"}
    assert set(values.values()) == {0.0}


@needs_nnx
def test_replicated_pmapped_and_nnx_states():
    state = run()
    mesh = Mesh(jax.devices(), ("batch",))
    replicated = jax.device_put(state, NamedSharding(mesh, P()))
    stacked = jax.tree.map(lambda x: jnp.stack([x] * 8), state)
    pmapped = jax.pmap(lambda x: x)(stacked)
    for other in (replicated, stacked, pmapped):
        assert metrics_dict(other) == metrics_dict(state)
    optimizer = nnx.Optimizer(nnx.Linear(2, 1, rngs=nnx.Rngs(0)), TX, wrt=nnx.Param)
    expected = metrics_dict(TX.init(W))
    assert metrics_dict(optimizer.opt_state) == expected
    assert metrics_dict(as_pure(optimizer.opt_state)) == expected


def test_several_models_are_refused():
    states = [run(1, W), run(1, 2 * W)]
    with pytest.raises(ValueError, match=r"the state of one model, got .* of ratio"):
        metrics_dict(jax.tree.map(lambda *x: jnp.stack(x), *states))


def test_inside_jit_there_are_no_floats():
    with pytest.raises(TypeError, match=r"inside jit\. .*call metrics_dict outside"):
        jax.jit(metrics_dict)(run(1))


def test_not_a_number_stays_one():
    state = arsam_jax.sam(0.1).init(W)
    state = state._replace(metrics=state.metrics._replace(rho=jnp.float32(jnp.nan)))
    assert np.isnan(metrics_dict(state)["rho"])
    stacked = jax.tree.map(lambda x: jnp.stack([x] * 2), state)
    assert np.isnan(metrics_dict(stacked)["rho"])
