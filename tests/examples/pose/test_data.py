"""People in images: crops, MPII's files, and drawn figures."""

import json
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image
from scipy import ndimage

from examples.common.errors import DataError
from examples.pose import data
from examples.pose.figures import figures
from examples.pose.joints import MIRRORED

RNG = np.random.default_rng(0)
WIDTH, HEIGHT = 120, 90


def people_with(images, joints, scale=0.3):
    count = len(images)
    return data.People(
        open_image=lambda person: Image.fromarray(images[person]),
        centers=RNG.uniform(30, 60, (count, 2)),
        scales=np.full(count, scale),
        joints=joints,
        visible=np.ones((count, 16), bool),
        head_sizes=np.ones(count),
    )


def test_warping_is_bilinear_between_the_middles_of_pixels():
    image = RNG.integers(0, 256, (HEIGHT, WIDTH, 3)).astype(np.uint8)
    matrix = np.array([[0.9, 0.3, -20.0], [-0.25, 1.1, 4.0]])
    warped = data.warp(Image.fromarray(image), matrix, 32)
    linear = np.linalg.inv(matrix[:, :2])
    for _ in range(50):
        x, y = RNG.integers(0, 32, 2)
        place = linear @ (np.array([x, y]) - matrix[:, 2])
        assert np.all((place > 1) & (place < [WIDTH - 2, HEIGHT - 2]))
        expected = [
            ndimage.map_coordinates(image[..., c].astype(float), place[::-1, None], order=1)[0]
            for c in range(3)
        ]
        np.testing.assert_allclose(warped[y, x], expected, atol=1.5)


def test_a_crop_without_chance_puts_the_center_in_the_middle():
    people = people_with(np.zeros((3, HEIGHT, WIDTH, 3), np.uint8), RNG.uniform(0, 90, (3, 16, 2)))
    matrices, is_mirrored = data.crop_matrices(people, np.arange(3), 32)
    assert not is_mirrored.any()
    np.testing.assert_allclose(data.transform(matrices, people.centers[:, None])[:, 0], 16)
    factor = 32 / (0.3 * 200)  # pixels of the crop for one of the image
    np.testing.assert_allclose(matrices[:, :, :2], np.broadcast_to(factor * np.eye(2), (3, 2, 2)))
    there = data.transform(matrices, people.joints)
    np.testing.assert_allclose(data.transform(data.inverted(matrices), there), people.joints)


def test_joints_stay_on_what_they_are_of_however_a_crop_is_drawn():
    """Each image has one bright spot, at a joint; in a mirror it is the other side's."""
    count = 60
    images, joints = np.zeros((count, HEIGHT, WIDTH, 3), np.uint8), np.full((count, 16, 2), -99.0)
    for person in range(count):
        x, y = RNG.integers(25, 60, 2)
        images[person, y - 1 : y + 2, x - 1 : x + 2] = 255
        joints[person, 0] = x, y
    people = people_with(images, joints)
    people.centers[:] = joints[:, 0] + RNG.uniform(-8, 8, (count, 2))
    crops = data.crop(people, np.arange(count), 48, np.random.default_rng(1))
    mirrored = np.abs(crops.joints[:, 5]).max(1) < 49
    assert 15 < mirrored.sum() < 45
    for image, own, is_mirrored in zip(crops.images, crops.joints, mirrored, strict=True):
        y, x = ndimage.center_of_mass(image[..., 0].astype(float))
        np.testing.assert_allclose(own[MIRRORED[0] if is_mirrored else 0], (x, y), atol=0.3)
    again = data.crop(people, np.arange(count), 48, np.random.default_rng(1))
    assert np.array_equal(crops.images, again.images)


def test_crops_are_drawn_as_the_authors_draw_them():
    count = 4000
    people = people_with(np.zeros((1, 2, 2, 3), np.uint8), np.zeros((1, 16, 2)))
    matrices, is_mirrored = data.crop_matrices(
        people, np.zeros(count, int), 60, np.random.default_rng(0)
    )
    factors = np.sqrt(np.abs(np.linalg.det(matrices[..., :2])))
    scales, angles = 1 / factors, np.degrees(np.arctan2(matrices[:, 0, 1], matrices[:, 1, 1]))
    assert scales.min() == pytest.approx(0.75)
    assert scales.max() == pytest.approx(1.25)
    assert np.mean((scales > 0.751) & (scales < 1.249)) == pytest.approx(0.683, abs=0.03)
    assert np.mean(np.abs(angles) < 1e-9) == pytest.approx(0.4, abs=0.03)
    assert np.abs(angles).max() == pytest.approx(60)
    turned = angles[np.abs(angles) > 1e-9]
    assert np.mean(np.abs(turned) < 30) == pytest.approx(0.683, abs=0.03)
    assert is_mirrored.mean() == pytest.approx(0.5, abs=0.03)


@pytest.fixture
def mpii(tmp_path):
    """Files in MPII's form: 24 people in 12 images for training, 6 in 3 for testing.

    Each image is grey with one white pixel, where joint 0 of its people is.
    """
    (tmp_path / "annot").mkdir()
    (tmp_path / "images").mkdir()
    for split, num_images in (("train", 12), ("valid", 3)):
        rows = []
        for image in range(num_images):
            pixels = np.full((HEIGHT, WIDTH, 3), 40, np.uint8)
            pixels[30 + image, 50] = 255
            name = f"{split}{image}.jpg"
            Image.fromarray(pixels).save(tmp_path / "images" / name, quality=100, subsampling=0)
            joints = RNG.uniform(20, 80, (2, 16, 2)).round(1)
            joints[:, 0] = 51, 31 + image  # from 1
            rows += [
                {
                    "image": name,
                    "center": [56.0, 40.0],
                    "scale": 0.4,
                    "joints": own.tolist(),
                    "joints_vis": [1] * 15 + [0],
                }
                for own in joints
            ]
        (tmp_path / "annot" / f"{split}.json").write_text(json.dumps(rows))
    joints = np.array([row["joints"] for row in rows])
    missing = np.zeros((16, 6))
    missing[15] = 1
    boxes = np.zeros((2, 2, 6))
    boxes[0], boxes[1] = 10, np.array([[13], [14]]) + np.arange(6)
    scipy.io.savemat(
        tmp_path / "annot/gt_valid.mat",
        {"pos_gt_src": joints.transpose(1, 2, 0), "jnt_missing": missing, "headboxes_src": boxes},
    )
    return tmp_path


def test_mpii_counts_pixels_from_1_and_ours_from_0(mpii):
    train, test = data.mpii(mpii, validation=False)
    assert (len(train), len(test)) == (24, 6)
    for people in (train, test):
        for person in range(len(people)):
            pixels = np.asarray(people.open_image(person)).max(2)
            x, y = people.joints[person, 0]
            assert np.unravel_index(pixels.argmax(), pixels.shape) == (y, x)
        np.testing.assert_allclose(people.centers, [[55, 40 + 15 * 0.4 - 1]] * len(people))
        np.testing.assert_allclose(people.scales, 1.25 * 0.4)
        assert people.visible.tolist() == [[True] * 15 + [False]] * len(people)
    expected = [0.6 * np.hypot(3 + person, 4 + person) for person in range(6)]
    np.testing.assert_allclose(test.head_sizes, expected)
    crops = data.crop(test, np.arange(6), 100)
    for image, joints in zip(crops.images, crops.joints, strict=True):
        y, x = np.unravel_index(image.max(2).argmax(), (100, 100))
        np.testing.assert_allclose(joints[0], (x, y), atol=0.51)


def test_validation_holds_out_whole_training_images(mpii):
    train, held_out = data.mpii(mpii, validation=True)
    assert (len(train), len(held_out)) == (20, 4)
    apart = [
        {np.asarray(people.open_image(person)).tobytes() for person in range(len(people))}
        for people in (train, held_out)
    ]
    assert not apart[0] & apart[1]
    head = held_out.joints[:, 9] - held_out.joints[:, 8]
    np.testing.assert_allclose(held_out.head_sizes, np.hypot(*head.T))


def edit(file, change):
    """Change the first row of a JSON file."""
    rows = json.loads(file.read_text())
    rows[0] |= change
    file.write_text(json.dumps(rows))


def edit_truth(file, change):
    truth = {k: v for k, v in scipy.io.loadmat(file).items() if not k.startswith("_")}
    truth |= change
    scipy.io.savemat(file, {k: v for k, v in truth.items() if v is not None})


def replace(content):
    return lambda file: file.write_bytes(content)


def cut(file):
    file.write_bytes(file.read_bytes()[:400])


REMOVED = "FileNotFoundError"
BOXES = np.zeros((2, 2, 6))


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("annot/train.json", Path.unlink, rf"as MPII's annotations \({REMOVED}.* --data is a fol"),
        ("annot/valid.json", Path.unlink, REMOVED),
        ("annot/train.json", replace(b'[{"image": "train0.jpg"}]'), r"\(KeyError: 'center'"),
        ("annot/train.json", replace(b'["image"]'), r"\(TypeError"),
        ("annot/train.json", replace(b"[" * 10_000), r"\(RecursionError"),
        ("annot/train.json", replace(b"\xff"), r"\(UnicodeDecodeError"),
        ("annot/train.json", replace(b"[]"), "names 0 images"),
        ("annot/train.json", lambda file: edit(file, {"scale": np.nan}), "number is not finite"),
        ("annot/train.json", lambda file: edit(file, {"center": [np.inf, 1]}), "not finite"),
        ("annot/train.json", lambda file: edit(file, {"scale": 0}), "a scale is not positive"),
        ("annot/train.json", lambda file: edit(file, {"scale": "wide"}), r"\(ValueError"),
        ("annot/train.json", lambda file: edit(file, {"scale": 10**400}), r"\(OverflowError"),
        ("annot/train.json", lambda file: edit(file, {"image": 3}), "1 are missing in .*such as 3"),
        ("annot/gt_valid.mat", Path.unlink, REMOVED),
        ("annot/gt_valid.mat", cut, r"gt_valid\.mat cannot be read as MPII's ground truth"),
        ("annot/gt_valid.mat", replace(b"MATLAB" * 100), r"\(\w+: "),
        ("annot/gt_valid.mat", replace(b""), r"\(MatReadError"),
        (
            "annot/gt_valid.mat",
            lambda f: edit_truth(f, {"headboxes_src": None}),
            "KeyError: 'headb",
        ),
        ("annot/gt_valid.mat", lambda f: edit_truth(f, {"headboxes_src": BOXES}), "not finite and"),
        ("annot/gt_valid.mat", lambda f: edit_truth(f, {"headboxes_src": BOXES / 0}), "not finite"),
        (
            "annot/gt_valid.mat",
            lambda f: edit_truth(f, {"jnt_missing": np.eye(3)}),
            r"has the shape",
        ),
        (
            "images/train3.jpg",
            Path.unlink,
            "12 images, of which 1 are missing .* such as train3.jpg",
        ),
        ("images/train0.jpg", cut, r"train0\.jpg cannot be read as an image"),
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value")
def test_missing_and_damaged_files_are_an_error(mpii, name, damage, message):
    damage(mpii / name)
    with pytest.raises(DataError, match=message):
        data.crop(data.mpii(mpii, validation=False)[0], np.arange(4), 32)


def test_ground_truth_of_other_people_is_an_error(mpii):
    rows = json.loads((mpii / "annot/valid.json").read_text())
    (mpii / "annot/valid.json").write_text(json.dumps(rows[:-1]))
    with pytest.raises(DataError, match=r"for the 5 people of valid\.json"):
        data.mpii(mpii, validation=False)


def pixels(people):
    return [np.asarray(people.open_image(person)) for person in range(len(people))]


def test_figures_are_reproducible_and_splits_differ():
    first, again = figures("train", 6, swapped=0.5), figures("train", 6, swapped=0.5)
    assert np.array_equal(first.joints, again.joints)
    assert np.array_equal(pixels(first), pixels(again))
    others = [figures(part, 6) for part in ("validation", "test")]
    assert len({image.tobytes() for people in (first, *others) for image in pixels(people)}) == 18


def test_figures_fill_their_images_and_have_heads_of_their_size():
    people = figures("test", 40)
    assert people.visible.mean() > 0.95
    head = np.linalg.norm(people.joints[:, 9] - people.joints[:, 8], axis=-1)
    # The diagonal of the box of an ellipse with axes 1 and 0.8 does not depend on its rotation.
    np.testing.assert_allclose(people.head_sizes / head, 0.6 * np.hypot(1, 0.8), rtol=1e-2)
    crops = data.crop(people, np.arange(40), 64)
    assert np.array_equal(crops.images, pixels(people))
    np.testing.assert_allclose(crops.joints, people.joints, rtol=1e-5)


def test_the_given_share_of_figures_has_sides_swapped():
    true, wrong = figures("train", 100), figures("train", 100, swapped=0.3)
    is_swapped = (true.joints != wrong.joints).any((1, 2))
    assert is_swapped.mean() == pytest.approx(0.3, abs=0.12)
    assert np.array_equal(wrong.joints[is_swapped], true.joints[is_swapped][:, MIRRORED])
    assert np.array_equal(pixels(true)[:5], pixels(wrong)[:5])
