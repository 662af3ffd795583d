"""The rows: each has the network, the data and the published figures of its table. And options."""

import dataclasses
from collections import Counter

import pytest

from examples.classification import datasets
from examples.classification.__main__ import Classification, main
from examples.classification.options import PUBLISHED, ROWS, Options, check, published
from examples.common import checkpoints, comparison, settings
from examples.common.comparison import options as common_options
from examples.common.errors import ConfigError
from tests.examples.train_steps import assert_a_step_keeps_shapes

pytestmark = pytest.mark.usefixtures("standard_promotion")

SMALL = ("--model", "cnn", "--width", "2", "--image-size", "4", "--smoke")


def parse(*arguments):
    return comparison.parse(Options, "classification", arguments, ROWS)


def trace_step(*arguments):
    """A train step of a shrunk run with generated data keeps the shapes of the state."""
    task = Classification(parse(*arguments, "--smoke").smaller(None))
    (method,) = task.options.method

    def new_state(tx, seed):
        return task.prepare(task.new_state(tx, seed), method)

    assert_a_step_keeps_shapes(task, new_state, least=10, method=method)


NETWORKS = {(options.dataset, options.model): name for name, options in ROWS.items()}


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("digits", SMALL),
        ("table3/cifar10_resnet18_saf", SMALL),
        *(pytest.param(name, (), marks=pytest.mark.long) for name in NETWORKS.values()),
    ],
)
def test_a_row_of_each_kind_has_a_train_step(name, arguments):
    trace_step("--row", name, *arguments, "--method", ROWS[name].method[-1])


def test_every_row_of_the_tables_is_there_and_is_what_it_is_called():
    counts = Counter(name.split("/")[0] for name in PUBLISHED)
    assert counts == {"table1": 5, "table2": 2, "table3": 54, "table5": 24, "table6": 6}
    for name, figures in PUBLISHED.items():
        options = ROWS[name]
        table, _, row = name.partition("/")
        check(options)
        common_options.check(dataclasses.replace(options, name="run"))
        (method,) = options.method
        assert row.startswith(f"{options.dataset}_{options.model}_"), name
        shown = {"base": "sgd", "sam_every_k": "sam5"}.get(method, method)
        shown += "_a" if options.reuse_steps == 0 else ""
        assert row.endswith((shown, str(options.alpha)[-1])), name
        assert 0 < float(figures["accuracy"]) < 100, name
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


def test_a_row_copied_from_the_paper():
    name = "table6/tiny_imagenet_mobilenet_sgd"
    options = parse("--row", name)
    assert options == Options(
        row=name,
        name="tiny_imagenet_mobilenet_sgd",
        method=("base",),
        dataset="tiny_imagenet",
        image_size=224,
        model="mobilenet",
        alpha=0.8,
        augment=("crop", "mirror"),
    )
    figures = "; published: accuracy 58.12 ± 0.4, %SAM 0, images/s 547, speed-up 1.89"
    assert published(name) == figures


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


def test_nothing_that_a_run_folder_holds_is_executed(tmp_path, capsys):
    evil, proof = tmp_path / "evil.py", tmp_path / "proof"
    evil.write_text(f"open({str(proof)!r}, 'w')\n")
    options = parse("--output", str(tmp_path), "--name", "run", "--epochs", "1")
    options.folder.mkdir()
    stored = settings.to_dict(options)
    for name, message in (
        ("config", "settings that differ: config"),
        ("noisy_labels", "evil.py gives the labels"),
        ("model", "model: str is not any of ('cnn'"),
    ):
        checkpoints.write_json(options.folder / "config.json", stored | {name: str(evil)})
        assert main(["--resume", "--output", str(tmp_path), "--name", "run"]) == 2
        assert message in capsys.readouterr().err.replace(str(tmp_path) + "/", "")
        assert not proof.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--row none.py", "no row 'none.py'"),
        ("--label-noise 1", r"--label-noise must be in \[0, 1\)"),
        ("--noisy-labels README.md", "README.md gives the labels, so it needs --label-noise 0"),
        ("--data-files here", "--data-files is for fashion_mnist, .* not for digits"),
        ("--batch-size 30 --accumulate 4 --method sam", "multiple of --accumulate times --dev"),
        ("--model vit_s --width 3 --method sam", "--model vit_s: vit_s has one width"),
    ],
)
def test_invalid_options_are_errors(arguments, message):
    dataset = datasets.generated("digits", 64)
    with pytest.raises(ConfigError, match=message):
        Classification(parse(*arguments.split()), dataset)
