"""The quantized networks, perturbations on either side of the quantizer, and the program."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util

import arsam_jax
from examples.common import comparison, weights
from examples.common.errors import ConfigError, DataError, StoppedError
from examples.common.methods import METHODS
from examples.common.optimizers import pull_back
from examples.common.pipeline import Order
from examples.quantization import data
from examples.quantization.__main__ import WEIGHTS_FILE, Options, Quantization, QuantizedState
from examples.quantization.network import (
    CNN,
    InputQuantizer,
    bins,
    make_network,
    quantized,
    quantized_layers,
    weight_levels,
    with_step_sizes,
    with_weights,
)
from tests.examples.train_steps import assert_a_step_keeps_shapes

pytestmark = pytest.mark.usefixtures("standard_promotion")
long = pytest.mark.long

RHO = 0.5
TINY = {
    "dataset": "digits",
    "train_examples": 48,
    "batch_size": 16,
    "rho": RHO,
    "epochs": 2,
    "float_epochs": 2,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder of runs, where the float network of seed 0 is trained once for all tests."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def task(folder, standard_promotion):
    return functools.cache(
        lambda through: Quantization(Options(**TINY, output=folder, name="q", through=through))
    )


@pytest.fixture(scope="module")
def state(task):
    """The state before the first step."""
    return task("quantized").new_state(optax.identity(), 0)


@functools.cache
def shapes(name):
    """Return the shapes of the parameters of the float and of the quantized network."""
    image = jnp.zeros((2, 32, 32, 3))
    network = make_network(name, 10)
    variables = jax.eval_shape(
        functools.partial(network.init, is_training=False), jax.random.key(0), image
    )
    model = make_network(name, 10, quantized_layers(4))
    init = functools.partial(with_step_sizes, model, bits=4)
    return variables["params"], jax.eval_shape(lambda v, x: init(v, images=x), variables, image)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("cnn", None),
        ("mobilenet", 3_217_226 + 56),
        pytest.param("resnet18", 11_173_962 + 42, marks=long),
    ],
)
def test_layers_gain_two_step_sizes_and_the_ends_have_eight_bits(name, count):
    before, after = shapes(name)
    layers = with_weights(before)
    gained = traverse_util.flatten_dict(after).keys() - traverse_util.flatten_dict(before).keys()
    steps = [("weight_step",), ("InputQuantizer_0", "step")]
    assert gained == {(layer, *step) for layer in layers for step in steps}
    assert count in (None, sum(x.size for x in jax.tree.leaves(after)))
    ends = {"Conv_0": 127, "Dense_0": 127}
    highs = {layer: weight_levels(layer, 3).high for layer in layers}
    assert len(highs) > 2
    assert highs == {layer: ends.get(layer, 3) for layer in highs}


@long
def test_inputs_are_quantized_with_a_sign_in_the_first_layer_alone():
    seen = {}

    def record(x, kernel, *args, **kwargs):
        seen[len(seen)] = np.unique(x)
        return jax.lax.conv_general_dilated(x, kernel, *args, **kwargs)

    def spied(make):
        quantizer = make.keywords["conv_general_dilated_cls"]
        own = functools.partial(InputQuantizer, record, *quantizer.args[1:])
        return functools.partial(make.func, conv_general_dilated_cls=own)

    layers = quantized_layers(3)
    layers = layers._replace(first=spied(layers.first), conv=spied(layers.conv))
    images = np.random.default_rng(0).normal(size=(4, 8, 8, 1)).astype(np.float32)
    model = make_network("cnn", 10, layers)
    model.init(jax.random.key(0), images, is_training=False)
    assert len(seen) == 6
    assert 8 < len(seen[0]) <= 256
    assert seen[0].min() < 0
    for place in range(1, 6):
        assert 1 < len(seen[place]) <= 8
        assert seen[place].min() == 0


@long
def test_step_sizes_start_at_the_weights_and_at_the_first_batch(state, task):
    own, order = task("quantized"), Order(48, 16, 0)
    images = own.images.normalized(jnp.asarray(own.images.train[order(0)]))
    variables = {"params": own.seen_by_network(state.params), "batch_stats": state.batch_stats}
    _, captured = own.model.apply(
        variables, images, is_training=False, capture_intermediates=True, mutable=["intermediates"]
    )
    normalized = captured["intermediates"]["BatchNorm_0"]["__call__"][0]
    inputs = {"Conv_0": (127, images), "Conv_1": (15, np.maximum(normalized, 0))}
    for layer, (high, x) in inputs.items():
        expected = 2 * np.abs(np.asarray(x)).mean() / np.sqrt(high)
        step = state.params[layer]["InputQuantizer_0"]["step"]
        np.testing.assert_allclose(step, expected, rtol=1e-5)
    for layer, high in (("Conv_0", 127), ("Conv_1", 7), ("Dense_0", 127)):
        expected = 2 * np.abs(np.asarray(state.params[layer]["kernel"])).mean() / np.sqrt(high)
        np.testing.assert_allclose(state.params[layer]["weight_step"], expected, rtol=1e-5)


def gradients(task, state, params):
    """Return the gradients of the float network as NumPy arrays."""

    def loss(params):
        return task.losses(params, state.batch_stats, first_batch(task))[0].mean()

    return jax.device_get(jax.jit(jax.grad(loss))(params))


def first_batch(task):
    return task.batch(np.arange(16), 0, 0)


def step_of_sgd(task, state, link):
    """Return what a step of SGD with learning rate 1 subtracts from the parameters."""
    tx = optax.chain(link, pull_back(), optax.sgd(1.0))
    own = state.replace(tx=tx, opt_state=tx.init(state.params))
    batch = first_batch(task)
    new, _ = jax.jit(task.train_step)(own, batch, batch)
    return jax.tree.map(lambda old, new: np.asarray(old - new), state.params, new.params)


def perturbed(params, grads, chosen=lambda path: True):
    """Return SAM's params + ε."""
    flat, grads = (traverse_util.flatten_dict(jax.device_get(x)) for x in (params, grads))
    norm = np.sqrt(sum(np.square(g).sum() for path, g in grads.items() if chosen(path)))
    moved = {path: x + RHO * grads[path] / norm if chosen(path) else x for path, x in flat.items()}
    return traverse_util.unflatten_dict(moved)


def chain_rule(params, grads):
    """Return gradients of kernels and step sizes from those of quantized kernels."""
    result = jax.tree.map(np.copy, grads)
    for name, layer in with_weights(jax.device_get(params)).items():
        low, high = weight_levels(name, 4)
        ratio = layer["kernel"] / layer["weight_step"]
        is_inside = (low < ratio) & (ratio < high)
        of_step = np.where(is_inside, np.round(ratio) - ratio, np.clip(ratio, low, high))
        g = grads[name]["kernel"]
        result[name]["kernel"] = g * is_inside
        result[name]["weight_step"] = (g * of_step).sum() / np.sqrt(ratio.size * high)
    return result


def assert_close(actual, expected):
    actual, expected = (traverse_util.flatten_dict(x) for x in (actual, expected))
    assert actual.keys() == expected.keys()
    for path, x in expected.items():
        scale = 2e-3 * np.abs(x).max() + 1e-6
        np.testing.assert_allclose(actual[path], x, rtol=0, atol=scale, err_msg=str(path))


@pytest.fixture
def clipped(state):
    """A state with many weights that are clipped."""
    params = dict(state.params)
    params["Conv_1"] = params["Conv_1"] | {"weight_step": params["Conv_1"]["weight_step"] / 4}
    return state.replace(params=params)


@long
def test_through_the_quantizer_epsilon_is_of_the_quantized_weights(task, clipped):
    """SAQ's case 3: ε = ρ ĝ / ‖ĝ‖ of Q(w), Q(w) + ε, and back by the chain rule at w."""
    own, at = task("quantized"), quantized(clipped.params, 4)
    grads = gradients(own, clipped, at)
    assert all(layer["weight_step"] == 0 for layer in with_weights(grads).values())
    second = gradients(own, clipped, perturbed(at, grads))
    expected = chain_rule(clipped.params, second)
    assert_close(step_of_sgd(own, clipped, arsam_jax.sam(RHO)), expected)
    is_clipped = expected["Conv_1"]["kernel"] == 0
    assert 0.1 < is_clipped.mean() < 0.9  # They are perturbed after the quantizer.
    assert (grads["Conv_1"]["kernel"][is_clipped] != 0).mean() > 0.9
    steps = [step_of_sgd(task(way), clipped, optax.identity()) for way in ("quantized", "weights")]
    assert_close(*steps)
    assert_close(steps[0], chain_rule(clipped.params, grads))


@long
def test_through_the_weights_it_is_sam_on_all_parameters(task, clipped):
    own = task("weights")

    def at(params):
        return chain_rule(params, gradients(own, clipped, quantized(params, 4)))

    expected = at(perturbed(clipped.params, at(clipped.params)))
    assert_close(step_of_sgd(own, clipped, arsam_jax.sam(RHO)), expected)


@long
def test_moved_counts_what_epsilon_moves(task, clipped):
    kernels, at = with_weights(clipped.params), quantized(clipped.params, 4)
    grads = gradients(task("quantized"), clipped, at)
    epsilon = jax.tree.map(lambda new, old: new - old, perturbed(at, grads), jax.device_get(at))
    far = [
        np.abs(epsilon[name]["kernel"]) > np.asarray(layer["weight_step"]) / 2
        for name, layer in kernels.items()
    ]
    moved = perturbed(clipped.params, chain_rule(clipped.params, grads))
    other = [
        integers_of(name, layer) != integers_of(name, moved[name])
        for name, layer in kernels.items()
    ]
    for way, flags in (("quantized", far), ("weights", other)):
        own, size = task(way), sum(x.size for x in flags)
        share = jax.jit(own.moved)(clipped.params, clipped.batch_stats, first_batch(own))
        expected = sum(x.sum() for x in flags) / size
        assert 0 < expected < 0.5
        np.testing.assert_allclose(share, expected, atol=2 / size)


def integers_of(name, layer):
    ratio = np.asarray(layer["kernel"]) / np.asarray(layer["weight_step"])
    return np.round(np.clip(ratio, *weight_levels(name, 4)))


@long
def test_bins_are_the_integers_of_the_weights(state):
    for name, own in bins(state.params, 4).items():
        layer = state.params[name]
        np.testing.assert_array_equal(own, integers_of(name, layer))
        value = quantized(state.params, 4)[name]["kernel"]
        np.testing.assert_allclose(value, own * layer["weight_step"], rtol=1e-6)


@pytest.mark.parametrize("network", ["cnn", pytest.param("mobilenet", marks=long)])
def test_a_step_keeps_its_shapes(network, monkeypatch):
    images, labels = np.zeros((2, 32, 32, 3), np.uint8), np.zeros(2, np.int32)
    cifar = data.Images(images, labels, images, labels, num_classes=10, mean=0.0, deviation=1.0)
    monkeypatch.setattr(data, "load", lambda *_, **__: cifar)
    task = Quantization(Options(network=network, batch_size=2, augment=True))

    def new_state(tx, seed):  # The float network is not trained.
        variables = task.float_network.init(jax.random.key(seed))
        return QuantizedState.create(
            apply_fn=task.model.apply,
            tx=tx,
            params=task.with_step_sizes(variables, images),
            batch_stats=variables["batch_stats"],
            float_accuracy=0.0,
        )

    assert_a_step_keeps_shapes(task, new_state, least=1e4)


def test_the_program_trains_and_reports(tmp_path, monkeypatch):
    """With one layer of two channels, through the quantizer."""
    monkeypatch.setattr(
        "examples.quantization.__main__.make_network",
        lambda name, num_classes, *layers: CNN(num_classes, (2,), *layers),
    )
    arguments = "--method base --train-examples 32 --epochs 1 --float-epochs 1"
    run(tmp_path, arguments)
    report = json.loads((tmp_path / "quantization/report.json").read_text())
    (result,) = report["runs"]["base"]
    assert result["measures"].keys() == Quantization.measures.keys()
    assert all(0 <= value <= 100 for value in result["measures"].values())
    assert (tmp_path / "quantization/base/seed0/weights.png").exists()


def run(folder, arguments):
    given = f"{arguments} --dataset digits --output {folder}".split()
    assert comparison.main(Options, Quantization, "quantization", given) == 0


@long
def test_the_program_learns_through_the_quantizer_and_through_the_weights(tmp_path):
    """The second comparison starts from the float network of the first."""
    file = tmp_path / "quantization/float/seed0" / WEIGHTS_FILE
    for name, arguments in (
        ("quantization", "--method k_sam --float-epochs 8"),
        ("other", f"--method sampa --through weights --name other --weights {file}"),
    ):
        run(tmp_path, f"{arguments} --train-examples 192 --epochs 2 --noise 0 --augment")
        report = json.loads((tmp_path / name / "report.json").read_text())
        result = json.loads((file.parent / "result.json").read_text())
        for (only,) in report["runs"].values():
            assert only["measures"]["accuracy"] > 50
            of_float = only["measures"]["float_accuracy"]
            assert of_float == pytest.approx(result["measures"]["accuracy"])
    assert not (tmp_path / "other/float").exists()


@long
def test_the_float_network_is_trained_once_and_goes_on_where_it_was_stopped(state, task, tmp_path):
    options = Options(**TINY, output=tmp_path, name="q")
    own, place = Quantization(options), tmp_path / "q/float/seed0"
    of_float = dataclasses.replace(
        options, epochs=options.float_epochs, learning_rate=options.float_learning_rate
    )
    calls = iter(range(1, 100))
    with pytest.raises(StoppedError, match="base, seed 0, at step 4"):
        comparison.Trainer(of_float, own.float_network).train(
            "base", 0, place, should_stop=lambda: next(calls) == 4
        )
    assert not (place / WEIGHTS_FILE).exists()
    stopped = own.new_state(optax.identity(), 0)
    assert_same(stopped.params, state.params)
    before = (place / WEIGHTS_FILE).stat().st_mtime_ns
    assert_same(own.new_state(optax.identity(), 0).params, state.params)
    assert (place / WEIGHTS_FILE).stat().st_mtime_ns == before
    assert stopped.float_accuracy == state.float_accuracy


def assert_same(actual, expected):
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)


@long
def test_an_interrupted_run_ends_at_the_same_bits(task, tmp_path):
    trainer = comparison.Trainer(task("quantized").options, task("quantized"))
    whole = trainer.train("arsam", 0, tmp_path / "whole")
    calls = iter(range(1, 100))
    with pytest.raises(StoppedError):
        trainer.train("arsam", 0, tmp_path / "parts", should_stop=lambda: next(calls) == 3)
    parts = trainer.train("arsam", 0, tmp_path / "parts")
    assert parts["measures"] == whole["measures"]
    steps = [(tmp_path / name / "steps.csv").read_text() for name in ("whole", "parts")]
    assert steps[0] == steps[1]


@long
def test_weights_of_another_comparison(state, folder, tmp_path):
    file = folder / "q/float/seed0" / WEIGHTS_FILE
    options = Options(**TINY, output=tmp_path, name="q", weights=file)
    assert_same(Quantization(options).new_state(optax.identity(), 0).params, state.params)
    assert not (tmp_path / "q").exists()
    damaged = tmp_path / "weights.safetensors"
    weights.save(damaged, {k: v for k, v in weights.load(file).items() if "Conv_1" not in k})
    options = dataclasses.replace(options, weights=damaged)
    with pytest.raises(DataError, match=r"1 names are missing: Conv_1.weight"):
        Quantization(options).new_state(optax.identity(), 0)


def test_validation_is_apart_from_the_training_and_labels_are_redrawn():
    def load(**changed):
        return data.load(
            "digits", None, **{"train_examples": 0, "noise": 0.0, "validation": False} | changed
        )

    tested, validated = load(), load(validation=True)
    assert (len(tested.train), len(tested.held_out)) == (1000, 797)
    assert (len(validated.train), len(validated.held_out)) == (800, 200)
    some = load(validation=True, train_examples=50)
    np.testing.assert_array_equal(some.train, validated.train[:50])
    whole = np.concatenate([validated.train, validated.held_out])
    np.testing.assert_array_equal(whole, tested.train)
    noisy = load(noise=0.4)
    assert 0.35 < (noisy.train_labels != tested.train_labels).mean() < 0.45
    np.testing.assert_array_equal(noisy.held_out_labels, tested.held_out_labels)
    with pytest.raises(DataError, match="--train-examples 801 is more than the 800 of digits"):
        load(validation=True, train_examples=801)


def test_augmented_images_are_moved_or_mirrored_and_depend_on_seed_and_step():
    images = np.random.default_rng(0).integers(1, 256, (64, 8, 8, 1)).astype(np.uint8)
    result = data.crop_and_mirror(images, 3, 5)
    np.testing.assert_array_equal(data.crop_and_mirror(images, 3, 5), result)
    assert (data.crop_and_mirror(images, 3, 6) != result).any()
    padded = np.pad(images, [(0, 0), (1, 1), (1, 1), (0, 0)])
    counts = np.zeros((3, 3, 2), int)
    for row, column, mirrored in np.ndindex(counts.shape):
        shifted = padded[:, row : row + 8, column : column + 8, :]
        shifted = shifted[:, :, ::-1] if mirrored else shifted
        counts[row, column, mirrored] = (shifted == result).all((1, 2, 3)).sum()
    assert counts.sum() == 64
    assert counts.sum(2).min() > 0
    assert 16 < counts[..., 1].sum() < 48


@pytest.mark.parametrize(
    ("arguments", "left_out"),
    [
        ("all", {"wsam"}),
        ("all --through weights", set()),
    ],
)
def test_all_methods_are_those_that_can_run(arguments, left_out, tmp_path, capsys):
    given = ["--output", str(tmp_path), "--method", *arguments.split()]
    options = comparison.parse(Options, "quantization", given)
    assert {"base", *METHODS} - set(options.method) == left_out
    printed = capsys.readouterr().out
    for method in left_out:
        assert f"all leaves out {method}: its part after the optimizer" in printed
    assert bool(printed) == bool(left_out)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"weight_bits": 1}, "--weight-bits must be 2 to 8, not 1"),
        ({"activation_bits": 9}, "--activation-bits must be 2 to 8, not 9"),
        ({"through": "both"}, "--through: there is no both; there are quantized, weights"),
        ({"network": "vgg"}, "--network: there is no vgg; there are cnn"),
        ({"dataset": "mnist"}, "--dataset: there is no mnist; there are digits"),
        ({"noise": 1.0}, r"--noise must be in \[0, 1\)"),
        ({"method": ("wsam",)}, "--method wsam: .* cannot be pulled back"),
    ],
)
def test_wrong_options_are_an_error(changed, message):
    with pytest.raises(ConfigError, match=message):
        Quantization(Options(**changed))
