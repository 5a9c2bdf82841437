"""Full disks, read-only folders, flipped bits: one clear line, and no good checkpoint is lost."""

import contextlib
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from alexnet_jax.runtime import checksum, workdir
from alexnet_jax.runtime.checksum import array_checksums
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.runtime.metrics import MetricsLog, read_metrics
from alexnet_jax.train import fit
from tests.conftest import make_config
from tests.runs import saved

ROOT = Path(__file__).parents[1]
SHORT = {"batch": 32, "evaluate__batch": 32, "evaluate__ten_views_at_end": False, "log__every": 4}


@pytest.fixture(scope="module")
def whole(records, tmp_path_factory):
    """A run of two epochs, 16 steps, that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole")
    fit(make_config(records, epochs=2, **SHORT), folder)
    return folder


# --- disks --------------------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path):
    """A disk of its own; `disk(options)` changes it, as with 'size=3m' or 'ro'."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options):
        line = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        return subprocess.run(line, capture_output=True, check=False).returncode == 0

    if not mount("size=1m"):
        pytest.skip("only root can mount a disk")
    try:
        yield folder, lambda options: mount(f"remount,{options}")
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_disk_that_fills_up_loses_nothing(records, whole, disk):
    """There is room for the first epoch's checkpoint, not for the second's."""
    folder, change = disk
    assert change("size=100m")
    c = make_config(records, epochs=1, **SHORT)
    fit(c, folder / "run")
    used = shutil.disk_usage(folder).used
    assert change(f"size={used + 500_000}")
    c = make_config(records, epochs=2, **SHORT)
    with pytest.raises(UserError, match=r"a checkpoint cannot be .*: No space left on device, \d"):
        fit(c, folder / "run")
    assert saved(c, folder / "run").step == 8
    assert change("size=100m")
    fit(c, folder / "run")
    jax.tree.map(np.testing.assert_array_equal, saved(c, folder / "run"), saved(c, whole))


def test_metrics_that_cannot_be_written_are_named_and_the_rest_is_kept(disk):
    folder, change = disk
    assert change("size=12k")
    with contextlib.closing(MetricsLog(folder, 0)) as log:

        def write_until_full():
            for step in range(1, 1000):
                log.write(step, step / 10, {f"loss{i}": 0.25 for i in range(20)})

        with pytest.raises(UserError, match=r"metrics.jsonl cannot be written: No space left on"):
            write_until_full()
    kept = [line["step"] for line in read_metrics(folder)]
    assert 0 < len(kept) < 999
    assert kept == list(range(1, len(kept) + 1))


def test_a_workdir_that_cannot_be_written_is_refused(records, disk):
    folder, change = disk
    assert change("ro")
    with pytest.raises(UserError, match=r"cannot write in the workdir .*: Read-only file system"):
        fit(make_config(records, **SHORT), folder / "run")


# --- bits ---------------------------------------------------------------------------------------


def files_of(checkpoint):
    return sorted(file for file in checkpoint.rglob("*") if file.is_file() and file.stat().st_size)


@pytest.mark.parametrize("seed", range(12))
def test_a_flipped_bit_anywhere_in_a_checkpoint_is_never_taken_for_good(
    records, whole, tmp_path, seed
):
    """Either nothing that counts has changed, or the checkpoint before is used."""
    c = make_config(records, epochs=2, **SHORT)
    shutil.copytree(whole, tmp_path / "run")
    newest = tmp_path / "run" / workdir.CHECKPOINTS / "00000016"
    rng = random.Random(seed)
    # Every other one in the largest file, in which nearly all of the bytes are.
    by_size = sorted(files_of(newest), key=lambda file: file.stat().st_size)
    file = by_size[-1] if seed % 2 else rng.choice(by_size)
    data = bytearray(file.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    file.write_bytes(data)
    try:
        found = saved(c, tmp_path / "run")
    except UserError as error:
        assert "damaged" in str(error)  # noqa: PT017
        return
    assert found.step in (8, 16)
    if found.step == 16:
        jax.tree.map(np.testing.assert_array_equal, found.state, saved(c, whole).state)
    else:
        assert (tmp_path / "run" / "damaged-16").is_dir()


def test_another_number_in_the_arrays_is_noticed(tmp_path, records):
    """Whose file has no checksum: every element, and on however many devices they lie."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(6, 8)).astype(np.float32)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("x",))
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "x"))
    whole = array_checksums({"w": values})
    assert whole == array_checksums({"w": jax.device_put(values, split)})
    for place in np.ndindex(values.shape):
        changed = values.copy()
        changed.view(np.uint32)[place] ^= np.uint32(1 << rng.integers(32))
        assert array_checksums({"w": changed}) != whole
    swapped = values.copy()
    swapped[0, 0], swapped[3, 4] = values[3, 4], values[0, 0]
    assert array_checksums({"w": swapped}) != whole


def test_devices_send_only_sums_to_tell_what_was_saved():
    """And not their parts of the arrays, which are half a gigabyte at full size."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("x",))
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "x"))
    values = jax.ShapeDtypeStruct((64, 64), np.float32, sharding=split)
    text = checksum._sums.lower({"w": values}).compile().as_text()
    exchanges = re.findall(r"= (\S+) ((?:all|reduce-scatter|collective)[a-z-]+)\(", text)
    assert exchanges == [("u32[]", "all-reduce")]


# --- other people's files -----------------------------------------------------------------------

WATCHED = """
import sys

def watch(event, arguments):
    if event == "pickle.find_class":
        raise RuntimeError(f"a pickle asks for {arguments!r}")

from pathlib import Path
from alexnet_jax.training import trained
sys.addaudithook(watch)
net = trained.open_trained(Path(sys.argv[1]), devices=1)
print("opened", net.step)
"""


@pytest.mark.slow
def test_opening_a_checkpoint_and_records_runs_no_code_of_theirs(records, whole):
    """Python tells of each class that a pickle asks for; nothing may ask for one."""
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, str(whole)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "opened 16" in done.stdout
