"""Several devices and several processes have the results of one, also after stops and failures."""

import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from arsam_jax import parallel
from examples.classification import datasets
from examples.classification.__main__ import Classification
from examples.classification.options import Options
from examples.common import devices
from examples.common.comparison import Trainer
from examples.common.errors import ConfigError, StoppedError
from tests.conftest import EIGHT_DEVICES

ROOT = Path(__file__).parents[3]
LAUNCH = ROOT / "examples" / "classification" / "launch"
TINY = Options(
    width=2, dropout=0.2, batch_size=100, epochs=3, segment_length=5, evaluate_every=1, name="tiny"
)
ARGUMENTS = [
    *("--row", "digits", "--width", "2", "--dropout", "0.2", "--batch-size", "100"),
    *("--epochs", "3", "--method", "arsam", "--seeds", "7", "--checkpoint-seconds", "0"),
]
TIMEOUT = 20
LONG = 300  # seconds; the machine may be busy with other work
# A process that sends itself a signal after some steps. Steps take their time, so that the other
# process hears of it before they end.
PROGRAM = """
import os, sys, time
from examples.classification import __main__ as program
from examples.common import devices
from examples.common.comparison import trainer

def step_fn(self, *args):
    calls = iter(range(1, 1000))
    take_step = original(self, *args)
    def slow_step(*args):
        if next(calls) == int(os.environ.get("SIGNAL_AFTER", 0)):
            os.kill(os.getpid(), int(os.environ["SIGNAL"]))
        time.sleep(float(os.environ.get("STEP_SECONDS", 0)))
        return take_step(*args)
    return slow_step

devices.TIMEOUT = 20
original, trainer.Trainer.step_fn = trainer.Trainer.step_fn, step_fn
sys.exit(program.main(sys.argv[1:]))
"""

pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.fixture(scope="module")
def digits():
    return datasets.load(Options())


def trainer_of(num_devices, digits):
    options = dataclasses.replace(TINY, devices=num_devices)
    return Trainer(options, Classification(options, digits))


def assert_equal_to_rounding(folder, expected):
    run, whole = (
        np.genfromtxt(place / "steps.csv", delimiter=",", names=True)
        for place in (folder, expected)
    )
    for column in ("step", "sampled"):
        np.testing.assert_array_equal(run[column], whole[column])
    np.testing.assert_allclose(run["loss"], whole["loss"], rtol=1e-3)


@pytest.mark.long
def test_four_devices_have_the_results_of_one_and_resume_each_other(digits, tmp_path):
    one, four = trainer_of(0, digits), trainer_of(4, digits)
    batch = four.task.batch(np.arange(100), 0, 7)
    compiled = four.step_fn("arsam", four.new_state("arsam", 7), batch)
    assert compiled.input_shardings[0][1].images.shard_shape((100, 8, 8, 1)) == (25, 8, 8, 1)
    one.train("arsam", 7, tmp_path / "one")
    four.train("arsam", 7, tmp_path / "four")
    assert_equal_to_rounding(tmp_path / "four", tmp_path / "one")
    for name, first, second in (("four_one", four, one), ("one_four", one, four)):
        calls = iter(range(1, 100))
        with pytest.raises(StoppedError):
            first.train("arsam", 7, tmp_path / name, should_stop=lambda c=calls: next(c) == 13)
        second.train("arsam", 7, tmp_path / name)
        assert_equal_to_rounding(tmp_path / name, tmp_path / "one")


def test_processes_that_differ_stop(monkeypatch):
    answers = iter([np.uint32([1, 1]), np.uint32([1, 2])])
    monkeypatch.setattr(parallel, "of_all_processes", lambda digest: next(answers))
    devices.require_same("the seed", 1)
    with pytest.raises(ConfigError, match="differ in the seed: process 0 has 1"):
        devices.require_same("the seed", 1)


@pytest.mark.parametrize("place", ["2", "0/2@host", "0/2", "a/2@host:1"])
def test_a_place_of_another_form_is_an_error(place):
    with pytest.raises(ConfigError, match="--processes must be auto or INDEX/NUMBER@HOST:PORT"):
        devices.connect(place)


@pytest.mark.parametrize("num_processes", [1, 5])
def test_no_example_of_a_batch_is_lost_or_doubled(num_processes, monkeypatch):
    batch, parts = np.random.default_rng(0).permutation(100), []
    monkeypatch.setattr(jax, "process_count", lambda: num_processes)
    for index in range(num_processes):
        monkeypatch.setattr(jax, "process_index", lambda: index)
        parts.append(batch[devices.own_rows(100)])
    assert {len(part) for part in parts} == {100 // num_processes}
    np.testing.assert_array_equal(np.concatenate(parts), batch)


def test_a_mesh_is_a_row_of_the_devices_that_there_are():
    assert devices.make_mesh(0).size == 1
    assert list(devices.make_mesh(4).devices) == jax.devices()[:4]
    with pytest.raises(ConfigError, match="--devices 9, but a process has 8"):
        devices.make_mesh(9)


def test_without_a_cluster_the_place_is_needed(monkeypatch):
    def no_cluster(*args, **kwargs):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setattr(jax.distributed, "initialize", no_cluster)
    with pytest.raises(ConfigError, match="JAX finds no cluster here, give"):
        devices.connect("auto")


@pytest.fixture
def launch(tmp_path, free_port):
    """Starts a process with each environment and arguments. Leaves nothing running."""
    started = []

    def launch(environments, arguments):
        port = str(free_port())
        for index, environment in enumerate(environments):
            env = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "OMPI_"))}
            # One device per process, if not more are asked for.
            env["XLA_FLAGS"] = env["XLA_FLAGS"].replace(EIGHT_DEVICES, "")
            env |= {"JAX_PLATFORMS": "cpu", "JAX_COORDINATOR_PORT": port} | environment
            own = [a.replace("INDEX", str(index)).replace("PORT", port) for a in arguments]
            command = [sys.executable, "-c", PROGRAM, *own]
            out, err = ((tmp_path / f"{index}.{kind}").open("w") for kind in ("out", "err"))
            with out, err:
                started.append(subprocess.Popen(command, cwd=ROOT, env=env, stdout=out, stderr=err))
        return started[-len(environments) :]

    yield launch
    for process in started:
        process.kill()


def of_slurm(index):
    return {
        "SLURM_JOB_ID": "4711",
        "SLURM_STEP_NODELIST": "127.0.0.1",
        "SLURM_NTASKS": "2",
        "SLURM_PROCID": str(index),
        "SLURM_LOCALID": str(index),
    }


def of_open_mpi(index):
    return {
        "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://127.0.0.1:34911",
        "OMPI_COMM_WORLD_SIZE": "2",
        "OMPI_COMM_WORLD_RANK": str(index),
        "OMPI_COMM_WORLD_LOCAL_RANK": str(index),
    }


@pytest.mark.long
def test_processes_have_the_results_of_one_through_stop_death_and_resumption(launch, tmp_path):
    place = ["--output", str(tmp_path), "--name", "run"]
    run = tmp_path / "run" / "arsam" / "seed7"

    def output(index, kind):
        return " ".join((tmp_path / f"{index}.{kind}").read_text().split())

    (alone,) = launch([{}], [*ARGUMENTS, "--output", str(tmp_path), "--name", "alone"])
    assert alone.wait(LONG) == 0, output(0, "err")
    reference = tmp_path / "alone" / "arsam" / "seed7"

    # Under SLURM; one process is asked to stop, and both stop at the same step.
    asked = {"SIGNAL": str(signal.SIGTERM.value), "SIGNAL_AFTER": "5"}
    slow = {"STEP_SECONDS": "0.2"}
    environments = [of_slurm(0) | slow, of_slurm(1) | slow | asked]
    for index, process in enumerate(
        launch(environments, [*ARGUMENTS, *place, "--processes", "auto"])
    ):
        assert process.wait(LONG) == 128 + signal.SIGTERM, output(index, "err")
    assert "examples.classification --resume --name run" in output(0, "out")
    assert "--processes auto" in output(0, "out")
    assert "arsam" not in output(1, "out")  # the main process alone reports
    assert 5 <= (run / "steps.csv").read_text().count("\n") - 1 < 30

    # Under Open MPI; one process dies, and the other ends in time.
    killed = {"SIGNAL": str(signal.SIGKILL.value), "SIGNAL_AFTER": "6"}
    survivor, victim = launch(
        [of_open_mpi(0), of_open_mpi(1) | killed], ["--resume", *place, "--processes", "auto"]
    )
    assert victim.wait(LONG) == -signal.SIGKILL, output(1, "err")
    assert survivor.wait(3 * TIMEOUT) != 0
    assert not (run / "result.json").exists()

    # Started manually, now with two devices each.
    manual = ["--processes", "INDEX/2@127.0.0.1:PORT", "--devices", "2"]
    for index, process in enumerate(launch([{}, {}], ["--resume", *place, *manual])):
        assert process.wait(LONG) == 0, output(index, "err")
    assert_equal_to_rounding(run, reference)
    assert "arsam" not in output(1, "out")
    assert (tmp_path / "run" / "report.html").exists()
    assert not list((tmp_path / "run").rglob("*.tmp"))


def test_the_launch_files_start_this_program():
    subprocess.run(["bash", "-n", LAUNCH / "slurm.sh"], check=True)
    for file in ("slurm.sh", "jobset.yaml"):
        assert "-m examples.classification --processes auto" in (LAUNCH / file).read_text()
