"""The example on several devices and in several processes: the results of one, and failures.

The processes start under what SLURM and Open MPI set, and by hand.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from arsam_jax import parallel
from examples.classification import history, loop, multihost, processes, settings
from examples.classification.__main__ import main
from examples.classification.data import datasets
from examples.classification.methods import perturbation_size
from examples.classification.trainer import Trainer
from examples.common import records
from examples.common.errors import StoppedError
from tests.conftest import EIGHT_DEVICES

ROOT = Path(__file__).parents[3]
LAUNCH = ROOT / "examples" / "classification" / "launch"
TINY = (
    *("--width", "2", "--dropout", "0.2", "--batch-size", "100", "--epochs", "6"),
    *("--segment-length", "5", "--checkpoint-seconds", "0"),
)
TIMEOUT = 20
LONG = 600  # seconds; the machine may be busy with other work
# examples.multihost, with one process of two that sends itself a signal after some steps. Steps
# take their time, so that the others hear of it before they are through.
PROGRAM = """
import os, sys, time
from examples.classification import multihost, trainer

def compile_step(self, *key):
    calls = iter(range(1, 1000))
    step_fn = original(self, *key)
    def slow_step_fn(*args):
        if next(calls) == int(os.environ.get("SIGNAL_AFTER", 0)):
            os.kill(os.getpid(), int(os.environ["SIGNAL"]))
        time.sleep(float(os.environ.get("STEP_SECONDS", 0)))
        return step_fn(*args)
    return slow_step_fn

original, trainer.Trainer.compile_step = trainer.Trainer.compile_step, compile_step
sys.exit(multihost.main(sys.argv[1:]))
"""


pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.fixture(scope="module")
def trainers(data_dir):
    dataset = datasets.load("digits", data_dir=data_dir)
    return {n: Trainer(settings.parse([*TINY, "--devices", str(n)]), dataset) for n in (0, 4)}


@pytest.fixture(scope="module")
def step_fns(trainers):
    return {n: trainer.compile_step("arsam") for n, trainer in trainers.items()}


@pytest.fixture(scope="module")
def reference(trainers, step_fns, tmp_path_factory):
    """The folder of a run of one device that nothing interrupted."""
    folder = tmp_path_factory.mktemp("reference")
    loop.train(trainers[0], step_fns[0], "arsam", (7,), folder)
    return folder / "seed7"


def assert_equal_to_rounding(folder, expected):
    for name, columns, tolerance in (
        ("steps.csv", history.STEP_COLUMNS, {"loss": 1e-3, "grad_norm": 1e-2}),
        ("epochs.csv", history.EPOCH_COLUMNS, {"train_loss": 1e-3}),
    ):
        run, whole = (records.Table(f / name, columns) for f in (folder, expected))
        run.load()
        whole.load()
        for column in ("step", "sampled") if name == "steps.csv" else ("epoch", "percent_sam"):
            assert run.column(column) == whole.column(column)
        for column, rtol in tolerance.items():
            np.testing.assert_allclose(run.column(column), whole.column(column), rtol=rtol)
    accuracy = run.column("accuracy")
    np.testing.assert_allclose(accuracy, whole.column("accuracy"), atol=3 / 797)


def test_four_devices_have_the_results_of_one(trainers, step_fns, reference, tmp_path):
    loop.train(trainers[4], step_fns[4], "arsam", (7,), tmp_path)
    assert_equal_to_rounding(tmp_path / "seed7", reference)


@pytest.mark.parametrize("counts", [(4, 0), (0, 4)])
def test_a_resumed_run_may_have_other_devices(counts, trainers, step_fns, reference, tmp_path):
    first, second = counts
    calls = iter(range(1, 1000))
    with pytest.raises(StoppedError):
        loop.train(
            *(trainers[first], step_fns[first], "arsam", (7,), tmp_path),
            should_stop=lambda: next(calls) == 23,
        )
    loop.train(trainers[second], step_fns[second], "arsam", (7,), tmp_path)
    assert_equal_to_rounding(tmp_path / "seed7", reference)


def test_a_batch_is_split_and_the_state_is_whole(trainers, step_fns):
    state = trainers[4].new_state("arsam", 0)
    for leaf in jax.tree.leaves(state):
        assert leaf.sharding.device_set == set(jax.devices()[:4])
        assert leaf.is_fully_replicated
    (_, split, *_), _ = step_fns[4].input_shardings
    assert split.shard_shape((100, 8, 8, 1)) == (25, 8, 8, 1)
    data, index = trainers[4].data, np.arange(100)
    batch = trainers[4].batch(data.train_images[index], data.train_labels[index], index)
    state, _ = step_fns[4](state, *batch)
    assert all(leaf.is_fully_replicated for leaf in jax.tree.leaves(state))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--devices", "9"], "--devices 9, but there are 8 (cpu)"),
        (["--devices", "8", "--batch-size", "100"], "100 is no multiple of the 8 devices"),
        (["--devices", "-1"], "--devices must not be negative"),
        (["--devices", "2", "--seeds-at-once", "2"], "--seeds-at-once is for one device, not 2"),
    ],
)
def test_devices_that_are_not_there_are_an_error(arguments, message, data_dir, tmp_path, capsys):
    place = ("--data-dir", str(data_dir), "--output", str(tmp_path))
    assert main([*arguments, *place]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_effective_m_is_the_batch_but_for_methods_that_divide_it():
    config = settings.parse(["--batch-size", "64", "--method", "all"])
    sizes = {method: perturbation_size(method, config) for method in config.method}
    assert {m for m, size in sizes.items() if size is None} == {"sgd", "saf", "mesa"}
    halves = {m for m, size in sizes.items() if size == 32}
    assert halves == {"m_sam", "budgeted_m_sam", "k_sam", "ausam"}
    assert {size for m, size in sizes.items() if m not in halves} == {64, None}


def test_processes_that_differ_stop_and_others_go_on(monkeypatch):
    answers = iter([np.uint32([1, 1]), np.uint32([1, 2])])
    monkeypatch.setattr(parallel, "of_all_processes", lambda digest: next(answers))
    processes.require_same("the seed", 1)
    with pytest.raises(processes.DisagreementError, match="differ in the seed; process 0 has 1"):
        processes.require_same("the seed", 1)


def test_a_checkpoint_that_not_all_find_stops_them(trainers, step_fns, tmp_path, monkeypatch):
    """Such as on file systems of their own."""
    both = np.uint32([1, 2])
    monkeypatch.setattr(parallel, "of_all_processes", lambda digest: both)
    with pytest.raises(processes.DisagreementError, match=r"step of the checkpoint in .*has None"):
        loop.train(trainers[0], step_fns[0], "arsam", (7,), tmp_path)


def start(environments, arguments, folder, port):
    """Starts a process in each of the environments. Their output goes to files."""
    started = []
    for index, environment in enumerate(environments):
        env = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "OMPI_"))}
        # One device a process, if not more are asked for.
        env["XLA_FLAGS"] = env["XLA_FLAGS"].replace(EIGHT_DEVICES, "")
        env |= {"JAX_PLATFORMS": "cpu", "JAX_COORDINATOR_PORT": str(port)} | environment
        own = ("--process-id", str(index)) if "--coordinator" in arguments else ()
        command = [sys.executable, "-c", PROGRAM, *arguments, *own, "--timeout", str(TIMEOUT)]
        with (folder / f"{index}.out").open("w") as out, (folder / f"{index}.err").open("w") as err:
            started.append(
                subprocess.Popen(command, cwd=ROOT, env=env, stdout=out, stderr=err, text=True)
            )
    return started


@pytest.fixture
def launch(tmp_path, free_port):
    """``start`` with a free port; leaves nothing running."""
    started = []

    def launch(environments, arguments):
        port = free_port()
        arguments = [argument.replace("PORT", str(port)) for argument in arguments]
        started.extend(start(environments, arguments, tmp_path, port))
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


def test_processes_have_the_results_of_one_through_stop_death_and_resumption(
    launch, trainers, step_fns, reference, data_dir, tmp_path
):
    place = ("--output", str(tmp_path), "--name", "run")
    run = tmp_path / "run" / "arsam" / "seed7"

    def output(index, kind):
        return " ".join((tmp_path / f"{index}.{kind}").read_text().split())

    # Under SLURM; one process is asked to stop, and both stop at the same step.
    arguments = [*TINY, *place, "--method", "arsam", "--seeds", "7", "--data-dir", str(data_dir)]
    asked = {"SIGNAL": str(signal.SIGTERM.value), "SIGNAL_AFTER": "5"}
    slow = {"STEP_SECONDS": "0.2"}
    environments = [of_slurm(0) | slow, of_slurm(1) | slow | asked]
    for index, process in enumerate(launch(environments, arguments)):
        assert process.wait(LONG) == 128 + signal.SIGTERM, output(index, "err")
    assert "2 devices of 2 processes; effective m = 100" in output(0, "out")
    assert "examples.classification.multihost --resume --name run" in output(0, "out")
    assert "arsam" not in output(1, "out")  # the main process alone reports
    assert "digits" not in output(1, "out")
    steps = records.Table(run / "steps.csv", history.STEP_COLUMNS)
    steps.load()
    assert 5 <= len(steps.rows) < 45

    # Under Open MPI; one process dies, and the other ends in time.
    killed = {"SIGNAL": str(signal.SIGKILL.value), "SIGNAL_AFTER": "13"}
    survivor, victim = launch([of_open_mpi(0), of_open_mpi(1) | killed], ["--resume", *place])
    assert victim.wait(LONG) == -signal.SIGKILL, output(1, "err")
    assert survivor.wait(TIMEOUT + 10) != 0
    assert "another" in output(0, "err")
    assert not (run / loop.RESULT_FILE).exists()
    assert list((run / "checkpoint").glob("[1-9]*"))

    # Resumed in one process.
    shutil.copytree(run, tmp_path / "alone" / "seed7")
    loop.train(trainers[0], step_fns[0], "arsam", (7,), tmp_path / "alone")
    assert_equal_to_rounding(tmp_path / "alone" / "seed7", reference)

    # Resumed by hand in both, now with two devices each.
    by_hand = ("--coordinator", "127.0.0.1:PORT", "--num-processes", "2", "--devices", "2")
    for index, process in enumerate(launch([{}, {}], ["--resume", *place, *by_hand])):
        assert process.wait(LONG) == 0, output(index, "err")
    assert_equal_to_rounding(run, reference)
    assert "4 devices of 2 processes" in output(0, "out")
    assert "arsam" not in output(1, "out")
    summary = json.loads((tmp_path / "run" / "report.json").read_text())
    assert (summary["device"]["devices"], summary["device"]["processes"]) == (4, 2)
    assert summary["examples_a_perturbation"] == {"arsam": 100}
    assert not list((tmp_path / "run").rglob("*.tmp"))


@pytest.mark.parametrize("arguments", [[], ["--num-processes", "2"], ["--timeout", "0"]])
def test_without_a_cluster_the_arguments_are_needed(arguments, monkeypatch, capsys):
    monkeypatch.setattr(jax.distributed, "initialize", no_cluster)
    with pytest.raises(SystemExit):
        multihost.main(arguments)
    expected = "--timeout must be" if "--timeout" in arguments else "give --coordinator"
    assert expected in capsys.readouterr().err


def no_cluster(*args, **kwargs):
    raise ValueError("coordinator_address should be defined.")


@pytest.mark.parametrize("script", sorted(LAUNCH.glob("*.sh")), ids=lambda path: path.name)
def test_launch_scripts_are_shell(script):
    subprocess.run(["bash", "-n", script], check=True)
    assert "-m examples.classification.multihost" in script.read_text()


def test_the_jobset_is_one_indexed_job():
    """From which JAX reads the number of processes and which one each is."""
    yaml = pytest.importorskip("yaml")
    *_, jobset = yaml.safe_load_all((LAUNCH / "jobset.yaml").read_text())
    (replicated,) = jobset["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    assert replicated["replicas"] == 1
    assert job["completionMode"] == "Indexed"
    assert job["parallelism"] == job["completions"]
    (container,) = job["template"]["spec"]["containers"]
    assert "-m examples.classification.multihost" in container["args"][0]
