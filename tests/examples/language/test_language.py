"""Language: the texts, the model, its adapters, rounding and the program."""

import base64
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from examples.common import comparison
from examples.common.errors import ConfigError, DataError
from examples.language import data
from examples.language.__main__ import Language, Options
from examples.language.network import Transformer, adapted, make_adapters, rounded

pytestmark = pytest.mark.usefixtures("standard_promotion")

MODEL = Transformer(width=8, depth=1, heads=2, length=8)
TOKENS = np.random.default_rng(0).integers(0, 256, (2, 8)).astype(np.uint8)


@pytest.fixture(scope="module")
def params(standard_promotion):
    return MODEL.init(jax.random.key(0), TOKENS, is_training=False)["params"]


def test_windows_are_shifted_by_one_and_the_parts_are_apart():
    text = (np.arange(20 * 4096) // 4096).astype(np.uint8).tobytes()  # the number of the block
    parts = data.windows(text, 64)
    assert parts["train"].shape[1] == 65
    blocks = {name: {*np.unique(part).tolist()} for name, part in parts.items()}
    train = {*range(8), *range(10, 18)}
    assert blocks == {"train": train, "validation": {8, 18}, "test": {9, 19}}
    counting = (np.arange(10 * 4096) % 251).astype(np.uint8).tobytes()
    first, second, *_ = data.windows(counting, 64)["train"]
    assert first[-1] == second[0] == 64


def test_python_has_texts_and_a_short_or_missing_one_is_an_error(tmp_path):
    assert len(data.windows(data.read(None, "prose"), 64)["test"]) > 100
    assert len(data.windows(data.read(None, "code"), 64)["test"]) > 100
    with pytest.raises(DataError, match="too short for windows of 64"):
        data.windows(b"a" * 40_000, 64)
    for path, message in ((tmp_path / "none", "FileNotFoundError"), (tmp_path, "IsADirectory")):
        with pytest.raises(DataError, match=rf"cannot be read as a text \({message}"):
            data.read(path, "prose")


def test_a_byte_is_predicted_from_those_before_it_alone(params):
    logits = MODEL.apply({"params": params}, TOKENS, is_training=False)
    changed = TOKENS.copy()
    changed[:, 5] += 1
    other = MODEL.apply({"params": params}, changed, is_training=False)
    same = np.isclose(logits, other, atol=1e-6).all((0, 2))
    assert same.tolist() == [True] * 5 + [False] * 3


def test_adapters_start_at_nothing_and_change_matrices_alone(params):
    adapters = make_adapters(params, 2, jax.random.key(1))
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, params, adapted(params, adapters))))
    moved = jax.tree.map(lambda x: x + 0.1, adapters)
    changed = jax.tree.map(lambda a, b: not jnp.array_equal(a, b), params, adapted(params, moved))
    leaves = jax.tree_util.tree_leaves_with_path(changed)
    names = {jax.tree_util.keystr(path) for path, is_changed in leaves if is_changed}
    assert names == set(adapters)
    assert all(name.endswith("['kernel']") for name in names)
    kernel, own = params["up_0"]["kernel"], moved["['up_0']['kernel']"]
    expected = kernel + 2.0 * own["a"] @ own["b"]
    np.testing.assert_allclose(adapted(params, moved)["up_0"]["kernel"], expected, rtol=1e-6)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_rounding_takes_the_nearest_of_the_levels_of_each_output(params, bits):
    result, top = rounded(params, bits), 2 ** (bits - 1) - 1
    kernel = np.asarray(params["up_0"]["kernel"])
    scale = np.abs(kernel).max(0) / top
    levels = np.asarray(result["up_0"]["kernel"]) / scale
    np.testing.assert_allclose(levels, np.round(levels), atol=1e-3)
    assert np.all(np.abs(np.asarray(result["up_0"]["kernel"]) - kernel) <= scale / 2 + 1e-6)
    assert jnp.array_equal(result["up_0"]["bias"], params["up_0"]["bias"])


@pytest.mark.long
@pytest.mark.parametrize("methods", ["base", "base sampa --evaluate-every 1"])
def test_the_program_trains_tunes_and_rounds(methods, tmp_path):
    text = tmp_path / "text.txt"
    text.write_bytes(b"the quick brown fox jumps over the lazy dog. " * 1000)
    small = "--width 16 --depth 1 --heads 2 --length 32 --epochs 1 --batch-size 16"
    arguments = f"{small} --fine-tuning-steps 4 --method {methods}"
    texts = ["--text", str(text), "--other-text", str(text), "--output", str(tmp_path)]
    status = comparison.main(Options, Language, "language", [*arguments.split(), *texts])
    assert status == 0
    report = json.loads((tmp_path / "language/report.json").read_text())
    picture = (tmp_path / "language/measures.png").read_bytes()
    assert base64.b64encode(picture).decode() in (tmp_path / "language/report.html").read_text()
    for runs in report["runs"].values():
        measures = runs[0]["measures"]
        assert measures.keys() == Language.measures.keys()
        assert 0 < measures["loss"] < 8  # better than the uniform distribution
        assert measures["forgotten"] < 0  # The other text is the same.
        assert abs(measures["lora_forgotten"]) < 0.1  # after four steps of adapters that start at 0


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"heads": 3}, "--width 64 is not a multiple of --heads 3"),
        ({"bits": 1}, "--bits must be 2 to 8"),
        ({"dropout": 1.0}, r"--dropout must be in \[0, 1\)"),
        ({"lora_rank": 0}, "--lora-rank must be at least 1"),
    ],
)
def test_wrong_options_are_an_error(changed, message):
    with pytest.raises(ConfigError, match=message):
        Language(Options(**changed))
