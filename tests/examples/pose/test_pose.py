"""Pose estimation: the networks, SimCC's targets and loss, flip test, PCKh and the program."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image

from examples.common import comparison, weights
from examples.common.comparison import Trainer
from examples.common.errors import ConfigError, DataError
from examples.pose import evaluation, simcc
from examples.pose.__main__ import Options, Pose
from examples.pose.joints import LIMBS, MIRRORED
from examples.pose.network import NETWORKS, HRNet, torch_name

pytestmark = pytest.mark.usefixtures("standard_promotion")

RNG = np.random.default_rng(0)
SIZE, BINS = 8, 16


@functools.cache
def shapes(name, size=256):
    """Return the shapes of the logits and variables of a large network."""
    image = jnp.zeros((1, size, size, 3))
    return jax.eval_shape(
        lambda: NETWORKS[name].init_with_output(jax.random.key(0), image, is_training=False)
    )


@pytest.mark.parametrize(
    ("name", "size", "count"),
    [
        ("small", 64, 148_544),
        pytest.param("hrnet_w32", 256, 32_731_408, marks=pytest.mark.long),
        pytest.param("hrnet_w48", 256, 67_791_024, marks=pytest.mark.long),
    ],
)
def test_networks_have_the_stated_number_of_parameters(name, size, count):
    logits, variables = shapes(name, size)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == count
    assert logits.shape == (1, 16, 2, 2 * size)
    # The heatmap network, of which 28.5 M are published for width 32, has all but the two layers.
    if name == "hrnet_w32":
        assert count - 2 * (64 * 64 + 1) * 512 == 28_536_080


def test_gaussian_targets_follow_the_formula():
    joints = RNG.uniform(-30, 40, (3, 16, 2)).astype(np.float32)
    visible = (RNG.random((3, 16)) < 0.7).astype(np.float32)
    targets, weights = simcc.make_targets("gaussian", joints, visible, SIZE)
    exponents = -((np.arange(BINS) - 2 * joints[..., None]) ** 2) / (2 * 6**2)
    expected = np.exp(exponents) / (6 * np.sqrt(2 * np.pi))
    np.testing.assert_allclose(targets, expected, rtol=2e-4, atol=1e-30)
    # As in the authors' code: whole pixels, rounded towards 0.
    is_outside = ((joints - 18).astype(int) >= SIZE) | ((joints + 19).astype(int) < 0)
    assert np.array_equal(weights, np.where(is_outside.any(-1), 0, visible))
    assert 0 < weights.sum() < visible.sum()


def test_smoothed_targets_are_distributions_with_most_at_the_rounded_place():
    joints = np.full((1, 16, 2), 3.4, np.float32)
    joints[0, 1], joints[0, 2], joints[0, 3] = (-0.3, 2), (0, 7.8), (7.7, -0.2)
    targets, weights = simcc.make_targets("onehot", joints, np.ones((1, 16)), SIZE)
    np.testing.assert_allclose(targets[0, [0, 3]].sum(-1), 1, rtol=1e-6)
    np.testing.assert_allclose(targets[0, 0, :, 7], 0.8)
    np.testing.assert_allclose(targets[0, 0, :, 6], 0.2 / 15)
    # round(-0.6) and round(15.6) have no bin; round(15.4) and round(-0.4) have.
    assert weights[0].tolist() == [1, 0, 0, 1] + [1] * 12


@pytest.mark.parametrize("kind", simcc.TARGETS)
def test_the_loss_is_the_divergence_as_a_mean_over_bins_and_joints(kind):
    joints = RNG.uniform(-1, 9, (2, 16, 2)).astype(np.float32)
    visible = (RNG.random((2, 16)) < 0.7).astype(np.float32)
    targets, weights = map(np.asarray, simcc.make_targets(kind, joints, visible, SIZE))
    logits = RNG.normal(size=(2, 16, 2, BINS)).astype(np.float32)
    log_prediction = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    terms = (targets * (np.log(targets) - log_prediction)).mean(-1).sum(-1)
    expected = (weights * terms).sum(-1) / 16
    np.testing.assert_allclose(simcc.losses(logits, targets, weights), expected, rtol=1e-4)


@pytest.mark.parametrize("kind", simcc.TARGETS)
def test_the_flip_test_finds_in_a_mirror_what_is_there_without(kind):
    joints = RNG.integers(0, SIZE, (2, 16, 2))
    in_mirror = joints[:, MIRRORED] * [-1, 1] + [SIZE - 1, 0]

    def logits(joints):  # a network that sees both, but is twice as sure of the mirror
        return jax.nn.one_hot(2 * joints, BINS)

    found = simcc.positions(logits(joints), 2 * logits(in_mirror), kind)
    assert np.array_equal(found, joints)
    found = simcc.positions(jnp.zeros((2, 16, 2, BINS)), logits(in_mirror), kind)
    assert np.array_equal(found, joints)


@pytest.mark.parametrize("kind", simcc.TARGETS)
def test_the_flip_test_averages_what_the_kind_of_targets_says(kind):
    logits, mirrored = 3 * RNG.normal(size=(2, 4, 16, 2, BINS))

    def softmax(x):
        return np.exp(x) / np.exp(x).sum()

    expected = np.zeros((4, 16, 2))
    partners = {0: 5, 1: 4, 2: 3, 10: 15, 11: 14, 12: 13}
    partners |= {left: right for right, left in partners.items()}
    for person, joint, axis in np.ndindex(4, 16, 2):
        own, other = logits[person, joint, axis], mirrored[person, partners.get(joint, joint), axis]
        if axis == 0:
            other = np.append(other[::-1][1:], other[::-1][-1])
        if kind == "onehot":
            own, other = softmax(own), softmax(other)
        expected[person, joint, axis] = np.argmax(own + other) / 2
    assert np.array_equal(simcc.positions(logits, mirrored, kind), expected)


def test_pckh_is_as_the_evaluation_of_mpii_counts():
    joints, sizes = RNG.uniform(0, 100, (30, 16, 2)), RNG.uniform(5, 20, 30)
    predicted, visible = joints + RNG.normal(0, 4, joints.shape), RNG.random((30, 16)) < 0.8
    result = evaluation.pckh(predicted, joints, visible, sizes)
    ratios = np.hypot(*np.moveaxis(predicted - joints, -1, 0)) / sizes[:, None]
    counts = visible.sum(0)
    for name, threshold in (("mean", 0.5), ("mean_strict", 0.1)):
        shares = 100 * ((ratios <= threshold) & visible).sum(0) / counts
        own = [joint for joint in range(16) if joint not in (6, 7)]
        expected = (shares * counts)[own].sum() / counts[own].sum()
        np.testing.assert_allclose(result[name], expected)
        if name == "mean":
            expected = {"head": shares[9], "wrist": shares[[10, 15]].mean()}
            for part, value in (expected | {"hip": shares[2:4].mean()}).items():
                np.testing.assert_allclose(result[part], value)
    assert 0 < result["mean_strict"] < result["mean"] < 100
    assert np.isnan(evaluation.pckh(predicted, joints, visible & False, sizes)["mean"])


def test_limbs_join_joints_of_a_side_and_a_mirror_changes_sides():
    assert np.array_equal(MIRRORED[MIRRORED], np.arange(16))
    mirrored = {tuple(MIRRORED[list(limb)].tolist()) for limb in LIMBS["right"]}
    assert mirrored == set(LIMBS["left"])


TINY = Options(figures=8, batch_size=4, epochs=1, image_size=32)


@pytest.fixture
def smaller(monkeypatch):
    """Make the small network smaller."""
    network = HRNet(4, 4, bottlenecks=1, blocks=1, modules=(1,))
    monkeypatch.setitem(NETWORKS, "small", network)


@pytest.fixture
def task(smaller):
    return Pose(TINY)


def test_a_batch_depends_on_examples_step_and_seed_alone(task):
    index = np.array([5, 2])
    batch, again = task.batch(index, 3, 1), task.batch(index, 3, 1)
    assert all(np.array_equal(a, b) for a, b in zip(batch, again, strict=True))
    assert batch.index.tolist() == [5, 2]
    assert batch.images.shape == (2, 32, 32, 3)
    for other in (task.batch(index, 4, 1), task.batch(index, 3, 2)):
        assert not np.array_equal(batch.joints, other.joints)


@pytest.mark.long
def test_the_large_network_has_the_names_of_the_authors():
    _, large = shapes("hrnet_w32")
    names = weights.to_torch(
        jax.tree.map(lambda x: np.broadcast_to(np.float32(0), x.shape), large), torch_name
    )
    # In a block, a downsampling, a transition, a branch and a fusion.
    for name, shape in {
        "layer1.0.conv2.weight": (64, 64, 3, 3),
        "layer1.0.downsample.1.running_var": (256,),
        "transition1.0.0.weight": (32, 256, 3, 3),
        "transition3.3.0.1.bias": (256,),
        "stage3.2.branches.2.3.bn2.weight": (128,),
        "stage4.2.fuse_layers.0.3.0.weight": (32, 256, 1, 1),
        "stage4.1.fuse_layers.3.0.1.0.weight": (32, 32, 3, 3),
        "stage4.1.fuse_layers.3.0.2.0.weight": (256, 32, 3, 3),
    }.items():
        assert names[name].shape == shape
    with pytest.raises(DataError, match=r"names are missing: .*layer1\.1\.bn1\.running_mean"):
        weights.fill(large, {}, lambda path: torch_name(path) if "layer1.1" in path[0] else None)


@pytest.mark.long
def test_weights_go_to_the_backbone_and_statistics_are_of_the_clean_pass(task, tmp_path):
    trainer = Trainer(TINY, task)
    stored = task.new_state(optax.identity(), seed=1)
    file, fresh = tmp_path / "weights.safetensors", trainer.new_state("base", 0)
    variables = {"params": stored.params, "batch_stats": stored.batch_stats}
    weights.save(file, weights.to_torch(variables, torch_name))
    state = Pose(dataclasses.replace(TINY, weights=file)).new_state(optax.identity(), 0)
    for name, own in state.params.items():
        is_head = name in ("final_layer", "mlp_head_x", "mlp_head_y")
        expected = (fresh if is_head else stored).params[name]
        assert all(jax.tree.leaves(jax.tree.map(np.array_equal, own, expected)))

    states, batch = [], task.batch(np.arange(4), 0, 0)
    for method in ("base", "sam"):
        state = trainer.new_state(method, 0)
        before = state.batch_stats["bn1"]["mean"].copy()
        states.append(trainer.step_fn(method, state, batch)(state, batch, batch)[0])
        assert not np.array_equal(states[-1].batch_stats["bn1"]["mean"], before)
    base, sam = (jax.tree.leaves(state.batch_stats) for state in states)
    assert all(np.array_equal(a, b) for a, b in zip(base, sam, strict=True))
    base, sam = (jax.tree.leaves(state.params) for state in states)
    assert not all(np.array_equal(a, b) for a, b in zip(base, sam, strict=True))


@pytest.mark.parametrize(
    "arguments",
    [
        "--method base",
        pytest.param("--method sampa --targets onehot --evaluate-every 1", marks=pytest.mark.long),
    ],
)
def test_the_program_trains_and_draws(arguments, tmp_path, monkeypatch):
    stem_and_head = HRNet(4, 4, bottlenecks=0, modules=())
    monkeypatch.setitem(NETWORKS, "small", stem_and_head)
    monkeypatch.setattr("examples.pose.__main__._HELD_OUT_FIGURES", 6)
    common = f"--figures 4 --batch-size 4 --epochs 1 --image-size 32 --output {tmp_path}"
    assert comparison.main(Options, Pose, "pose", f"{common} {arguments}".split()) == 0
    report = json.loads((tmp_path / "pose/report.json").read_text())
    for method, runs in report["runs"].items():
        assert runs[0]["measures"].keys() == Pose.measures.keys()
        assert all(0 <= value <= 100 for value in runs[0]["measures"].values())
        with Image.open(tmp_path / "pose" / method / "seed0/poses.png") as picture:
            assert picture.width > 500


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"image_size": 48}, "--image-size 48 is not a multiple of 32"),
        ({"network": "resnet"}, "--network: there is no resnet; there are small"),
        ({"targets": "heatmap"}, "--targets: there is no heatmap; there are gaussian, onehot"),
        ({"swapped": 1.0}, r"--swapped must be in \[0, 1\)"),
        ({"figures": 0}, "--figures must be at least 1"),
    ],
)
def test_wrong_options_are_an_error(changed, message):
    with pytest.raises(ConfigError, match=message):
        Pose(Options(**changed))
