"""Bad arguments: an error that names the argument, its value and what is allowed."""

import inspect

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import arsam_jax
from arsam_jax import correction, probe, sampling, selection, sharpness_aware
from tests.methods import METHODS, STATIC
from tests.problem import example_loss_fn, make_batch, make_params, make_step


@pytest.mark.parametrize(
    ("argument", "values"),
    [
        ("rho", [-0.1, np.nan, np.inf, "0.1", None, True, np.ones(2), lambda step: jnp.ones(2)]),
        ("alpha", [-1, np.nan, np.inf, "x", None]),
        ("ema_decay", [-0.1, 1, 1.5, np.nan]),
        ("segment_length", [0, -5, 2.5, "x", True]),
        ("initial_samples", [0.5, 51, np.nan]),
        ("min_samples", [-1, 51]),
        ("warmup_steps", [-1, 1.5]),
        ("reuse_steps", [-1, 0.5, "x"]),
        ("reuse_dtype", [jnp.int32, bool, "bf16", jnp.float8_e4m3fn, jnp.float8_e5m2]),
        ("seed", [-1, 2**32, 0.5, jax.random.key(0)]),
    ],
)
def test_arsam_refuses(argument, values):
    for value in values:
        with pytest.raises((ValueError, TypeError), match=rf"^{argument} must be .*, got "):
            arsam_jax.arsam(**{"rho": 0.1, "alpha": 0.5, argument: value})


@pytest.mark.parametrize("rho", [0, 0.0, 1, np.float32(0.1), jnp.float32(0.1), lambda step: 0.1])
def test_rho_may_be_any_scalar_or_a_schedule(rho):
    tx = arsam_jax.sam(rho)
    params = jnp.ones(2)
    _, state = tx.update(params, tx.init(params), params, grad_fn=lambda w: w)
    assert state.metrics.rho == np.float32(rho(0) if callable(rho) else rho)
    with jax.numpy_dtype_promotion("standard"):  # optax multiplies float by int32
        arsam_jax.sam(optax.cosine_decay_schedule(0.1, 100))


def test_policies_refuse():
    for k in (0, -1, 1.5):
        with pytest.raises((ValueError, TypeError), match=r"^k must be an integer >= 1, got"):
            sampling.every_k(k)
    for p in (-0.1, 1.1, np.nan):
        with pytest.raises(ValueError, match=r"^probability must be .* >= 0 and <= 1, got"):
            sampling.bernoulli(p)


@pytest.mark.parametrize("part", ["probe", "sampling", "correction"])
def test_parts_have_to_be_of_their_kind(part):
    with pytest.raises(TypeError, match=f"^{part} must be a "):
        sharpness_aware(0.1, **{part: optax.identity()})
    with pytest.raises(TypeError, match=f"^{part} must be a "):
        sharpness_aware(0.1, **{part: sampling.always})  # not called


@pytest.mark.parametrize(
    "make",
    [
        probe.perturb,
        lambda ascent: probe.multi_step(2, ascent),
        lambda ascent: probe.microbatched(2, ascent),
        lambda ascent: probe.reweighted(1.0, ascent=ascent),
        lambda ascent: selection.largest_rises(0.5, ascent),
        lambda ascent: selection.largest_losses(0.5, ascent),
        lambda ascent: selection.largest_changes(9, 5, ascent=ascent),
    ],
)
def test_an_ascent_has_to_be_called(make):
    with pytest.raises(TypeError, match=r"^ascent must be an optax.GradientTransformation"):
        make(arsam_jax.ascent.normalize)


def test_example_losses_come_from_a_function():
    params = jnp.ones(2)
    tx = arsam_jax.m_sam(0.1, 2)
    with pytest.raises(TypeError, match=r"^example_loss_fn must be a function .*, got 3\.$"):
        tx.update(
            params,
            tx.init(params),
            params,
            grad_fn=lambda w: w,
            example_loss_fn=3,
            batch=jnp.ones((4, 2)),
        )


@pytest.mark.parametrize("name", [name for name, m in METHODS.items() if m.needs_examples])
def test_a_batch_without_examples_is_an_error(name):
    tx, params = METHODS[name].make(), make_params()
    batch = jax.tree.map(lambda x: x[:0], make_batch(0))
    arguments = {"grad_fn": lambda p: p, "example_loss_fn": example_loss_fn, "batch": batch}
    with pytest.raises(ValueError, match=r"^batch must hold at least one example, got 0"):
        tx.update(params, tx.init(params), params, **arguments)


def test_a_negative_radius_of_a_schedule_takes_no_second_gradient():
    tx = arsam_jax.sam(lambda step: -0.1)
    params = jnp.ones(2)
    updates, state = tx.update(params, tx.init(params), params, grad_fn=lambda w: w * jnp.nan)
    assert (updates == params).all()
    assert not state.metrics.sampled


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda w: (jnp.sum(w), w), "must return gradients only"),
        (lambda w: jnp.sum(w), "must return gradients only"),
        (lambda w: w[:1], "must return gradients only"),
        (3, "grad_fn must be a function of params, got 3"),
    ],
    ids=["value_and_grad", "loss", "shape", "number"],
)
def test_a_grad_fn_that_returns_something_else_is_refused(wrong, message):
    tx = arsam_jax.sam(0.1)
    params = jnp.ones(2)
    with pytest.raises((ValueError, TypeError), match=message):
        tx.update(params, tx.init(params), params, grad_fn=wrong)


def test_a_wrong_grad_fn_is_refused_in_the_first_step_though_it_is_not_sampled():
    tx = arsam_jax.final_phase_sam(0.1, 4, share=0.5)
    params = jnp.ones(2)
    with pytest.raises(ValueError, match="must return gradients only"):
        tx.update(params, tx.init(params), params, grad_fn=jnp.sum)


def test_outside_jit_a_grad_fn_is_called_when_it_is_sampled_and_once_to_check_it():
    tx = arsam_jax.final_phase_sam(0.1, 4, share=0.5)
    params, calls = jnp.ones(2), []

    def grad_fn(w):
        calls.append(isinstance(w, jax.core.Tracer))
        return float(w.sum()) * w  # which cannot be traced

    state = tx.init(params)
    for _ in range(4):
        _, state = tx.update(params, state, params, grad_fn=grad_fn)
    assert calls == [True, False, False]


def test_an_error_in_grad_fn_reaches_the_user():
    def broken(params):
        raise KeyError("my own mistake")

    params = jnp.ones(2)
    tx = arsam_jax.sam(0.1)
    with pytest.raises(KeyError, match="my own mistake"):
        tx.update(params, tx.init(params), params, grad_fn=broken)


def test_inject_hyperparams_keeps_the_defaults_of_arsam():
    injected = optax.inject_hyperparams(arsam_jax.arsam)(rho=0.1, alpha=0.4)
    params = jnp.ones(2)
    state = injected.init(params)
    _, state = injected.update(params, state, params, grad_fn=lambda w: w)
    assert float(state.hyperparams["segment_length"]) == 50


ARGUMENTS = {
    **dict.fromkeys(("rho", "grad_rho", "delta", "eta", "eps", "learning_rate"), 0.1),
    **dict.fromkeys(("alpha", "beta", "gamma", "share", "sparsity", "bound", "strength"), 0.5),
    **dict.fromkeys(("k", "num_steps", "num_microbatches", "reuse_steps", "seed"), 2),
    **dict.fromkeys(("total_steps", "segment_length", "warmup_steps"), 5),
    **dict.fromkeys(("decay", "ema_decay", "sigma", "inverse_temperature"), 0.9),
    **dict.fromkeys(("initial_samples", "min_samples", "lambda_1", "lambda_2"), 1.0),
    **dict.fromkeys(("interpolation", "min_weight", "max_weight"), 0.2),
    **dict.fromkeys(("num_examples", "steps_per_epoch"), 100),
    "rise_epochs": 30.0,
    "speedup": 1.5,
    "per": "tensor",
    "reuse_dtype": jnp.bfloat16,
    "norm_mask": lambda params: jax.tree.map(lambda p: True, params),
    "mask": arsam_jax.sparse.fisher_mask,
}


def arguments_of(alias):
    mask = {"mask": ARGUMENTS["norm_mask"]} if alias == "masked_sam" else {}
    return ARGUMENTS | mask


@pytest.mark.parametrize("alias", arsam_jax.methods.METHODS)
def test_inject_hyperparams_takes_every_argument_or_says_what_is_static(alias):
    function, static = getattr(arsam_jax, alias), set(STATIC.get(alias, ()))
    arguments = inspect.signature(function).parameters
    values = arguments_of(alias)
    needed = {n: values[n] for n, p in arguments.items() if p.default is p.empty}
    for name in arguments:
        given = needed | {name: values[name]}
        optax.inject_hyperparams(function, static_args=static)(**given).init(jnp.ones(2))
        tx = optax.inject_hyperparams(function, static_args=static - {name})(**given)
        if name not in static:
            tx.init(jnp.ones(2))
            continue
        with pytest.raises(TypeError, match=f"name .*'{name}'.* in its static_args"):
            tx.init(jnp.ones(2))


@pytest.mark.parametrize("alias", arsam_jax.methods.METHODS)
def test_numbers_may_be_numpy_scalars_of_any_width(alias, x64):
    function, values = getattr(arsam_jax, alias), arguments_of(alias)
    arguments = inspect.signature(function).parameters
    numbers = {
        name: values[name]
        for name in arguments
        if isinstance(values[name], int | float) and name != "speedup"
    }
    others = {
        name: values[name]
        for name, parameter in arguments.items()
        if name not in numbers and parameter.default is parameter.empty
    }
    for floating, integer in ((np.float32, np.int32), (np.float64, np.int64)):
        kinds = {int: integer, float: floating}
        given = {name: kinds[type(value)](value) for name, value in numbers.items()}
        for dtype in (jnp.float32, jnp.float64):
            params = make_params(dtype)
            step = make_step(function(**given, **others))
            state = function(**numbers, **others).init(params)
            after = jax.eval_shape(step, params, state, make_batch(0))
            chex.assert_trees_all_equal_shapes_and_dtypes(after, (params, state))


def test_numpy_scalars_of_a_budget(x64):
    policy = sampling.budgeted(np.float64(0.5))
    sampled, _ = policy.decide(policy.init(), jnp.int32(0), jnp.float32(1))
    assert sampled.dtype == bool


def test_the_radius_may_be_wider_than_the_parameters(x64):
    params = make_params()
    for method in METHODS.values():
        tx = method.make(rho=lambda step: jnp.asarray(0.1, jnp.float64))
        after = jax.eval_shape(make_step(tx), params, tx.init(params), make_batch(0))
        chex.assert_trees_all_equal_shapes_and_dtypes(after, (params, tx.init(params)))


@pytest.mark.parametrize("reuse_dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("make", [arsam_jax.looksam, arsam_jax.budgeted_sam])
def test_the_buffer_may_be_narrower_than_the_parameters(make, reuse_dtype, x64):
    params, tx = make_params(jnp.float64), make(0.1, reuse_dtype=reuse_dtype)
    after = jax.eval_shape(make_step(tx), params, tx.init(params), make_batch(0))
    chex.assert_trees_all_equal_shapes_and_dtypes(after, (params, tx.init(params)))


def test_no_reuse_keeps_a_buffer_neither_injected_nor_not():
    tx = optax.inject_hyperparams(arsam_jax.arsam)(0.1, 0.5, reuse_steps=0)
    with pytest.raises(TypeError, match=r"^reuse_steps must be a Python number where it is 0, got"):
        tx.init(jnp.ones(2))


def test_reuse_needs_no_steps_argument_to_be_static():
    assert correction.reuse_psf(0).init(jnp.ones(2)) == ()


@pytest.mark.parametrize("output", [lambda w: (jnp.sum(w), w), lambda w: w])
def test_a_value_fn_returns_the_loss_alone(output):
    params = jnp.ones(2)
    tx = arsam_jax.sam(0.1)
    with pytest.raises(ValueError, match=r"^value_fn\(params\) must return the loss alone"):
        tx.update(params, tx.init(params), params, value_fn=output)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ({"w": "no", "b": "no"}, "must be a tree of bools"),
        ({"w": False, "b": False}, "not all of them False"),
        ({"v": True}, "must be a prefix of the parameters"),
        (lambda params: ["w"], "must be a tree of bools"),
    ],
    ids=["words", "nothing", "other names", "names"],
)
def test_a_norm_mask_of_the_wrong_kind_is_refused_by_name(mask, message):
    params = {"w": jnp.ones(2), "b": jnp.ones(1)}
    tx = arsam_jax.arsam(0.1, 0.5, norm_mask=mask)
    with pytest.raises(ValueError, match=f"^norm_mask .*{message}"):
        tx.update(params, tx.init(params), params, grad_fn=lambda w: w)


def test_a_gradient_of_other_leaves_is_refused_by_their_names():
    params = {"w": jnp.ones(2), "b": jnp.ones(1)}
    tx = arsam_jax.sam(0.1)
    for grads, message in (
        ({"w": None, "b": jnp.ones(1)}, r"nothing in place of \(2,\) at \['w'\]"),
        ({"w": jnp.ones(3), "b": jnp.ones(1)}, r"\(3,\) in place of \(2,\) at \['w'\]"),
        ([jnp.ones(2)], r"nothing in place of \(1,\) at \['b'\]"),
    ):
        with pytest.raises(ValueError, match=f"^grads must be shaped like params, got .*{message}"):
            tx.update(grads, tx.init(params), params, grad_fn=lambda w: w)


@pytest.mark.parametrize("part", [lambda x: x, "tanh"], ids=["function", "word"])
def test_leaves_that_are_no_arrays_are_refused(part):
    params = {"w": jnp.ones(2), "activation": part}
    tx = arsam_jax.sam(0.1)
    with pytest.raises(TypeError, match=r"^params must be .* at \['activation'\].*eqx\.filter"):
        tx.init(params)
    with pytest.raises(TypeError, match=r"^params must be .* at \['activation'\].*eqx\.filter"):
        tx.update(params, tx.init({}), params, grad_fn=lambda w: w)


@pytest.mark.parametrize("mask", [lambda sparsity: None, lambda sparsity: True])
def test_a_sparse_mask_is_an_ascent(mask):
    with pytest.raises(TypeError, match=r"^mask must return an ascent, .* got mask\(0\.5\) = "):
        arsam_jax.sparse_sam(0.1, 0.5, mask=mask)


def test_python_numbers_are_gradients():
    tx = arsam_jax.arsam(0.5, 0.5, warmup_steps=1, min_samples=0, initial_samples=0)
    params = {"w": jnp.float32(2)}
    state = tx.init(params)

    def grad_fn(params):
        return {"w": float(params["w"])}

    for g, expected in ((2.0, 2.5), (1.0, 1.5), (1.0, 1.5), (1.0, 1.0)):  # sampled, reuse, plain
        updates, state = tx.update({"w": g}, state, params, grad_fn=grad_fn)
        assert updates["w"] == pytest.approx(expected, rel=1e-6)


def test_a_traced_measure_is_refused_by_name():
    tx, params = arsam_jax.sam(0.1), jnp.ones(2)

    def update(measure):
        return tx.update(params, tx.init(params), params, grad_fn=lambda w: w, measure=measure)

    jitted = jax.jit(update)
    with pytest.raises(TypeError, match=r"^measure must be a Python bool, got "):
        jitted(True)


def test_a_grad_fn_that_only_runs_on_values_runs_outside_jit():
    tx, params = arsam_jax.budgeted_sam(0.1, share=1 / 8), jnp.array([1.0, -1.0])
    grad_fn = jax.grad(lambda w: jnp.sum(w[np.asarray(jax.lax.stop_gradient(params)) > 0] ** 2))

    def on_values(w):
        assert (w[w > 0]).size
        return grad_fn(w)

    state = tx.init(params)
    for _ in range(8):
        _, state = tx.update(grad_fn(params), state, params, grad_fn=on_values)
    assert state.metrics.num_sampled == 1


def test_an_initial_number_of_samples_survives_donation():
    tx = arsam_jax.arsam(0.1, 0.5, initial_samples=jnp.float32(5))
    jax.jit(lambda state: state, donate_argnums=0)(tx.init(jnp.ones(2)))
    assert tx.init(jnp.ones(2)).sampling.samples == 5


def test_a_value_fn_of_more_than_the_parameters_is_told_what_it_takes():
    tx, params = arsam_jax.sam(0.1), jnp.ones(2)
    with pytest.raises(TypeError, match="missing 1 required positional argument") as caught:
        tx.update(params, tx.init(params), params, value_fn=lambda params, batch: params.sum())
    mend = "value_fn takes params alone: lambda params: loss_fn(params, batch)."
    assert mend in caught.value.__notes__
