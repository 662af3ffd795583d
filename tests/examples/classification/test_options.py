"""The rows: each has the network, the data and the published figures of its table. And options."""

import dataclasses
from collections import Counter

import jax
import numpy as np
import pytest

from examples.classification import datasets
from examples.classification.__main__ import Classification, main
from examples.classification.options import PAPER, ROWS, Options, check
from examples.common import comparison, records, settings
from examples.common.comparison import Trainer
from examples.common.comparison import options as common_options
from examples.common.errors import ConfigError

pytestmark = pytest.mark.usefixtures("standard_promotion")

PARAMETERS = {  # 10 classes of 32 pixels, 100 of them, and 200 of 64 or 224 pixels
    ("cifar10", "resnet18"): 11_173_962,
    ("cifar10", "wrn28_10"): 36_479_194,
    ("cifar10", "pyramidnet110"): 28_485_477,
    ("cifar100", "resnet18"): 11_220_132,
    ("cifar100", "wrn28_10"): 36_536_884,
    ("cifar100", "pyramidnet110"): 28_511_307,
    ("tiny_imagenet", "resnet18"): 11_271_432,
    ("tiny_imagenet", "mobilenet"): 3_411_976,
}
SMALL = ("--model", "cnn", "--width", "2", "--depth", "0", "--image-size", "4", "--smoke")


def parse(*arguments):
    return comparison.parse(Options, "classification", arguments, ROWS)


def task_of(*arguments):
    """The task of a shrunk run with generated data."""
    options = parse(*arguments, "--smoke").smaller(None)
    return Classification(options)


def trace_step(*arguments):
    """A train step keeps the shapes of the state."""
    task = task_of(*arguments)
    trainer = Trainer(task.options, task)
    (method,) = task.options.method
    state = jax.eval_shape(lambda: trainer.new_state(method, 0))
    batch = task.batch(np.arange(task.options.batch_size), 0, 0)
    new_state, loss = jax.eval_shape(task.train_step, state, batch, batch)
    assert loss.shape == ()
    shapes = [jax.tree.map(lambda x: (x.shape, x.dtype), s) for s in (state, new_state)]
    assert shapes[0] == shapes[1]


def rows_of_each_kind():
    """The named rows, and a row of each data set and method of the paper."""
    kinds = {(row.options.dataset, row.options.method): name for name, row in PAPER.items()}
    named = [name for name in ROWS if "/" not in name]
    long = [pytest.param(name, marks=pytest.mark.long) for name in kinds.values()]
    return [*named[::3], "table3/cifar10_resnet18_saf", *long]


@pytest.mark.parametrize("name", rows_of_each_kind())
def test_a_row_of_each_kind_has_a_train_step(name):
    trace_step("--row", name, *SMALL, "--method", ROWS[name].method[-1])


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("table3/cifar100_wrn28_10_arsam", ("--width", "16", "--depth", "10")),
        ("table3/cifar10_pyramidnet110_sam", ("--width", "9", "--depth", "8")),
        ("table3/cifar10_resnet18_sam", ("--width", "2")),
        ("table6/tiny_imagenet_mobilenet_sam", ("--width", "4")),
        ("fashion_mnist_vit", ("--width", "64", "--depth", "1", "--method", "sam")),
    ],
)
def test_a_network_takes_a_step_on_images_of_the_right_shape(name, size):
    """Narrow, and shallow where there is a choice."""
    trace_step("--row", name, *size)


@pytest.mark.long
@pytest.mark.parametrize(("dataset", "model"), PARAMETERS)
def test_the_networks_are_the_published_ones(dataset, model):
    table = "table6" if dataset == "tiny_imagenet" else "table3"
    task = task_of("--row", f"{table}/{dataset}_{model}_arsam")
    assert task.num_params == PARAMETERS[dataset, model]


def test_every_row_of_the_tables_is_there_and_is_what_it_is_called():
    counts = Counter(name.split("/")[0] for name in PAPER)
    assert counts == {"table1": 5, "table2": 2, "table3": 54, "table5": 24, "table6": 6}
    for name, (options, figures, _) in PAPER.items():
        table, _, row = name.partition("/")
        check(options)
        common_options.check(dataclasses.replace(options, name="run"))
        (method,) = options.method
        assert row.startswith(f"{options.dataset}_{options.model}_"), name
        shown = {"base": "sgd", "sam_every_k": "sam5"}.get(method, method)
        shown += "_a" if options.reuse_steps == 0 else ""
        assert row.endswith((shown, str(options.alpha)[-1])), name
        assert 0 < float(figures["accuracy"].split(" ")[0]) < 100, name
        rate = f"noise{100 * options.label_noise:g}_"
        assert (rate in row) == (table == "table5") == (options.label_noise > 0), name
        assert (options.epochs, options.batch_size, options.segment_length) == (200, 128, 50)
        assert (options.optimizer, options.schedule, options.seeds) == ("sgd", "cosine", (0, 1, 2))
        assert options.rho == (0.05 if options.dataset == "cifar10" else 0.1), name
        assert ("cutout" in options.augment) == ("cifar" in options.dataset), name
        if table == "table1":
            assert row.endswith(f"{options.alpha}".replace(".", "_"))
        elif table == "table5":
            assert options.alpha == (0.3 if options.dataset == "cifar10" else 0.4), name
        else:
            alphas = {"cifar10": 0.2, "cifar100": 0.4, "tiny_imagenet": 0.8}
            assert options.alpha == alphas[options.dataset], name


@pytest.mark.parametrize(
    ("name", "changes", "figures"),
    [
        (
            "table3/cifar100_wrn28_10_arsam",
            {"dataset": "cifar100", "model": "wrn28_10", "alpha": 0.4},
            {"accuracy": "84.64 ± 0.17", "%SAM": "37.5", "images/s": "470", "speed-up": "1.34"},
        ),
        (
            "table5/cifar10_resnet18_noise20_sam",
            {"method": ("sam",), "label_noise": 0.2, "rho": 0.05, "alpha": 0.3}
            | {"dataset": "cifar10", "model": "resnet18"},
            {"accuracy": "90.44", "images/s": "1873", "speed-up": "1"},
        ),
        (
            "table6/tiny_imagenet_mobilenet_sgd",
            {"method": ("base",), "dataset": "tiny_imagenet", "model": "mobilenet"}
            | {"image_size": 224, "alpha": 0.8, "augment": ("crop", "mirror")},
            {"accuracy": "58.12 ± 0.4", "%SAM": "0", "images/s": "547", "speed-up": "1.89"},
        ),
    ],
)
def test_rows_copied_from_the_paper(name, changes, figures):
    common = {"method": ("arsam",), "augment": ("crop", "mirror", "cutout"), "row": name}
    options = parse("--row", name)
    assert options == Options(**common | {"name": name.partition("/")[2]} | changes)
    assert options.published() == {options.method[0]: figures}
    assert parse("--row", name, "--label-noise", "0.1").published() == {}
    assert parse("--row", name, "--epochs", "100").published() != {}


def test_published_speed_ups_are_the_ratio_of_speeds():
    """In all rows except those of table 2, another paper's, and the misprinted one."""
    speeds, compared = {}, 0
    for options, figures, _ in PAPER.values():
        if options.method == ("sam",):
            key = options.dataset, options.model, options.label_noise
            speeds[key] = float(figures["images/s"])
    for name, (options, figures, note) in PAPER.items():
        if name.startswith("table2/") or "numbers of" in note or "misprint" in note:
            continue
        if {"images/s", "speed-up"} <= figures.keys():
            sam = speeds[options.dataset, options.model, options.label_noise]
            ratio = float(figures["images/s"]) / sam
            np.testing.assert_allclose(float(figures["speed-up"]), ratio, atol=0.02, err_msg=name)
            compared += 1
    assert compared > 60


def test_the_list_has_all_rows_with_what_they_are(capsys):
    assert main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(ROWS)
    assert lines[list(ROWS).index("table3/cifar100_wrn28_10_arsam")].endswith(
        "cifar100, wrn28_10, arsam; published: accuracy 84.64 ± 0.17, %SAM 37.5, images/s 470,"
        " speed-up 1.34"
    )
    assert lines[0].endswith("digits, cnn, base sam arsam budgeted_sam, 40 % label noise")


def test_the_settings_start_from_a_row():
    assert parse().row == parse("--dataset", "digits").row == "digits"
    assert (parse().rho, parse("--rho", "0.3").rho) == (0.4, 0.3)
    assert parse("--dataset", "cifar100").augment == ("crop", "mirror", "cutout")
    other = parse("--dataset", "mnist")
    assert (other.row, other.name, other.label_noise) == ("", "mnist", 0)
    assert parse("--row", "cifar10", "--name", "mine").folder.name == "mine"


def test_a_resumed_run_has_the_settings_of_its_folder(tmp_path):
    options = parse("--epochs", "7", "--row", "cifar10", "--output", str(tmp_path))
    options.folder.mkdir()
    records.write_json(options.folder / "config.json", settings.to_dict(options))
    resumed = parse("--resume", "--name", "cifar10", "--output", str(tmp_path))
    assert (resumed.epochs, resumed.dataset, resumed.model) == (7, "cifar10", "resnet18")
    common_options.check_folder(resumed)


def test_nothing_that_a_run_folder_holds_is_executed(tmp_path, capsys):
    evil, proof = tmp_path / "evil.py", tmp_path / "proof"
    evil.write_text(f"open({str(proof)!r}, 'w')\n")
    options = parse("--output", str(tmp_path), "--name", "run", "--epochs", "1")
    options.folder.mkdir()
    stored = settings.to_dict(options)
    for name, message in (
        ("row", "there is no evil.py"),
        ("config", "unknown: config"),
        ("noise", "evil.py gives the labels"),
        ("model", "there is no"),
    ):
        records.write_json(options.folder / "config.json", stored | {name: str(evil)})
        assert main(["--resume", "--output", str(tmp_path), "--name", "run"]) == 2
        assert message in capsys.readouterr().err.replace(str(tmp_path) + "/", "")
        assert not proof.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--row cifar10_resnet18_arsm", "no row .*Did you mean table3/cifar10_resnet18_arsam"),
        ("--row none.py", "no row 'none.py'"),
        ("--label-noise 1", r"--label-noise must be in \[0, 1\)"),
        ("--model vit", "--model: there is no vit; there are cnn, resnet18"),
        ("--dtype float16", "--dtype: there is no float16; there are float32, bfloat16"),
        ("--augment crop blur", "--augment: there is no blur; there are crop, mirror"),
        ("--noise symetric", "must be symmetric or asymmetric, or a file of labels, not symetric"),
        ("--noise README.md", "README.md gives the labels, so it needs --label-noise 0"),
        ("--data-files here", "--data-files is for fashion_mnist, .* not for digits"),
        ("--batch-size 30 --accumulate 4 --method sam", "multiple of --accumulate times --dev"),
        ("--accumulate 2", "--method budgeted_sam: it needs the examples of the whole batch"),
        ("--accumulate 2 --method esam", "--method esam: it needs the examples of the whole"),
        ("--model vit_s --width 3 --method sam", "--model vit_s: the width of vit_s is a multi"),
    ],
)
def test_invalid_options_are_errors(arguments, message):
    dataset = datasets.generated("digits", 64)
    with pytest.raises(ConfigError, match=message):
        Classification(parse(*arguments.split()), dataset)
