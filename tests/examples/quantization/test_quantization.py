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
from examples.quantization.__main__ import (
    WEIGHTS_FILE,
    Options,
    Quantization,
    QuantizedState,
)
from examples.quantization.network import (
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
    """Of a comparison whose float network of seed 0 is trained once for all tests."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def task(folder, standard_promotion):
    return functools.cache(
        lambda through: Quantization(Options(**TINY, output=folder, name="q", through=through))
    )


@pytest.fixture(scope="module")
def state(task):
    """Before the first step."""
    return task("quantized").new_state(optax.identity(), 0)


@functools.cache
def shapes(name):
    """Of the parameters of the float and of the quantized network."""
    image = jnp.zeros((2, 32, 32, 3))
    network = make_network(name, 10)
    variables = jax.eval_shape(
        functools.partial(network.init, is_training=False), jax.random.key(0), image
    )
    model = make_network(name, 10, quantized_layers(4))
    init = functools.partial(with_step_sizes, model, bits=4)
    return variables["params"], jax.eval_shape(lambda v, x: init(v, images=x), variables, image)


@pytest.mark.parametrize(
    ("name", "count"), [("resnet18", 11_173_962 + 42), ("mobilenet", 3_217_226 + 56)]
)
def test_a_network_gains_two_step_sizes_a_layer(name, count):
    before, after = shapes(name)
    assert sum(x.size for x in jax.tree.leaves(after)) == count
    gained = traverse_util.flatten_dict(after).keys() - traverse_util.flatten_dict(before).keys()
    layers = [name for name, layer in before.items() if "kernel" in layer]
    steps = [("weight_step",), ("InputQuantizer_0", "step")]
    assert gained == {(layer, *step) for layer in layers for step in steps}


@pytest.mark.parametrize("name", ["cnn", "resnet18", "mobilenet"])
def test_the_ends_have_eight_bits_and_all_else_those_asked_for(name):
    highs = {layer: weight_levels(layer, 3).high for layer in with_weights(shapes(name)[0])}
    assert len(highs) > 2
    ends = {"Conv_0": 127, "Dense_0": 127}
    assert highs == {layer: ends.get(layer, 3) for layer in highs}


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
    """Of the network at parameters whose kernels it takes as they are, by NumPy arrays."""

    def loss(params):
        return task.losses(params, state.batch_stats, first_batch(task))[0].mean()

    return jax.device_get(jax.jit(jax.grad(loss))(params))


def first_batch(task):
    return task.batch(np.arange(16), 0, 0)


def step_of_sgd(task, state, link):
    """What one step takes off the parameters: with learning rate 1, what it has as gradients."""
    tx = optax.chain(link, pull_back(), optax.sgd(1.0))
    own = state.replace(tx=tx, opt_state=tx.init(state.params))
    batch = first_batch(task)
    new, _ = jax.jit(task.train_step)(own, batch, batch)
    return jax.tree.map(lambda old, new: np.asarray(old - new), state.params, new.params)


def perturbed(params, grads, chosen=lambda path: True):
    """SAM's params + ε."""
    flat, grads = (traverse_util.flatten_dict(jax.device_get(x)) for x in (params, grads))
    norm = np.sqrt(sum(np.square(g).sum() for path, g in grads.items() if chosen(path)))
    moved = {path: x + RHO * grads[path] / norm if chosen(path) else x for path, x in flat.items()}
    return traverse_util.unflatten_dict(moved)


def chain_rule(params, grads):
    """From gradients of quantized kernels to those of the kernels and their step sizes."""
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
    """A state of which many weights and one step size are where gradients stop or turn."""
    params = dict(state.params)
    params["Conv_1"] = params["Conv_1"] | {"weight_step": params["Conv_1"]["weight_step"] / 4}
    return state.replace(params=params)


def test_through_the_quantizer_epsilon_is_of_the_quantized_weights(task, clipped):
    """SAQ's case 3: ε = ρ ĝ / ‖ĝ‖ of Q(w), Q(w) + ε, and back by the chain rule at w."""
    own = task("quantized")
    at = quantized(clipped.params, 4)
    grads = gradients(own, clipped, at)
    assert all(layer["weight_step"] == 0 for layer in with_weights(grads).values())
    second = gradients(own, clipped, perturbed(at, grads))
    expected = chain_rule(clipped.params, second)
    assert_close(step_of_sgd(own, clipped, arsam_jax.sam(RHO)), expected)
    is_clipped = expected["Conv_1"]["kernel"] == 0
    assert 0.1 < is_clipped.mean() < 0.9  # perturbed after the quantizer all the same
    assert (grads["Conv_1"]["kernel"][is_clipped] != 0).mean() > 0.9


def test_through_the_weights_it_is_sam_on_all_parameters(task, clipped):
    own = task("weights")

    def at(params):
        return chain_rule(params, gradients(own, clipped, quantized(params, 4)))

    expected = at(perturbed(clipped.params, at(clipped.params)))
    assert_close(step_of_sgd(own, clipped, arsam_jax.sam(RHO)), expected)


def test_without_a_perturbation_both_ways_are_one(task, clipped):
    steps = [step_of_sgd(task(way), clipped, optax.identity()) for way in ("quantized", "weights")]
    assert_close(*steps)
    assert_close(steps[0], chain_rule(clipped.params, gradients(*_at_quantized(task, clipped))))


def _at_quantized(task, state):
    return task("quantized"), state, quantized(state.params, 4)


def test_what_epsilon_moves_is_counted(task, clipped):
    kernels = with_weights(clipped.params)
    at = quantized(clipped.params, 4)
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


def test_bins_are_the_integers_of_the_weights(state):
    for name, own in bins(state.params, 4).items():
        layer = state.params[name]
        np.testing.assert_array_equal(own, integers_of(name, layer))
        value = quantized(state.params, 4)[name]["kernel"]
        np.testing.assert_allclose(value, own * layer["weight_step"], rtol=1e-6)


def test_a_step_of_a_large_network_keeps_its_shapes(monkeypatch):
    """Of MobileNet, whose layers are depthwise."""
    images, labels = np.zeros((2, 32, 32, 3), np.uint8), np.zeros(2, np.int32)
    cifar = data.Images(images, labels, images, labels, num_classes=10, mean=0.0, deviation=1.0)
    monkeypatch.setattr(data, "load", lambda *_, **__: cifar)
    task = Quantization(Options(network="mobilenet", batch_size=2, augment=True))

    def new_state(tx, seed):  # the float network is not trained
        variables = task.float_network.init(jax.random.key(seed))
        return QuantizedState.create(
            apply_fn=task.model.apply,
            tx=tx,
            params=task.with_step_sizes(variables, images),
            batch_stats=variables["batch_stats"],
            float_accuracy=0.0,
        )

    assert_a_step_keeps_shapes(task, new_state)


def test_the_program_trains_and_reports(tmp_path):
    """Through the quantizer, and then through the weights from the same float network."""
    file = tmp_path / "quantization/float/seed0" / WEIGHTS_FILE
    for name, arguments in (
        ("quantization", "--method k_sam --float-epochs 8"),
        ("other", f"--method sampa --through weights --name other --weights {file}"),
    ):
        arguments += f" --dataset digits --train-examples 192 --epochs 2 --output {tmp_path}"
        arguments += " --noise 0 --augment"
        assert comparison.main(Options, Quantization, "quantization", arguments.split()) == 0
        report = json.loads((tmp_path / name / "report.json").read_text())
        result = json.loads((file.parent / "result.json").read_text())
        for method, (run,) in report["runs"].items():
            assert run["measures"].keys() == Quantization.measures.keys()
            assert run["measures"]["accuracy"] > 50
            of_float = run["measures"]["float_accuracy"]
            assert of_float == pytest.approx(result["measures"]["accuracy"])
            assert (tmp_path / f"{name}/{method}/seed0/weights.png").exists()
    assert not (tmp_path / "other/float").exists()


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


def test_weights_of_another_comparison(state, folder, tmp_path):
    file = folder / "q/float/seed0" / WEIGHTS_FILE
    options = Options(**TINY, output=tmp_path, name="q", weights=file)
    assert_same(Quantization(options).new_state(optax.identity(), 0).params, state.params)
    assert not (tmp_path / "q").exists()
    damaged = tmp_path / "weights.npz"
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
    moves = [(row, column) for row in range(3) for column in range(3)]
    found = set()
    for place in range(64):
        for row, column in moves:
            cut = padded[place, row : row + 8, column : column + 8]
            found |= {
                (place, row, column, is_mirrored)
                for is_mirrored, image in enumerate((cut, cut[:, ::-1]))
                if np.array_equal(image, result[place])
            }
    assert len(found) == 64
    _, rows, columns, mirrored = zip(*found, strict=True)
    assert {*zip(rows, columns, strict=True)} == {*moves}
    assert 16 < sum(mirrored) < 48


@pytest.mark.parametrize(
    ("arguments", "left_out"),
    [
        ("all", {"wsam"}),
        ("all --through weights", set()),
        ("all wsam", set()),  # an error, then
    ],
)
def test_all_methods_are_those_that_can_run(arguments, left_out, tmp_path, capsys):
    given = ["--output", str(tmp_path), "--method", *arguments.split()]
    options = comparison.parse(Options, "quantization", given)
    assert {"base", *METHODS} - set(options.method) == left_out
    printed = capsys.readouterr().out
    for method in left_out:
        assert f"all leaves out {method}: its part past the optimizer" in printed
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
def test_what_makes_no_sense_is_an_error(changed, message):
    with pytest.raises(ConfigError, match=message):
        Quantization(Options(**changed))
