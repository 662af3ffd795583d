"""The configs: each runs, and each has the network, the data and the figures of its table's row."""

import jax
import numpy as np
import pytest

from examples.classification import config, train
from examples.classification.config import Published
from examples.classification.trainer import Trainer

pytestmark = pytest.mark.usefixtures("standard_promotion")

MODELS = {"resnet18": "ResNet-18", "wrn28_10": "WideResNet", "pyramidnet110": "PyramidNet"}
MODELS |= {"mobilenet": "MobileNet"}
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
IMPORT = "from examples.classification.config import Config\n"
SMALL = ("--model", "cnn", "--width", "2", "--depth", "0", "--image-size", "4", "--smoke")


@pytest.fixture(scope="module")
def quick_compilation(tmp_path_factory):
    """Configs that differ in data alone share a compiled step."""
    folder = tmp_path_factory.getbasetemp().parent / "compiled"
    values = {
        "jax_compilation_cache_dir": str(folder),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_disable_most_optimizations": True,
    }
    before = {name: jax.config.values[name] for name in values}
    for name, value in values.items():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def of_each_kind():
    """One config of each kind of run: the others differ in numbers and in the network alone."""
    kinds = {}
    for name in config.names():
        settings = config.parse(["--config", name])
        kind = settings.dataset, settings.method, settings.noise, settings.label_noise > 0
        kinds.setdefault((*kind, settings.augment, settings.dtype), name)
    return list(kinds.values())


@pytest.mark.usefixtures("quick_compilation")
@pytest.mark.parametrize("name", of_each_kind())
def test_a_config_of_each_kind_runs(name, capsys):
    """With a network that compiles in a second, on small images."""
    assert train.main(["--config", name, *SMALL]) == 0
    settings = config.parse(["--config", name])
    output = capsys.readouterr().out
    for method in settings.method:
        assert f"{method}, seed {settings.seeds[0]}: test accuracy" in output


@pytest.mark.usefixtures("quick_compilation")
@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("cifar100_wrn28_10_arsam", ("--width", "16", "--depth", "10")),
        ("cifar10_pyramidnet110_sam", ("--width", "9", "--depth", "8")),
        ("fashion_mnist_vit", ("--width", "64", "--depth", "1", "--method", "sam")),
    ],
)
def test_a_network_runs_on_images_of_the_right_shape(name, size):
    """Narrow and shallow; those of one depth take too long to compile here."""
    assert train.main(["--config", name, "--smoke", *size]) == 0


@pytest.mark.parametrize(("dataset", "model"), PARAMETERS)
def test_the_networks_are_the_published_ones(dataset, model):
    settings = config.parse(["--config", f"{dataset}_{model}_arsam", "--smoke"])
    assert (settings.dataset, settings.model) == (dataset, model)
    assert Trainer(settings, train.load(settings)).num_params == PARAMETERS[dataset, model]


@pytest.mark.parametrize("name", [name for name in config.names() if name.count("_") > 1])
def test_a_row_of_a_table_is_what_it_is_called(name):
    settings, published = config.parse(["--config", name]), {}
    published = config.published(settings)
    if not published:  # a comparison of ours
        return
    ((method, figures),) = published.items()
    assert settings.method == (method,)
    assert name.startswith(f"{settings.dataset}_{settings.model}_")
    assert isinstance(figures, Published)
    assert 0 < figures.accuracy < 100
    if "noise" in name:
        assert f"noise{100 * settings.label_noise:g}_" in name
    else:
        assert settings.label_noise == 0
    if "alpha" in name:
        assert name.endswith(f"{settings.alpha}".replace(".", "_"))
    assert (settings.epochs, settings.batch_size, settings.segment_length) == (200, 128, 50)


def test_published_speed_ups_are_the_ratio_of_speeds():
    """In all rows but those that are another paper's, and the misprinted one."""
    figures = {name: config.published(config.parse(["--config", name])) for name in config.names()}
    compared = 0
    for name, published in figures.items():
        sam = figures.get("_".join([*name.split("_alpha")[0].split("_")[:-1], "sam"]))
        for method, ours in published.items():
            if not sam or method == "mesa" or None in (ours.images_per_second, ours.speed_up):
                continue
            if name == "tiny_imagenet_mobilenet_arsam":
                continue
            ratio = ours.images_per_second / sam["sam"].images_per_second
            np.testing.assert_allclose(ours.speed_up, ratio, atol=0.02, err_msg=name)
            compared += 1
    assert compared > 60


def test_a_config_of_ones_own(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(f"{IMPORT}config = Config(dataset='digits', epochs=3, rho=0.2)\n")
    settings = config.parse(["--config", str(file), "--rho", "0.3"])
    assert (settings.epochs, settings.rho, settings.folder.name) == (3, 0.3, "mine")
    for wrong in ("method='sam'", "epochs='5'", "epochs=2.5", "noise=None", "keep_best=1"):
        file.write_text(f"{IMPORT}config = Config({wrong})\n")
        with pytest.raises(config.ConfigError, match=wrong.split("=")[0] + " must be "):
            config.parse(["--config", str(file)])
    file.write_text("settings = 1\n")
    with pytest.raises(config.ConfigError, match="does not define config"):
        config.parse(["--config", str(file)])
    file.write_text("config = Confg()\n")
    with pytest.raises(config.ConfigError, match="cannot be run: NameError"):
        config.parse(["--config", str(file)])
