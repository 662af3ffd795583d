"""The named methods: each follows its paper over many steps, and is another one in a limit."""

import inspect

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import arsam_jax
from arsam_jax import _random, ascent, methods, radius, sparse
from tests import reference
from tests.least_squares import BATCH, SIZE, STEPS, assert_follows, join, split
from tests.methods import METHODS
from tests.problem import make_params, train, train_sam_of_optax

pytestmark = pytest.mark.usefixtures("x64")

RHO = 0.3
BASE = optax.sgd(0.05, momentum=0.9)


def falling_rate(step):
    return 0.02 / (1.0 + jnp.asarray(step, jnp.float64))


@pytest.mark.parametrize(
    ("tx", "expected"),
    [
        (arsam_jax.sam(RHO), reference.sam(RHO)),
        (arsam_jax.sam_every_k(RHO, 5), reference.sam_every_k(RHO, 5)),
        (arsam_jax.looksam(RHO, k=3), reference.looksam(RHO, k=3, alpha=0.7)),
        (arsam_jax.esam(RHO, beta=1, gamma=0.5), reference.esam(RHO, gamma=0.5)),
        (
            arsam_jax.gradient_norm_penalty(RHO, 0.7),
            reference.gradient_norm_penalty(RHO, 0.7),
        ),
        (arsam_jax.wsam(RHO, 0.8), reference.wsam(RHO, 0.8)),
        (arsam_jax.asam(RHO), reference.asam(RHO)),
        (arsam_jax.gsam(RHO, 0.4), reference.gsam(RHO, 0.4)),
        (arsam_jax.multi_step_sam(RHO, 3), reference.multi_step_sam(RHO, 3)),
        (arsam_jax.momentum_sam(RHO, decay=0.8), reference.momentum_sam(RHO, decay=0.8)),
        (
            arsam_jax.gam(RHO, grad_rho=0.1, alpha=0.6, beta=0.3, gamma=0.5),
            reference.gam(RHO, grad_rho=0.1, alpha=0.6, beta=0.3, gamma=0.5),
        ),
        (
            arsam_jax.gam(RHO, grad_rho=lambda step: 0.1, alpha=0.6, beta=0.3, gamma=0.5),
            reference.gam(RHO, grad_rho=0.1, alpha=0.6, beta=0.3, gamma=0.5),
        ),
        (
            arsam_jax.friendly_sam(RHO, sigma=0.9, decay=0.8),
            reference.friendly_sam(RHO, sigma=0.9, decay=0.8),
        ),
        (
            arsam_jax.final_phase_sam(RHO, STEPS, share=0.3),
            reference.final_phase_sam(RHO, STEPS, share=0.3),
        ),
        (arsam_jax.usam(0.05), reference.usam(0.05)),
        *((arsam_jax.m_sam(RHO, k), reference.m_sam(RHO, k)) for k in (1, 2, 3, BATCH)),
        (arsam_jax.k_sam(RHO, 0.01), reference.k_sam(RHO, 1)),
        (arsam_jax.k_sam(RHO, 0.5), reference.k_sam(RHO, 3)),
        (arsam_jax.k_sam(RHO, 0.8), reference.k_sam(RHO, 5)),
        (arsam_jax.k_sam(RHO, 1), reference.k_sam(RHO, BATCH)),
    ],
    ids=[
        *("sam", "sam_every_k", "looksam", "esam", "gradient_norm_penalty", "wsam", "asam", "gsam"),
        *("multi_step_sam", "momentum_sam", "gam", "gam_schedule", "friendly_sam"),
        *("final_phase_sam", "usam", "m_sam_1", "m_sam_2", "m_sam_3", "m_sam_of_each"),
        *("k_sam_of_one", "k_sam", "k_sam_of_five", "k_sam_of_all"),
    ],
)
def test_a_method_follows_its_paper(tx, expected):
    assert_follows(tx, expected)


def test_ae_sam_follows_its_paper():
    state = assert_follows(arsam_jax.ae_sam(RHO, STEPS), reference.ae_sam(RHO, STEPS))
    assert 0.1 < state.metrics.num_sampled / STEPS < 0.9


@pytest.mark.parametrize("per", ["coordinate", "tensor"])
def test_esam_perturbs_a_random_share_divided_by_beta(per):
    masks = []

    def mask(step):
        masking, ones = ascent.random_mask(0.6, per, seed=4), split(np.ones(SIZE))
        masked, _ = masking.update(ones, masking.init(ones), step=jnp.int32(step))
        masks.append(join(masked))
        return masks[-1]

    tx = arsam_jax.esam(RHO, beta=0.6, gamma=1, per=per, seed=4)
    assert_follows(tx, reference.esam(RHO, mask=mask))
    drawn = np.stack(masks)
    assert set(np.unique(drawn.round(6))) == {0, round(1 / 0.6, 6)}
    assert abs((drawn > 0).mean() - 0.6) < 0.15
    for leaf in (drawn[:, :6], drawn[:, 6:]):
        together = (leaf > 0).all(1) | (leaf == 0).all(1)
        assert together.all() == (per == "tensor")


def test_sampa_follows_its_paper():
    tx = arsam_jax.sampa(RHO, falling_rate, interpolation=0.3)
    assert_follows(tx, reference.sampa(RHO, falling_rate, interpolation=0.3))
    assert (arsam_jax.sampa.__kwdefaults__ or {})["interpolation"] == 0.2


@pytest.mark.parametrize("delta", [None, 0.01])
def test_rw_sam_follows_its_paper(delta):
    key = _random.make_key(9, "probe.reweighted")

    def direction(step):
        tree = split(np.zeros(SIZE))
        return join(optax.tree.random_like(_random.step_key(key, jnp.int32(step)), tree))

    tx = arsam_jax.rw_sam(RHO, inverse_temperature=1.5, delta=delta, seed=9)
    assert_follows(tx, reference.rw_sam(RHO, 1.5, direction, delta))


def test_ausam_follows_the_authors_code():
    def noise(step):
        key = _random.step_key(_random.make_key(5, "selection.largest_changes"), jnp.int32(step))
        return np.asarray(jax.random.gumbel(key, (BATCH,), jnp.float32))

    expected = reference.AUSAM(RHO, steps_per_epoch=5, rise=4, noise=noise)

    def on_state(step, state):
        np.testing.assert_allclose(state.probe.total, expected.table[:, 0], rtol=1e-5)
        np.testing.assert_array_equal(state.probe.times, expected.table[:, 1])

    tx = arsam_jax.ausam(RHO, len(expected.table), 5, rise_epochs=4, seed=5)
    assert_follows(tx, expected.update, on_state=on_state)
    assert expected.chosen_late == set(range(BATCH))


def test_multi_step_sam_is_that_of_optax_at_n_times_the_radius():
    params = jax.tree.map(lambda x: x.astype(jnp.float64), make_params())
    ours, _ = train(optax.chain(arsam_jax.multi_step_sam(0.2, 2), BASE), 10, params)
    theirs = train_sam_of_optax(BASE, 0.1, 10, params, sync_period=3)
    chex.assert_trees_all_close(ours, theirs, rtol=1e-9, atol=1e-12)


# Limits


@pytest.mark.parametrize(
    "tx",
    [
        arsam_jax.sam_every_k(0.1, 1),
        arsam_jax.looksam(0.1, 1),
        arsam_jax.ae_sam(0.1, 20, lambda_1=-1e6, lambda_2=-1e6),
        arsam_jax.esam(0.1, beta=1, gamma=1),
        arsam_jax.gradient_norm_penalty(0.1, 1.0),
        arsam_jax.gsam(0.1, 0.0),
        arsam_jax.gam(0.3, grad_rho=0.1, alpha=1, gamma=0),
        arsam_jax.wsam(0.1, 0.5),
        arsam_jax.multi_step_sam(0.1, 1),
        arsam_jax.friendly_sam(0.1, sigma=0),
        arsam_jax.final_phase_sam(0.1, 20, 1.0),
        arsam_jax.m_sam(0.1, 1),
        arsam_jax.rw_sam(0.1, inverse_temperature=0),
        arsam_jax.k_sam(0.1, 1),
        arsam_jax.ausam(0.1, 16, 1, share=1),
        arsam_jax.ausam(0.1, 16, 20),  # in its first epoch
        arsam_jax.sparse_sam(0.1, 0.0),
        arsam_jax.sparse_sam(0.1, 0.0, mask=lambda s: sparse.dynamic_mask(s, 20)),
    ],
    ids=[
        *("every_1", "looksam_1", "ae_sam", "esam", "penalty", "gsam", "gam", "wsam", "multi_step"),
        *("friendly", "final_phase", "m_sam", "rw_sam", "k_sam", "ausam", "ausam_first_epoch"),
        *("fisher", "dynamic"),
    ],
)
def test_degenerate_cases_that_are_sam(tx):
    ours, _ = train(optax.chain(tx, BASE), 20)
    sam, _ = train(optax.chain(arsam_jax.sam(0.1), BASE), 20)
    chex.assert_trees_all_close(ours, sam, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "tx",
    [
        arsam_jax.gradient_norm_penalty(0.1, 0.0),
        arsam_jax.final_phase_sam(0.1, 20, 0.0),
        arsam_jax.ae_sam(0.1, 20, lambda_1=1e6, lambda_2=1e6),
        arsam_jax.wsam(0.1, 0.0),
        *(make(0.0) for make in (arsam_jax.usam, arsam_jax.asam, arsam_jax.momentum_sam)),
        arsam_jax.m_sam(0.0, 4),
        arsam_jax.gam(0.0),
        arsam_jax.sampa(0.0, 0.05),
    ],
    ids=[
        *("penalty", "final_phase", "ae_sam", "wsam", "usam_0", "asam_0", "momentum_0"),
        *("m_sam_0", "gam_0", "sampa_0"),
    ],
)
def test_degenerate_cases_that_are_the_base_optimizer_bit_for_bit(tx):
    ours, _ = train(optax.chain(tx, BASE), 20)
    base, _ = train(optax.with_extra_args_support(BASE), 20)
    chex.assert_trees_all_equal(ours, base)


def test_where_all_gradients_are_zero_nothing_moves_and_nothing_is_nan():
    zeros, params = jnp.zeros(3), jnp.ones(3)
    functions = dict.fromkeys(("grad_fn", "previous_grad_fn"), jnp.zeros_like)
    for tx in (arsam_jax.gam(0.1), arsam_jax.wsam(0.1), arsam_jax.sampa(0.1, 0.1)):
        state = tx.init(params)
        for _ in range(2):
            updates, state = tx.update(zeros, state, params, **functions)
            chex.assert_trees_all_equal(updates, zeros)
            chex.assert_tree_all_finite(state)


# Defaults


@pytest.mark.parametrize(
    ("function", "defaults"),
    [
        (arsam_jax.arsam, {"alpha": 0.4, "ema_decay": 0.9, "segment_length": 50}),
        (arsam_jax.arsam, {"initial_samples": 1, "min_samples": 1, "reuse_steps": 2}),
        (arsam_jax.looksam, {"k": 5, "alpha": 0.7}),
        (arsam_jax.ae_sam, {"decay": 0.9, "lambda_1": -1, "lambda_2": 1}),
        (arsam_jax.esam, {"beta": 0.5, "gamma": 0.5, "per": "coordinate"}),
        (arsam_jax.asam, {"eta": 0.01}),
        (arsam_jax.wsam, {"gamma": 0.9}),
        (arsam_jax.gam, {"grad_rho": 0.02, "alpha": 0.6, "beta": 0.5, "gamma": 0.03}),
        (arsam_jax.momentum_sam, {"decay": 0.9}),
        (arsam_jax.sampa, {"interpolation": 0.2}),
        (arsam_jax.friendly_sam, {"sigma": 1, "decay": 0.9}),
        (arsam_jax.rw_sam, {"inverse_temperature": 1}),
        (arsam_jax.k_sam, {"share": 0.5}),
        (arsam_jax.ausam, {"share": 0.5, "rise_epochs": 30, "min_weight": 0.1, "max_weight": 0.5}),
        (arsam_jax.sparse_sam, {"sparsity": 0.5}),
        (radius.proportional_to_params, {"fraction": 0.009}),
        (radius.hold_ratio, {"initial": 0.05, "rate": 0.1}),
    ],
)
def test_defaults_are_those_that_are_documented(function, defaults):
    parameters = inspect.signature(function).parameters
    assert {name: parameters[name].default for name in defaults} == defaults


@pytest.mark.parametrize("share", [None, 0.1])
def test_defaults_of_budgeted_sam_depend_on_the_share(share):
    """The share is 1/4 and the bound of reuse is the smaller of 0.1 and 0.8 times the share."""
    chosen = 0.25 if share is None else share
    given = {} if share is None else {"share": share}
    explicit = arsam_jax.budgeted_sam(2.0, share=chosen, bound=min(0.1, 0.8 * chosen))
    results = [train(tx, 8) for tx in (arsam_jax.budgeted_sam(2.0, **given), explicit)]
    chex.assert_trees_all_equal(*results)


# Bad arguments


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: arsam_jax.sam_every_k(0.1, 0), "k"),
        (lambda: arsam_jax.looksam(0.1, 5, -1), "alpha"),
        (lambda: arsam_jax.looksam(0.1, 0), "k"),
        (lambda: arsam_jax.ae_sam(0.1, 0), "total_steps"),
        (lambda: arsam_jax.ae_sam(0.1, 10, decay=1), "decay"),
        (lambda: arsam_jax.ae_sam(0.1, 10, lambda_1=np.nan), "lambda_1"),
        (lambda: arsam_jax.esam(0.1, beta=0), "beta"),
        (lambda: arsam_jax.esam(0.1, gamma=1.5), "gamma"),
        (lambda: arsam_jax.esam(0.1, per="layer"), "per"),
        (lambda: arsam_jax.gradient_norm_penalty(0.1, -0.1), "strength"),
        (lambda: arsam_jax.gradient_norm_penalty(-0.1, 0.1), "rho"),
        (lambda: arsam_jax.asam(0.1, eta=-1), "eta"),
        (lambda: arsam_jax.gsam(0.1, np.inf), "alpha"),
        (lambda: arsam_jax.multi_step_sam(0.1, 0), "num_steps"),
        (lambda: arsam_jax.momentum_sam(0.1, decay=1), "decay"),
        (lambda: arsam_jax.gam(0.1, grad_rho=-1), "grad_rho"),
        (lambda: arsam_jax.gam(0.1, alpha=1.1), "alpha"),
        (lambda: arsam_jax.gam(0.1, beta=-0.1), "beta"),
        (lambda: arsam_jax.gam(0.1, gamma=-1), "gamma"),
        (lambda: arsam_jax.wsam(0.1, 1), "gamma"),
        (lambda: arsam_jax.sampa(0.1, -1), "learning_rate"),
        (lambda: arsam_jax.sampa(0.1, 0.1, interpolation=2), "interpolation"),
        (lambda: arsam_jax.friendly_sam(0.1, sigma=-1), "sigma"),
        (lambda: arsam_jax.friendly_sam(0.1, decay=1), "decay"),
        (lambda: arsam_jax.final_phase_sam(0.1, 10, 1.1), "share"),
        (lambda: arsam_jax.m_sam(0.1, 0), "num_microbatches"),
        (lambda: arsam_jax.rw_sam(0.1, inverse_temperature=-1), "inverse_temperature"),
        (lambda: arsam_jax.rw_sam(0.1, delta=0), "delta"),
        (lambda: arsam_jax.k_sam(0.1, 0), "share"),
        (lambda: arsam_jax.k_sam(0.1, jnp.float32(0.5)), "share"),
        (lambda: arsam_jax.ausam(0.1, 0, 5), "num_examples"),
        (lambda: arsam_jax.ausam(0.1, jnp.int32(9), 5), "num_examples"),
        (lambda: arsam_jax.ausam(0.1, 9, 0), "steps_per_epoch"),
        (lambda: arsam_jax.ausam(0.1, 9, 5, share=1.1), "share"),
        (lambda: arsam_jax.ausam(0.1, 9, 5, rise_epochs=0), "rise_epochs"),
        (lambda: arsam_jax.ausam(0.1, 9, 5, min_weight=0), "min_weight"),
        (lambda: arsam_jax.ausam(0.1, 9, 5, max_weight=0.05), "max_weight"),
        (lambda: arsam_jax.ausam(0.1, 9, 5, seed=-1), "seed"),
        (lambda: arsam_jax.sparse_sam(0.1, 1.0), "sparsity"),
        (lambda: arsam_jax.sparse_sam(0.1, mask=sparse.fisher_mask(0.5)), "mask"),
        (lambda: sparse.fisher_mask(0.5, pattern="rows"), "pattern"),
        (lambda: sparse.fisher_mask(0.5, pattern=(4, 2)), "pattern's M"),
        (lambda: sparse.fisher_mask(0.5, pattern=(1, 2, 3, 4)), "pattern"),
        (lambda: sparse.fisher_mask(0.5, pattern=(1, 2, 0.5)), "pattern's axis"),
        (lambda: sparse.keep_largest(jnp.ones((2, 2)), 0.5, (1, 2, 2)), "pattern's axis"),
        (lambda: sparse.keep_largest(jnp.ones(3), 0.5, "nm"), "pattern"),
        (lambda: arsam_jax.looksam(0.1, reuse_dtype=jnp.int32), "reuse_dtype"),
        (lambda: sparse.fisher_mask(0.5, num_examples=0), "num_examples"),
        (lambda: sparse.fisher_mask(0.5, refresh_every=0), "refresh_every"),
        (lambda: sparse.dynamic_mask(0.5, 10, drop_rate=2), "drop_rate"),
        (lambda: sparse.dynamic_mask(0.5, 10, drop_by="size"), "drop_by"),
        (lambda: sparse.dynamic_mask(0.5, 10, grow_by="weight"), "grow_by"),
    ],
)
def test_bad_arguments_are_refused_by_name(make, name):
    with pytest.raises((ValueError, TypeError), match=rf"^{name} must be .*, got "):
        make()


def test_every_alias_is_public_and_in_the_contract_suite():
    functions = inspect.getmembers(methods, inspect.isfunction)
    aliases = {name for name, function in functions if function.__module__ == methods.__name__}
    assert {name for name in aliases if name[0] != "_"} == set(methods.METHODS)
    for name, method in methods.METHODS.items():
        assert method.make is getattr(arsam_jax, name)
        assert name in arsam_jax.__all__
        assert name in METHODS
        doc = getattr(arsam_jax, name).__doc__
        source = "own method" if name == "budgeted_sam" else "References:"
        for part in ("Costs", "eeps", "Args:", source):
            assert part in doc, (name, part)
