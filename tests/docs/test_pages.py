"""The examples of the README and the site run as they stand."""

import doctest
import importlib.util
import re
import tomllib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import arsam_jax

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
README = ROOT / "README.md"
PAGES = [README, *(p for d in ("", "guides", "api") for p in sorted((DOCS / d).glob("*.md")))]

pytestmark = pytest.mark.usefixtures("standard_promotion")


def blocks(page):
    """The blocks of Python of a page that show no output, which a reader can paste."""
    found = re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)
    return [block for block in found if not block.startswith(">>> ")]


SLOW = {"keras", "measure", "parallel", "sparse", "training"}
SHOWN = [
    pytest.param(page, id=page.stem, marks=[pytest.mark.long] if page.stem in SLOW else [])
    for page in PAGES
    if ">>> " in page.read_text()
]


@pytest.mark.parametrize("page", SHOWN)
def test_examples_print_what_the_page_shows(page):
    assert doctest.testfile(str(page), module_relative=False).failed == 0


BLOCKS = [
    pytest.param(block, id=f"{page.relative_to(ROOT)}-{number}")
    for page in PAGES[1:]
    for number, block in enumerate(blocks(page), 1)
]


@pytest.mark.parametrize("block", BLOCKS)
def test_a_block_runs_alone(block):
    namespace = {"__name__": "__main__"}
    exec(compile(block, "block", "exec"), namespace)
    if "for _ in range(4):" in block:  # as many steps as budgeted_sam needs to sample one
        is_nnx = "optimizer" in namespace
        opt_state = namespace["optimizer"].opt_state if is_nnx else namespace["opt_state"]
        (num_sampled,) = jax.tree.leaves(arsam_jax.get_metrics(opt_state).num_sampled)
        np.testing.assert_array_equal(num_sampled, 1)


def test_the_readme_example_samples_some_steps():
    (block,) = blocks(README)
    namespace = {}
    exec(compile(block, "README.md", "exec"), namespace)
    assert 0 < arsam_jax.metrics_dict(namespace["opt_state"])["sampled_share"] < 1


def test_sam_and_arsam_in_40_lines_of_jax_agree_with_the_library():
    path = DOCS / "sam_and_arsam.py"
    assert len(path.read_text().splitlines()) <= 40
    spec = importlib.util.spec_from_file_location("sam_and_arsam", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def loss_fn(w, batch):
        x, y = batch
        return jnp.mean((jnp.tanh(x @ w["a"]) @ w["b"] - y) ** 2)

    keys = jax.random.split(jax.random.key(0), 4)
    w = {"a": jax.random.normal(keys[0], (4, 8)), "b": jax.random.normal(keys[1], (8,))}
    num_steps, lr, rho, alpha = 60, 0.1, 0.2, 2.0
    x = jax.random.normal(keys[2], (num_steps, 16, 4))
    y = jax.random.normal(keys[3], (num_steps, 16))
    batches = [(x[i], y[i]) for i in range(num_steps)]
    tx = optax.chain(arsam_jax.arsam(rho, alpha, segment_length=8), optax.sgd(lr))

    @jax.jit
    def train_step(params, opt_state, batch):
        def grad_fn(params):
            return jax.grad(loss_fn)(params, batch)

        updates, opt_state = tx.update(grad_fn(params), opt_state, params, grad_fn=grad_fn)
        return optax.apply_updates(params, updates), opt_state

    params, opt_state, expected = w, tx.init(w), []
    for batch in batches:
        probability = arsam_jax.get_state(opt_state).sampling.probability
        params, opt_state = train_step(params, opt_state, batch)
        sampled = bool(arsam_jax.get_metrics(opt_state).sampled)
        expected.append((params, sampled, float(probability)))

    def is_drawn(step, p):
        assert p == pytest.approx(expected[step][2], rel=1e-4)
        return expected[step][1]

    grad_fn = jax.jit(jax.grad(loss_fn))
    run = module.arsam_gradients(grad_fn, batches, w, lr, rho, alpha, is_drawn)
    for (w, _), (params, _, _) in zip(run, expected, strict=True):
        for key in w:
            np.testing.assert_allclose(w[key], params[key], atol=1e-5)
    assert 5 < sum(sampled for _, sampled, _ in expected) < num_steps
    assert len({probability for *_, probability in expected}) > 3


OPTIMIZERS = (DOCS / "guides/optimizers.md").read_text()
ROWS = re.findall(r"^\| `(optax\.\S.*)` \| ([\d.]+) \|", OPTIMIZERS, re.MULTILINE)
X = jax.random.normal(jax.random.key(0), (32, 256))
PARAMS = {"w": 0.1 * jax.random.normal(jax.random.key(1), (256, 256)), "b": jnp.zeros(256)}


def test_every_row_of_the_table_of_base_optimizers_is_read():
    assert len(ROWS) == OPTIMIZERS.count("| `optax.")


@pytest.mark.parametrize(("code", "buffers"), ROWS, ids=[code for code, _ in ROWS])
def test_a_base_optimizer_trains_behind_arsam_and_keeps_what_its_row_says(code, buffers):
    def loss_fn(params):
        return jnp.mean((jnp.tanh(X @ params["w"] + params["b"]) - 0.5) ** 2)

    base = eval(code)
    method = arsam_jax.arsam(rho=0.1, segment_length=5, initial_samples=2)
    tx, grad_fn = optax.chain(method, base), jax.grad(loss_fn)

    def step(carry, _):
        params, opt_state = carry
        updates, opt_state = tx.update(grad_fn(params), opt_state, params, grad_fn=grad_fn)
        return (optax.apply_updates(params, updates), opt_state), None

    run = jax.jit(lambda carry: jax.lax.scan(step, carry, length=20)[0])
    params, opt_state = run((PARAMS, tx.init(PARAMS)))
    assert loss_fn(params) < loss_fn(PARAMS)
    assert 0 < arsam_jax.get_metrics(opt_state).num_sampled < 20

    matrix = {"w": PARAMS["w"]}
    kept = sum(x.size for x in jax.tree.leaves(base.init(matrix)) if x.ndim) / matrix["w"].size
    assert float(f"{kept:.1g}") == float(buffers)


def test_the_description_for_a_package_index_has_no_links_into_the_repository():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    hook = project["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]
    (fragment,) = hook["fragments"]
    text = (ROOT / fragment["path"]).read_text()
    for rule in hook["substitutions"]:
        text = re.sub(rule["pattern"], rule["replacement"], text)
    assert re.findall(r"\]\((?!https?:)", text) == []
    assert "]()" not in text
    assert "Does SAM help on my task?" in text  # the words of a link stay


def test_the_readme_is_short():
    text = re.sub(r"^```.*?^```$", "", README.read_text(), flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"^\|.*$", "", text, flags=re.MULTILINE)
    words = re.sub(r"\]\([^)]*\)", "]", text).split()
    assert len(words) <= 450
