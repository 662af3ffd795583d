"""Every test runs on eight forced CPU devices with strict promotion of dtypes and ranks."""

import collections
import gc
import os
import socket
import tempfile
import zlib
from importlib.metadata import version

# Tests compile much and run little. Without fusion emitters, which later versions always have, bits
# are equal at level 0 too.
HAS_OTHER_EMITTERS = [int(x) for x in version("jax").split(".")[:2]] < [0, 11]
EIGHT_DEVICES = "--xla_force_host_platform_device_count=8"
FLAGS = [
    EIGHT_DEVICES,
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_parallel_codegen_split_count=1",
    f"--xla_backend_optimization_level={0 if HAS_OTHER_EMITTERS else 1}",
]
if HAS_OTHER_EMITTERS:
    FLAGS.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *FLAGS])
os.environ.setdefault("NPROC", "32")  # threads: with one a device XLA:CPU can wait for itself

# What one worker or one test has compiled, the others load. A folder that is named from outside
# keeps it from run to run.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    compiled = tempfile.TemporaryDirectory(prefix="compiled")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = compiled.name
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")  # a twentieth of the time

import jax  # noqa: E402 - it reads the environment
import pytest  # noqa: E402

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_addoption(parser):
    parser.addoption(
        "--of-each",
        type=int,
        metavar="N",
        help="at most N cases of each test, spread over them, from another one on in each test",
    )


def pytest_collection_modifyitems(config, items):
    most = config.getoption("of_each")
    if most is None:
        return
    cases = collections.defaultdict(list)
    for item in items:
        cases[item.nodeid.partition("[")[0]].append(item)
    kept = set()
    for name, those in cases.items():
        first = zlib.crc32(name.encode())
        spread = range(0, len(those) * most, max(len(those), most))
        kept.update(those[(first + place // most) % len(those)] for place in spread)
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = [item for item in items if item in kept]


def pytest_sessionfinish():
    gc.freeze()  # what was compiled, gigabytes, is not looked through again


@pytest.fixture
def x64():
    """Float64 for the time of a test."""
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


@pytest.fixture(scope="module")
def standard_promotion():
    """What JAX does by default: Flax, optax's schedules and the example mix ranks and dtypes."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Where the data sets of a module's tests are prepared."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture
def free_port():
    """A function that finds a port for a coordinator of processes."""

    def find():
        with socket.socket() as server:
            server.bind(("127.0.0.1", 0))
            return server.getsockname()[1]

    return find
