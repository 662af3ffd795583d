"""Keras: ``fit`` with a link is Keras' own but for the gradient, and goes on from saved weights."""

import os
import textwrap

import pytest

os.environ["KERAS_BACKEND"] = "jax"  # before keras is imported
keras = pytest.importorskip("keras")

import chex  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
from jax.sharding import PartitionSpec as P  # noqa: E402

import arsam_jax  # noqa: E402
from arsam_jax.keras import SharpnessAware  # noqa: E402

X = np.random.default_rng(0).normal(size=(32, 6)).astype(np.float32)
Y = np.random.default_rng(1).normal(size=(32, 1)).astype(np.float32)

pytestmark = pytest.mark.usefixtures("standard_promotion")


class Model(SharpnessAware, keras.Model):
    pass


class Sequential(SharpnessAware, keras.Sequential):
    pass


class Counted(keras.layers.Layer):
    """Counts the passes that are executed."""

    passes = 0

    def call(self, x):
        def count():
            Counted.passes += 1

        jax.debug.callback(count)
        return x


def layers(dropout=0.5):
    return [
        keras.layers.Dense(8, kernel_regularizer=keras.regularizers.L2(0.01)),
        keras.layers.BatchNormalization(momentum=0.9),
        keras.layers.Dropout(dropout),
        Counted(),
        keras.layers.Dense(1, activity_regularizer=keras.regularizers.L2(0.01)),
    ]


def make_model(link, optimizer=None, **kwargs):
    keras.utils.set_random_seed(0)
    inputs = outputs = keras.Input((6,))
    for layer in layers(**kwargs):
        outputs = layer(outputs)
    model = Model(inputs, outputs)
    optimizer = optimizer or keras.optimizers.SGD(0.05, momentum=0.9)
    model.compile(optimizer, "mse", metrics=["mae"], link=link)
    return model


def fit(model, epochs=1, **kwargs):
    return model.fit(X, Y, batch_size=8, epochs=epochs, shuffle=False, verbose=0, **kwargs).history


def values(variables):
    return [np.asarray(v.value) for v in variables]


def test_second_gradients_are_executed_where_they_are_counted():
    model = make_model(arsam_jax.arsam(0.1, 0.5, segment_length=4, initial_samples=2))
    Counted.passes = 0
    history = fit(model, epochs=3)
    jax.effects_barrier()
    sampled = arsam_jax.metrics_dict(model.link_state)["num_sampled"]
    assert 0 < sampled < 12
    assert Counted.passes == 12 + sampled
    assert history["sampled_share"][-1] == pytest.approx(sampled / 12)


def test_at_rho_0_it_is_plain_fit_bit_for_bit():
    ours, plain = make_model(arsam_jax.sam(0.0)), make_model(None)
    history, expected = fit(ours, epochs=2), fit(plain, epochs=2)
    assert history.pop("sampled_share") == [0, 0]
    assert history == expected
    chex.assert_trees_all_equal(values(ours.variables), values(plain.variables))


def test_statistics_seeds_and_metrics_are_those_of_the_clean_pass():
    ours, plain = make_model(arsam_jax.sam(0.5)), make_model(None)
    logs, expected = ours.train_on_batch(X, Y), plain.train_on_batch(X, Y)
    assert logs[:2] == expected[:2]
    chex.assert_trees_all_equal(
        values(ours.non_trainable_variables), values(plain.non_trainable_variables)
    )
    weights = values(ours.trainable_variables), values(plain.trainable_variables)
    with pytest.raises(AssertionError):
        chex.assert_trees_all_close(*weights, rtol=1e-3)


def test_a_step_is_that_of_sam_with_one_dropout_mask():
    model = make_model(arsam_jax.sam(0.3), keras.optimizers.SGD(0.05))
    grads, params, grad_fn = model.gradients(X, Y)
    chex.assert_trees_all_close(grad_fn(params), grads, rtol=1e-5, atol=1e-7)
    arsam_jax.check_wiring(model.link, grads, params, grad_fn=grad_fn)
    norm = np.sqrt(sum(np.sum(np.square(g)) for g in grads))
    perturbed = grad_fn([w + 0.3 * g / norm for w, g in zip(params, grads, strict=True)])
    expected = [w - 0.05 * g for w, g in zip(params, perturbed, strict=True)]
    model.train_on_batch(X, Y)
    chex.assert_trees_all_close(values(model.trainable_variables), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of Keras' own
def test_saved_weights_resume_bit_for_bit(tmp_path):
    link = arsam_jax.arsam(0.1, 0.5, segment_length=4, initial_samples=2)
    whole, half, resumed = (make_model(link, dropout=0) for _ in range(3))  # seeds are not saved
    fit(whole, epochs=2)
    fit(half)
    half.save_weights(tmp_path / "half.weights.h5")
    resumed.load_weights(tmp_path / "half.weights.h5")
    fit(resumed)
    chex.assert_trees_all_equal(values(resumed.variables), values(whole.variables))
    chex.assert_trees_all_equal(resumed.link_state, whole.link_state)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of Keras' own
def test_a_backup_resumes_bit_for_bit(tmp_path):
    link = arsam_jax.arsam(0.1, 0.5, segment_length=4, initial_samples=2)
    whole, stopped, resumed = (make_model(link, dropout=0) for _ in range(3))
    fit(whole, epochs=2)
    for model, epochs in ((stopped, 1), (resumed, 2)):
        backup = keras.callbacks.BackupAndRestore(str(tmp_path), delete_checkpoint=False)
        fit(model, epochs=epochs, callbacks=[backup])
    assert float(resumed.optimizer.iterations.value) == 8
    chex.assert_trees_all_equal(values(resumed.variables), values(whole.variables))
    chex.assert_trees_all_equal(resumed.link_state, whole.link_state)


def test_a_model_that_fit_builds_takes_validation_and_several_steps_a_call():
    keras.utils.set_random_seed(0)
    model = Sequential(layers())
    link = optax.chain(arsam_jax.sam_every_k(0.1, 2), optax.clip_by_global_norm(1.0))
    model.compile("adam", "mse", link=link, steps_per_execution=2)
    history = model.fit(X, Y, batch_size=8, verbose=0, validation_split=0.25).history
    assert arsam_jax.get_metrics(model.link_state).num_sampled == 2
    assert history.keys() == {"loss", "sampled_share", "val_loss"}


def test_the_loss_scale_does_not_reach_the_link():
    inner = keras.optimizers.SGD(0.05, momentum=0.9)
    scaled = keras.optimizers.LossScaleOptimizer(inner, 1024.0, dynamic_growth_steps=2)
    link = arsam_jax.looksam(0.1, k=2)  # a PSF that is kept while the scale moves
    models = make_model(link), make_model(link, scaled)
    for model in models:
        fit(model)
    assert float(scaled.dynamic_scale.value) == 4096
    ours, expected = (values(model.trainable_variables) for model in models)
    chex.assert_trees_all_close(ours, expected, rtol=1e-4, atol=1e-6)
    states = [model.link_state for model in models]
    chex.assert_trees_all_close(*states, rtol=1e-4, atol=1e-5)


def test_a_step_that_is_not_finite_is_skipped_and_halves_the_loss_scale():
    scaled = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.05), initial_scale=4.0)
    model = make_model(arsam_jax.sam(0.1), scaled)
    before = values(model.trainable_variables)
    model.train_on_batch(X, np.full_like(Y, np.inf))
    chex.assert_trees_all_equal(values(model.trainable_variables), before)
    assert float(scaled.dynamic_scale.value) == 2.0


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of Keras' own
@pytest.mark.filterwarnings("error:.compile")  # Keras warns where it does not compile
def test_a_loaded_model_is_compiled_as_keras_does_unless_it_had_a_link(tmp_path):
    file, link = tmp_path / "model.keras", arsam_jax.looksam(0.1, k=3)
    custom = {"custom_objects": {"Model": Model, "Counted": Counted}}
    plain = make_model(None, dropout=0)
    fit(plain)
    plain.save(file)
    loaded = keras.models.load_model(file, **custom)
    assert fit(loaded) == fit(plain)
    chex.assert_trees_all_equal(values(loaded.variables), values(plain.variables))

    ours = make_model(link, dropout=0)
    fit(ours)
    ours.save(file)
    loaded = keras.models.load_model(file, **custom)
    with pytest.raises(ValueError, match="call `compile\\(\\)` before"):
        fit(loaded)
    loaded.compile(keras.optimizers.SGD(0.05, momentum=0.9), "mse", metrics=["mae"], link=link)
    loaded.load_weights(file)
    assert fit(loaded) == fit(ours)
    chex.assert_trees_all_equal(values(loaded.variables), values(ours.variables))


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of Keras' own
def test_a_state_tree_resumes_bit_for_bit():
    models = []
    for _ in range(2):
        keras.utils.clear_session()  # which counts layers and optimizers in their names
        models.append(make_model(arsam_jax.looksam(0.1, k=3), dropout=0))
    ours, resumed = models
    fit(ours)
    resumed.set_state_tree(ours.get_state_tree("numpy_array"))
    chex.assert_trees_all_equal(resumed.link_state, ours.link_state)
    assert fit(resumed) == fit(ours)
    chex.assert_trees_all_equal(resumed.link_state, ours.link_state)


def test_compiled_anew_it_trains_with_the_new_link():
    model = make_model(arsam_jax.sam(0.1), dropout=0)
    start = values(model.variables)
    found = []
    kept = []  # what jit has compiled for the link before
    for link in (arsam_jax.sam(0.1), arsam_jax.sam(1.0), arsam_jax.sam(0.1)):
        model.compile(keras.optimizers.SGD(0.05), "mse", link=link)
        for variable, value in zip(model.variables, start, strict=False):
            variable.assign(value)
        model.train_on_batch(X, Y)
        kept.append(model.train_function)
        found.append(values(model.trainable_variables))
    chex.assert_trees_all_equal(found[0], found[2])
    with pytest.raises(AssertionError):
        chex.assert_trees_all_close(found[0], found[1], rtol=1e-3)


def test_under_model_parallel_the_state_is_sharded_as_the_parameters():
    mesh = keras.distribution.DeviceMesh((2, 2), ("batch", "model"), jax.devices()[:4])
    layout = keras.distribution.LayoutMap(mesh)
    layout[".*kernel"] = (None, "model")
    parallel = keras.distribution.ModelParallel(layout_map=layout, batch_dim_name="batch")
    with parallel.scope():
        keras.utils.set_random_seed(0)
        model = Sequential([keras.Input((6,)), keras.layers.Dense(8), keras.layers.Dense(2)])
        model.compile(keras.optimizers.SGD(0.05), "mse", link=arsam_jax.looksam(0.1, k=3))
        for _ in range(2):
            psf = model.link_state.correction
            kernels = [x for x in jax.tree.leaves(psf) if x.ndim == 2]
            assert [x.sharding.spec for x in kernels] == [P(None, "model")] * 2
            model.fit(X, np.tile(Y, 2), batch_size=8, verbose=0)


class Stepping(keras.Model):
    def train_step(self, state, data):
        return super().train_step(state, data)


class BehindTheMixin(SharpnessAware, Stepping):
    pass


class BeforeTheMixin(Model):
    def compute_loss_and_updates(self, *args, **kwargs):
        return super().compute_loss_and_updates(*args, **kwargs)


@pytest.mark.parametrize(
    ("model_class", "message"),
    [
        (BehindTheMixin, "replaces Keras' own train_step, but Stepping"),
        (BeforeTheMixin, "own compute_loss_and_updates, but BeforeTheMixin"),
    ],
)
def test_a_step_of_the_model_s_own_is_refused(model_class, message):
    inputs = keras.Input((6,))
    model = model_class(inputs, keras.layers.Dense(1)(inputs))
    model.compile("sgd", "mse")
    fit(model)
    with pytest.raises(ValueError, match=message):
        model.compile("sgd", "mse", link=arsam_jax.sam(0.1))


@pytest.mark.parametrize(
    ("link", "error", "message"),
    [
        ("sam", TypeError, "link must be an optax.GradientTransformation.* got 'sam'"),
        (arsam_jax.sam, TypeError, "link must be an optax.GradientTransformation"),
        (optax.clip(1.0), ValueError, "exactly one sharpness-aware transformation"),
        (
            optax.chain(arsam_jax.sam(0.1), optax.sgd(0.1)),
            ValueError,
            "must not contain the base optimizer",
        ),
        (
            optax.chain(arsam_jax.sam(0.1), optax.adam(0.1)),
            ValueError,
            "must not contain the base optimizer",
        ),
        (arsam_jax.m_sam(0.1, 2), ValueError, "fit passes no example_loss_fn"),
        (arsam_jax.sampa(0.1, 0.1), ValueError, "fit passes no previous_grad_fn"),
    ],
)
def test_a_wrong_link_is_refused_and_the_model_is_as_it_was(link, error, message):
    model = make_model(None)
    with pytest.raises(error, match=message):
        model.compile("sgd", "mse", link=link)
    assert fit(model).keys() == {"loss", "mae"}


@pytest.mark.parametrize(
    ("link", "argument"),
    [
        (arsam_jax.budgeted_sam(0.1, num_microbatches=2), "example_loss_fn"),
        (arsam_jax.sparse_sam(0.1), "example_loss_fn"),
        (arsam_jax.sampa(0.1, 0.1), "previous_grad_fn"),
        (arsam_jax.ausam(0.1, 32, 4), "example_loss_fn"),
    ],
)
def test_compile_refuses_what_fit_does_not_pass_before_the_model_is_built(link, argument):
    model = Sequential(layers())
    with pytest.raises(ValueError, match=rf"fit passes no {argument}.*loop of your own") as caught:
        model.compile("sgd", "mse", link=link)
    assert "tx.update" not in str(caught.value)


@pytest.mark.parametrize("link", [None, arsam_jax.sam(0.1)])
def test_train_on_batch_returns_what_it_does_without_a_link(link):
    model = Sequential([keras.Input((6,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse", link=link)
    assert np.ndim(model.train_on_batch(X, Y)) == 0
    assert model.train_on_batch(X, Y, return_dict=True).keys() == {"loss"}
    history = model.fit(X, Y, verbose=0).history
    assert history.keys() == {"loss"} | ({"sampled_share"} if link else set())
    model.compile("sgd", "mse", metrics=["mae"], link=link)
    assert np.shape(model.train_on_batch(X, Y)) == (2,)


def test_a_metric_of_the_same_name_is_not_overwritten():
    model = Sequential([keras.Input((6,)), keras.layers.Dense(1)])
    metric = keras.metrics.MeanAbsoluteError(name="sampled_share")
    model.compile("sgd", "mse", metrics=[metric], link=arsam_jax.sam(0.1))
    with pytest.raises(ValueError, match=r"named 'sampled_share'.*Rename that metric"):
        fit(model)


def test_the_loop_that_the_errors_show_trains_as_fit_does():
    link = arsam_jax.arsam(0.1, 0.5, segment_length=4, initial_samples=2)
    accumulating = keras.optimizers.SGD(0.05, momentum=0.9, gradient_accumulation_steps=2)
    with pytest.raises(ValueError, match="gradient_accumulation_steps") as caught:
        make_model(link, accumulating)
    code = str(caught.value).partition("both gradients:\n")[2].partition("\nTo accumulate")[0]

    def build():
        keras.utils.set_random_seed(0)
        model = Sequential(
            [
                keras.Input((6,)),
                keras.layers.Dense(8, activation="relu"),
                keras.layers.BatchNormalization(momentum=0.9),
                keras.layers.Dropout(0.5),
                keras.layers.Dense(1),
            ]
        )
        return model, keras.optimizers.SGD(0.05, momentum=0.9)

    expected, optimizer = build()
    expected.compile(optimizer, "mse", link=link)
    expected.fit(X, Y, batch_size=8, shuffle=False, verbose=0)

    model, optimizer = build()
    batches = [(X[i : i + 8], Y[i : i + 8]) for i in range(0, 32, 8)]
    loss_fn = lambda y, y_pred: jnp.mean(jnp.square(y - y_pred))  # noqa: E731
    names = {"jax": jax, "model": model, "optimizer": optimizer, "link": link}
    exec(textwrap.dedent(code), names | {"batches": batches, "loss_fn": loss_fn})
    for kind in ("trainable_variables", "non_trainable_variables"):
        ours, theirs = (values(getattr(m, kind)) for m in (model, expected))
        chex.assert_trees_all_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_fit_refuses_what_only_parameters_show():
    model = Sequential(layers())
    model.compile("sgd", "mse", link=optax.chain(arsam_jax.sam(0.1), optax.sgd(0.1)))
    for _ in range(2):
        with pytest.raises(ValueError, match="must not contain the base optimizer"):
            fit(model)


def test_weight_decay_and_clipping_may_be_in_the_link():
    decay = optax.add_decayed_weights(10.0)
    make_model(optax.chain(arsam_jax.asam(0.0), optax.clip_by_global_norm(1.0), decay))


def test_what_it_cannot_do_is_refused():
    with pytest.raises(ValueError, match="gradient_accumulation_steps"):
        make_model(arsam_jax.sam(0.1), keras.optimizers.SGD(gradient_accumulation_steps=2))
    model = make_model(arsam_jax.sam(0.1))
    with pytest.raises(ValueError, match="Compile with a new optimizer"):
        model.compile(model.optimizer, "mse", link=arsam_jax.sam(0.1))
    with pytest.raises(ValueError, match="link=None"):
        _ = make_model(None).link_state
    model = Sequential(layers())
    model.compile("sgd", "mse", link=arsam_jax.looksam(0.1, k=2))
    for read in (lambda: model.link_state, lambda: model.gradients(X, Y)):
        with pytest.raises(ValueError, match="before compile"):
            read()
    fit(model)
    model.layers[0].trainable = False
    with pytest.raises(ValueError, match="After a change of trainable"):
        fit(model)


def test_parameters_that_do_not_train_are_left_alone():
    keras.utils.set_random_seed(0)
    model = Sequential([keras.Input((6,)), *layers()])
    model.layers[0].trainable = False
    model.compile("sgd", "mse", link=arsam_jax.gsam(0.1, 0.3))
    before = values(model.layers[0].variables)
    fit(model)
    chex.assert_trees_all_equal(values(model.layers[0].variables), before)
    shapes = jax.tree.map(jnp.shape, model.gradients(X, Y)[0])
    assert shapes == [v.shape for v in model.trainable_variables]
