"""Segmentation: losses, train step, evaluation and the program."""

import dataclasses
import json
import math
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image

import arsam_jax
from examples.common import comparison, weights
from examples.common.errors import ConfigError, DataError
from examples.segmentation import evaluation
from examples.segmentation.__main__ import Options, Segmentation, normalized, pixel_losses
from examples.segmentation.data import DEVIATION, IGNORED, MEAN
from examples.segmentation.network import PSPNet, SmallResNet, torch_name
from tests.examples.segmentation.conftest import TRAIN
from tests.examples.train_steps import assert_a_step_keeps_shapes

pytestmark = pytest.mark.usefixtures("standard_promotion")

RNG = np.random.default_rng(0)


def test_the_mean_loss_is_the_mean_over_labelled_pixels():
    logits = RNG.normal(size=(3, 4, 5, 6)).astype(np.float32)
    labels = RNG.integers(0, 6, (3, 4, 5)).astype(np.uint8)
    labels[0, :3] = labels[2] = IGNORED
    targets = np.where(labels == IGNORED, 0, labels).astype(int)[..., None]
    log_softmax = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = -np.take_along_axis(log_softmax, targets, -1)[..., 0] * (labels != IGNORED)
    values = pixel_losses(jnp.asarray(logits), jnp.asarray(labels))
    assert values.shape == (3,)
    assert values[2] == 0
    np.testing.assert_allclose(values.mean(), expected.sum() / (labels != IGNORED).sum(), rtol=1e-5)
    np.testing.assert_allclose(values[0] / values[1], expected[0].sum() / expected[1].sum(), 1e-5)
    assert np.all(np.asarray(pixel_losses(logits, np.full_like(labels, IGNORED))) == 0)


def test_images_are_normalized_as_for_imagenet():
    np.testing.assert_allclose(normalized(np.array(MEAN, np.float32)), 0, atol=1e-6)
    white = np.full((1, 1, 1, 3), 255, np.uint8)
    expected = (1 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    np.testing.assert_allclose(normalized(white)[0, 0, 0], expected, rtol=1e-5)


@pytest.fixture(scope="module")
def task(standard_promotion):
    return Segmentation(Options(scenes=16, batch_size=4, crop=24, epochs=1))


def assert_close(actual, expected, rtol=1e-3, atol=1e-4):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), actual, expected
    )


@pytest.mark.long
@pytest.mark.parametrize("method", ["sam", "sampa"])
def test_a_step_is_that_of_the_whole_loss_and_statistics_are_of_the_clean_pass(task, method):
    """With PSPNet on the small backbone, which has two heads."""
    task = Segmentation(task.options)
    task.model = PSPNet(SmallResNet(), task.num_classes)
    rho, rate = 0.1, 0.05
    link = {"sam": arsam_jax.sam(rho), "sampa": arsam_jax.sampa(rho, rate)}[method]
    state = task.new_state(optax.chain(link, optax.sgd(rate)), 0)
    previous, batch = task.batch(np.arange(4), 0, 0), task.batch(np.arange(4, 8), 1, 0)
    labels = jnp.asarray(batch.labels)
    counts = labels != IGNORED

    def loss(params):
        images = (jnp.asarray(batch.images, jnp.float32) - np.array(MEAN)) / np.array(DEVIATION)
        outputs, changed = task.model.apply(
            {"params": params, "batch_stats": state.batch_stats},
            images.astype(np.float32),
            is_training=True,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.fold_in(state.key, 0)},
        )
        head, auxiliary = (
            optax.softmax_cross_entropy_with_integer_labels(logits, labels % IGNORED)
            for logits in outputs
        )
        total = ((head + 0.4 * auxiliary) * counts).sum() / counts.sum()
        return total, changed["batch_stats"]

    value_and_grad = jax.jit(jax.value_and_grad(loss, has_aux=True))
    params = jax.device_get(state.params)
    (value, batch_stats), grads = jax.device_get(value_and_grad(params))
    new, taken = jax.jit(task.train_step)(state, batch, previous)
    np.testing.assert_allclose(taken, value, rtol=1e-5)
    assert_close(new.batch_stats, batch_stats, rtol=1e-4, atol=1e-5)
    if method == "sam":
        norm = np.sqrt(sum(np.square(g).sum() for g in jax.tree.leaves(grads)))
        moved = jax.tree.map(lambda w, g: w + rho * g / norm, params, grads)
        (_, others), grads = jax.device_get(value_and_grad(moved))
        assert not all(jax.tree.leaves(jax.tree.map(np.allclose, batch_stats, others)))
        assert_close(new.params, jax.tree.map(lambda w, g: w - rate * g, params, grads))


@pytest.mark.long
def test_the_backbone_has_a_learning_rate_of_its_own(task):
    batch, moves = task.batch(np.arange(4), 0, 0), []
    for rate in (1.0, 0.1):
        own = Segmentation(dataclasses.replace(task.options, backbone_rate=rate))
        state = own.new_state(optax.sgd(0.1), 0)
        new, _ = jax.jit(own.train_step)(state, batch, batch)
        moves.append(jax.tree.map(lambda a, b: np.asarray(a - b), new.params, state.params))
    whole, slow = moves
    whole["backbone"] = jax.tree.map(lambda x: 0.1 * x, whole["backbone"])
    assert_close(slow, whole, rtol=2e-2, atol=1e-6)


@pytest.mark.long
def test_mirrored_evaluation_has_no_side(task):
    own = Segmentation(task.options)
    own.options = dataclasses.replace(task.options, mirrored=True)
    state = own.new_state(optax.sgd(0.1), 0)
    images = RNG.integers(0, 256, (2, 24, 24, 3)).astype(np.uint8)
    softmax = own._mean_softmax(state.params, state.batch_stats, images)
    of_mirrored = own._mean_softmax(state.params, state.batch_stats, images[:, :, ::-1])
    np.testing.assert_allclose(softmax, of_mirrored[:, :, ::-1], atol=1e-6)
    np.testing.assert_allclose(softmax.sum(-1), 1, rtol=1e-5)
    plain = task._mean_softmax(state.params, state.batch_stats, images)
    assert not np.allclose(softmax, plain, atol=1e-4)


@pytest.mark.parametrize("stride", [1.0, 2 / 3, 0.3])
def test_windows_cover_images_of_any_size(stride):
    sizes = (10, 10), (6, 23), (11, 7), (40, 31)
    images = [RNG.integers(0, 3, (*size, 1)).astype(np.uint8).repeat(3, -1) for size in sizes]

    def softmax(windows):  # certain of the class that a pixel shows
        assert windows.shape == (16, 10, 10, 3)
        return (windows[..., :1] == np.arange(3)).astype(np.float32)

    found = evaluation.predict(softmax, images, 3, 10, stride)
    for image, classes in zip(images, found, strict=True):
        assert classes.dtype == np.uint8
        assert np.array_equal(classes, image[..., 0])


def test_softmaxes_of_windows_are_averaged():
    """The first window, columns 0 to 3, finds class 1 with 0.6, the other class 0 with 0.9."""
    image, calls = np.zeros((4, 6, 3), np.uint8), []
    image[:, 2:] = 1

    def softmax(windows):
        calls.append(len(windows))
        is_first = (windows[..., 0] == 0).any((1, 2))
        values = np.where(is_first[:, None], [0.4, 0.6], [0.9, 0.1])
        return np.broadcast_to(values[:, None, None], (*windows.shape[:3], 2))

    (classes,) = evaluation.predict(softmax, [image], 2, 4, 0.5)
    assert np.array_equal(classes, np.array([[1, 1, 0, 0, 0, 0]] * 4))
    assert calls == [16]


def test_measures_are_those_of_one_confusion_matrix():
    labels = RNG.integers(0, 3, (5, 6, 7)).astype(np.uint8)
    labels[:, 0] = IGNORED
    predicted = RNG.integers(0, 3, labels.shape).astype(np.uint8)
    matrix = sum(evaluation.confusion(a, b, 5) for a, b in zip(labels, predicted, strict=True))
    counts, ious, recalls = labels != IGNORED, [], []
    for c in range(3):
        both = counts & (labels == c) & (predicted == c)
        ious.append(both.sum() / (counts & ((labels == c) | (predicted == c))).sum())
        recalls.append(both.sum() / (counts & (labels == c)).sum())
    values = evaluation.measures(matrix)
    np.testing.assert_allclose(values["mean_iou"], 100 * np.mean(ious))
    np.testing.assert_allclose(values["mean_accuracy"], 100 * np.mean(recalls))
    right = 100 * np.mean(labels[counts] == predicted[counts])
    np.testing.assert_allclose(values["accuracy"], right)
    # A class that is only predicted counts in the mean IoU.
    values = evaluation.measures(np.array([[3, 1, 0], [0, 0, 0], [0, 0, 0]]))
    assert values == {"mean_iou": 37.5, "mean_accuracy": 75, "accuracy": 75}


def test_colors_are_vocs(tmp_path):
    known = {0: (0, 0, 0), 1: (128, 0, 0), 6: (0, 128, 128), 15: (192, 128, 128)}
    known |= {20: (0, 64, 128), IGNORED: (224, 224, 192)}
    assert {label: tuple(evaluation.PALETTE[label].tolist()) for label in known} == known
    images = [RNG.integers(0, 256, (96, width, 3)).astype(np.uint8) for width in (10, 20)]
    maps = [np.full(pixels.shape[:2], 15, np.uint8) for pixels in images]
    evaluation.draw(images, maps, [m + 5 for m in maps], tmp_path / "drawn.png")
    drawn = np.asarray(Image.open(tmp_path / "drawn.png"))
    assert drawn.shape == (2 * 192, 2 * 3 * 20, 3)
    assert np.array_equal(drawn[:192:2, :20:2], images[0])
    assert (drawn[0, 20].tolist(), drawn[0, 40].tolist()) == ([192, 128, 128], [0, 64, 128])
    assert not drawn[:192, 60:].any()


def run(folder, *arguments):
    given = [*arguments, "--output", str(folder), "--batch-size", "4", "--crop", "24"]
    return comparison.main(Options, Segmentation, "segmentation", given)


class Tiny(nn.Module):
    @nn.compact
    def __call__(self, images, *, is_training):
        x = nn.BatchNorm(not is_training)(nn.Conv(6, (3, 3))(images))
        return (nn.Dropout(0.1, deterministic=not is_training)(x),)


def test_the_program_trains_and_tests_on_scenes(tmp_path, monkeypatch):
    main = "examples.segmentation.__main__"
    monkeypatch.setattr(f"{main}._HELD_OUT_SCENES", 20)
    monkeypatch.setattr(f"{main}.make_network", lambda *_: Tiny())
    assert run(tmp_path, "--scenes", "8", "--epochs", "1", "--method", "base") == 0
    folder = tmp_path / "segmentation"
    (result,) = json.loads((folder / "report.json").read_text())["runs"]["base"]
    assert result["measures"].keys() == Segmentation.measures.keys()
    assert all(0 <= value <= 100 for value in result["measures"].values())
    with Image.open(folder / "base/seed0/predictions.png") as image:
        assert image.size == (3 * 192, 6 * 192)
    assert "predictions.png" in (folder / "report.html").read_text()


@pytest.mark.long
def test_the_program_trains_and_tests_on_voc(archives, tmp_path, capsys):
    voc, sbd = archives
    common = ["--data", str(voc), "--sbd", str(sbd), "--epochs", "1"]
    common += ["--method", "sam", "--backbone-rate", "0.1"]
    assert run(tmp_path, *common, "--schedule", "poly", "--warmup", "0", "--mirrored") == 0
    report = json.loads((tmp_path / "segmentation/report.json").read_text())
    assert 0 <= report["runs"]["sam"][0]["measures"]["mean_iou"] <= 100

    (voc / "JPEGImages" / f"{TRAIN[0]}.jpg").write_bytes(b"no image")
    assert run(tmp_path, *common, "--name", "damaged") == 2
    assert f"{TRAIN[0]}.jpg cannot be read" in capsys.readouterr().err


@pytest.mark.long
def test_a_step_of_a_large_network_keeps_its_shapes(archives):
    """With PSPNet, which has two heads, and a rate of its own for the backbone."""
    options = Options(
        data=archives[0], network="pspnet50", crop=473, batch_size=2, backbone_rate=0.1
    )
    assert_a_step_keeps_shapes(Segmentation(options))


@pytest.mark.long
def test_a_backbone_starts_from_the_weights_of_a_file(tmp_path):
    file = tmp_path / "backbone.safetensors"
    options = Options(network="deeplab_mobilenet", crop=17)
    shapes = jax.eval_shape(lambda: Segmentation(options).new_state(optax.sgd(0.1), 7))
    variables = jax.tree.map(
        lambda x: RNG.normal(size=x.shape).astype(x.dtype),
        {"params": shapes.params, "batch_stats": shapes.batch_stats},
    )
    weights.save(file, weights.to_torch(variables, torch_name))
    own = dataclasses.replace(options, weights=file)
    filled = Segmentation(own).new_state(optax.sgd(0.1), 0)
    for name in filled.params:
        same = jax.tree.map(np.array_equal, filled.params[name], variables["params"][name])
        assert all(jax.tree.leaves(same)) == (name == "backbone")
    weights.save(file, {"conv1.weight": np.zeros((64, 3, 7, 7), np.float32)})
    with pytest.raises(DataError, match=r"255 names are missing: features\.0\.1\.running_mean"):
        Segmentation(own).new_state(optax.sgd(0.1), 0)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"network": "unet"}, "--network: there is no unet; there are small, pspnet50"),
        ({"noise": 1.0}, r"--noise must be in \[0, 1\)"),
        ({"scale": (1.5, 0.5)}, "--scale takes two finite numbers, .* not 1.5 0.5"),
        ({"scale": (0.5, math.inf)}, "--scale takes two finite numbers, .* not 0.5 inf"),
        ({"scale": (math.nan, 1.0)}, "--scale takes two finite numbers, .* not nan 1.0"),
        ({"items": "mnist"}, "--items: there is no mnist; there are digits, fashion_mnist"),
        ({"mirrored": True}, "--mirrored is not for --items digits"),
        ({"data": Path("VOC2012")}, "--crop 48 is for generated scenes"),
        ({"output_stride": 32}, "--output-stride must be 8 or 16, not 32"),
        ({"window_stride": 0.0}, r"--window-stride must be in \(0, 1\], not 0.0"),
        ({"sbd": "SBD"}, "--sbd SBD adds to VOC 2012, whose folder --data must name"),
        ({"weights": "w.npz"}, "w.npz is not for --network small"),
        ({"backbone_rate": -1.0}, "--backbone-rate must not be negative"),
        ({"crop": 0}, "--crop must be at least 1"),
        ({"items": "fashion_mnist", "data_files": Path("none")}, "dataset-fashion-mnist"),
    ],
)
def test_wrong_options_are_an_error(changed, message):
    with pytest.raises((ConfigError, DataError), match=message):
        Segmentation(Options(**changed))
