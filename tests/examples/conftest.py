"""The tests of the examples share prepared data and compiled programs, those they start too."""

import os

import jax
import pytest


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """Where the data sets of all tests are prepared."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="package", autouse=True)
def shared_compilation(tmp_path_factory):
    """Programs are compiled quickly, and once: the same one comes from a cache on disk.

    Not so what this process tests after the examples: without optimizations, bits of the library
    are not always equal where they must be.
    """
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    values = {
        "jax_compilation_cache_dir": str(folder / "compiled"),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_disable_most_optimizations": True,
    }
    before = {name: jax.config.values[name] for name in values}
    environment = {name.upper(): str(value) for name, value in values.items()}
    os.environ.update(environment)
    for name, value in values.items():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    for name in environment:
        del os.environ[name]
