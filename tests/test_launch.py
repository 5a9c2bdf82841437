"""The files of launch/: they are valid, and what they start trains."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml

from alexnet_jax.runtime.metrics import read_metrics
from tests import machines, slurm
from tests.conftest import SHARED
from tests.processes import (
    ROOT,
    assert_same_end,
    assert_same_state,
    command,
    end_of,
    environment,
    finish,
    free_port,
    train,
)

LAUNCH = ROOT / "launch"
CRD = SHARED / "jobset_crd.yaml"
SMALL = ["batch=32", "model.width=0.125", "evaluate.batch=32", "epochs=1", "devices=2", "steps=2"]
SMALL.append("data.source=folder:PATH")


@pytest.fixture
def home(tmp_path):
    """A checkout with an environment, as the files expect it."""
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    for name in ("configs", "launch"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


def small(line: list[str], records: Path, home: Path) -> list[str]:
    """The command line of a file, for a small network with records and workdir of this test."""
    options = {"--config": "configs/tiny.py", "--workdir": str(home / "run")}
    options["--config.data.records"] = str(records)
    ours = [
        word if (name := word.partition("=")[0]) not in options else f"{name}={options[name]}"
        for word in line
    ]
    return [*ours, *(f"--config.{value}" for value in SMALL)]


def run_in_two(lines: list[list[str]], environments: list[dict[str, str]], home: Path):
    pipe = subprocess.PIPE
    results = finish(
        subprocess.Popen(line, cwd=home, env=own, stdout=pipe, stderr=pipe, text=True)
        for line, own in zip(lines, environments, strict=True)
    )
    assert [one.status for one in results] == [0, 0], results
    assert "in 2 processes" in results[0].output
    assert read_metrics(home / "run")[-1]["step"] == 2


# --- Kubernetes ---------------------------------------------------------------------------------


def jobset():
    return yaml.safe_load((LAUNCH / "jobset.yaml").read_text())


@pytest.mark.skipif(not CRD.exists(), reason=f"JobSet's schema is not at {CRD}")
def test_the_jobset_fits_its_schema():
    versions = yaml.safe_load(CRD.read_text())["spec"]["versions"]
    schema = versions[0]["schema"]["openAPIV3Schema"]
    check = jsonschema.Draft202012Validator(closed(schema))
    assert list(check.iter_errors(jobset())) == []
    wrong = jobset()
    wrong["spec"]["failurePolicy"]["maxRestart"] = 3
    assert "maxRestart" in next(check.iter_errors(wrong)).message


def closed(schema):
    """The schema, changed so that it refuses properties which it does not name."""
    if isinstance(schema, list):
        return [closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: closed(value) for key, value in schema.items()}
    if "properties" in made and not made.get("x-kubernetes-preserve-unknown-fields"):
        made.setdefault("additionalProperties", False)
    return made


def test_the_job_in_the_jobset_fits_its_schema():
    spec = jobset()["spec"]["replicatedJobs"][0]["template"]["spec"]
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "x"}, "spec": spec}
    kubernetes_validate.validate(job, "1.30", strict=True)


def test_the_numbers_in_the_jobset_fit_together():
    (job,) = jobset()["spec"]["replicatedJobs"]
    spec, name = job["template"]["spec"], jobset()["metadata"]["name"]
    (container,) = spec["template"]["spec"]["containers"]
    variables = {one["name"]: one.get("value") for one in container["env"]}
    machines = int(variables["JAX_NUM_PROCESSES"])
    assert spec["parallelism"] == spec["completions"] == machines
    gpus = machines * container["resources"]["limits"]["nvidia.com/gpu"]
    assert f"--config.devices={gpus}" in container["args"]
    first = f"{name}-{job['name']}-0-0.{name}"  # JobSet's name for the first pod
    assert variables["JAX_COORDINATOR_ADDRESS"].partition(":")[0] == first


@pytest.mark.slow
def test_the_pods_of_the_jobset_train(records, home):
    (job,) = jobset()["spec"]["replicatedJobs"]
    (container,) = job["template"]["spec"]["template"]["spec"]["containers"]
    line = [sys.executable, *container["command"][1:], *container["args"]]
    variables = {one["name"]: one.get("value") for one in container["env"]}
    variables["JAX_COORDINATOR_ADDRESS"] = f"127.0.0.1:{free_port()}"
    del variables["JAX_COMPILATION_CACHE_DIR"]
    variables["KUBERNETES_SERVICE_HOST"] = "127.0.0.1"  # as every pod has it
    own = [
        environment(**variables | {"JAX_PROCESS_ID": str(pod), "JOB_COMPLETION_INDEX": str(pod)})
        for pod in range(2)
    ]
    run_in_two([small(line, records, home)] * 2, own, home)


# --- SkyPilot -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_nodes_of_the_task_train(records, home):
    task = yaml.safe_load((LAUNCH / "sky.yaml").read_text())
    run = task["run"].replace(":8476", f":{free_port()}").rstrip()
    run += " " + shlex.join(f"--config.{value}" for value in SMALL)
    values = {"SKYPILOT_NODE_IPS": "127.0.0.1\n127.0.0.1", "SKYPILOT_NUM_NODES": "2"}
    values |= task["envs"] | {"CONFIG": "configs/tiny.py", "SKYPILOT_NUM_GPUS_PER_NODE": "1"}
    values |= {"WORKDIR": str(home / "run"), "RECORDS": str(records)}
    own = [environment(**values, SKYPILOT_NODE_RANK=str(node)) for node in range(2)]
    run_in_two([["bash", "-euo", "pipefail", "-c", run]] * 2, own, home)


# --- one machine --------------------------------------------------------------------------------


@pytest.mark.parametrize(("gpus", "devices"), [(0, None), (1, "1"), (3, "2"), (8, "8")])
def test_the_local_script_takes_all_gpus_in_pairs(home, gpus, devices):
    """With an nvidia-smi and a Python that only print."""
    python = home / ".venv" / "bin" / "python"
    python.write_text('#!/bin/sh\necho "$@"\n')
    smi = home / "bin" / "nvidia-smi"
    smi.parent.mkdir()
    smi.write_text(f"#!/bin/sh\nseq 1 {gpus}\n" if gpus else "#!/bin/sh\nexit 9\n")
    smi.chmod(0o755)
    (home / "launch").unlink()
    (home / "launch").mkdir()
    script = home / "launch" / "local.sh"
    script.write_text((LAUNCH / "local.sh").read_text())
    path = f"{smi.parent}:{os.environ['PATH']}" if gpus else "/usr/bin:/bin"
    line = ["bash", str(script), "--config=configs/tiny.py"]
    said = subprocess.check_output(line, env=environment(PATH=path), text=True)
    asked = f" --config.devices={devices}" if devices else ""
    assert said == f"-m alexnet_jax.main --config=configs/tiny.py{asked}\n"
    stated = [*line, "--config.devices=1"]
    said = subprocess.check_output(stated, env=environment(PATH=path), text=True)
    assert said == "-m alexnet_jax.main --config=configs/tiny.py --config.devices=1\n"


# --- SLURM --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(records, tmp_path_factory):
    """The end of the same run in one process, without a stop."""
    folder = tmp_path_factory.mktemp("whole")
    train(records, folder, 1, *STEPS)
    return end_of(records, folder)


STEPS = ["checkpoint_every=4", "epochs=4"]


def submit(cluster, folder, line, *, nodes=1, **variables):
    """Submits a job of two tasks, with `variables` in its environment."""
    variables = {"PYTHON": sys.executable} | variables
    own = environment(**variables, SLURM_CONF=cluster.environment["SLURM_CONF"])
    few = [f"--nodes={nodes}", f"--ntasks-per-node={2 // nodes}"]
    few += ["--cpus-per-task=1", "--gpus-per-node=0"]
    few += [f"--output={folder}.log", f"--chdir={ROOT}", "--time=10"]
    return slurm.Job(cluster._replace(environment=own), *few, str(LAUNCH / "slurm.sbatch"), *line)


def tasks(folder):
    """The processes that train in `folder`."""
    found = []
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = process.read_bytes().split(b"\0")
        except OSError:
            continue
        if words[0].endswith(b"python") and f"--workdir={folder}".encode() in words:
            found.append(int(process.parent.name))
    return sorted(found)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.skipif(bool(slurm.missing()), reason=slurm.missing())
@pytest.mark.parametrize("nodes", [1, 2])
def test_slurm_starts_again_what_was_stopped_or_killed(records, whole, tmp_path, nodes):
    if nodes == 2 and machines.missing():
        pytest.skip(machines.missing())
    with ExitStack() as stack:
        on = [machines.this_machine()]
        if nodes == 2:
            on = stack.enter_context(machines.two_machines(tmp_path))
        cluster = stack.enter_context(slurm.cluster(tmp_path / "slurm", on))
        for name in ("scancel -s TERM", "kill -9"):
            folder = tmp_path / name.replace(" ", "_")
            line = command(records, folder, *STEPS)[3:]
            # bash counts from there: ten minutes after its start a death is no reason to give up.
            seconds = {"SECONDS": "600"} if name == "kill -9" else {}
            job = submit(cluster, folder, line, nodes=nodes, **seconds)
            log = Path(f"{folder}.log")
            end = time.monotonic() + 240
            while len(read_metrics(folder)) < 3:
                assert time.monotonic() < end, log.read_text()
                time.sleep(0.2)
            if name == "kill -9":
                os.kill(tasks(folder)[-1], signal.SIGKILL)
            else:
                job.signal("TERM")
            assert job.wait(300) == "COMPLETED", log.read_text()
            said = log.read_text()
            assert "returns to the queue" in said
            assert "start 2" in said
            assert "resuming from the checkpoint of step" in said
            ended = end_of(records, folder)
            assert_same_state(ended, whole)
            if name == "scancel -s TERM":
                assert "exit status 75" in said
            assert_same_end(ended, whole)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.skipif(bool(slurm.missing()), reason=slurm.missing())
def test_slurm_does_not_start_again_what_would_fail_again(records, tmp_path):
    """An error that the user must fix, and a crash in the first ten minutes."""
    with slurm.cluster(tmp_path / "slurm") as cluster:
        values = command(tmp_path / "none", tmp_path / "run", "data.source=folder:none")[3:]
        job = submit(cluster, tmp_path / "run", values, SECONDS="600")
        assert job.wait(120) == "FAILED"
        said = Path(f"{tmp_path / 'run'}.log").read_text()
        assert "records" in said
        assert "returns to the queue" not in said
        job = submit(cluster, tmp_path / "crash", values, PYTHON=shutil.which("false"))
        assert job.wait(120) == "FAILED"
        assert "returns to the queue" not in Path(f"{tmp_path / 'crash'}.log").read_text()
