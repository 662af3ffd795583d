"""Keras: ``fit`` with a link is Keras' own but for the gradient, and goes on from saved weights."""

import os

import pytest

os.environ["KERAS_BACKEND"] = "jax"  # before keras is imported
keras = pytest.importorskip("keras")

import chex  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402

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
    scaled = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.05, momentum=0.9))
    link = arsam_jax.looksam(0.1, k=2)  # a PSF that is kept while the scale moves
    models = make_model(link), make_model(link, scaled)
    for model in models:
        fit(model)
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


def test_what_it_cannot_do_is_refused():
    with pytest.raises(ValueError, match="gradient_accumulation_steps"):
        make_model(arsam_jax.sam(0.1), keras.optimizers.SGD(gradient_accumulation_steps=2))
    model = make_model(arsam_jax.sam(0.1))
    with pytest.raises(ValueError, match="compile with a new optimizer"):
        model.compile(model.optimizer, "mse", link=arsam_jax.sam(0.1))


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
