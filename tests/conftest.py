"""All tests run on eight CPU devices, with strict promotion of dtypes and ranks."""

import gc
import os
import socket
import tempfile
from importlib.metadata import version

# Tests compile much and run little, so optimization is turned down. Fusion emitters, which later
# versions of JAX always use, give different bits at level 0.
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
os.environ.setdefault("NPROC", "32")  # With one thread per device, XLA:CPU can deadlock.

# Workers and subprocesses load what another one has compiled.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    compiled = tempfile.TemporaryDirectory(prefix="compiled")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = compiled.name
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")  # Saves 5 % of the time.

import jax  # noqa: E402 - It reads the environment.
import pytest  # noqa: E402

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

gc.set_threshold(100_000, 50, 100)  # Traced programs are many small objects that stay alive.


@pytest.fixture(scope="module", autouse=True)
def freeze_garbage_collection():
    """Keeps the collector from looking through gigabytes of compiled programs of other modules."""
    yield
    gc.freeze()


@pytest.fixture
def x64():
    """Enables float64 during one test."""
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


@pytest.fixture(scope="module")
def standard_promotion():
    """The default promotion, for Flax, Keras and optax's schedules, which mix ranks and dtypes."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture
def free_port():
    """Returns a function that finds a free port for the coordinator of several processes."""

    def find():
        with socket.socket() as server:
            server.bind(("127.0.0.1", 0))
            return server.getsockname()[1]

    return find
