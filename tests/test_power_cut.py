"""Power cuts and system calls that fail: the tools of tests/stress, and a few of their points.

The whole is run by hand: docs/reliability.md.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from alexnet_jax.prepare import prepare
from alexnet_jax.runtime import files
from alexnet_jax.runtime.checkpoint import Checkpoints
from alexnet_jax.runtime.errors import system_reason
from tests.stress.disk import CALLS, Disk, replay, write_files

ROOT = Path(__file__).parents[1]

needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
needs_gcc = pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")


def disk_after(*lines: str, root: str = "/d") -> Disk:
    """A disk after the lines of a trace; each begins with a thread's number, else it is 1."""
    disk = Disk(root)
    replay((line if line[0].isdigit() else f"1  {line}" for line in lines), disk, lambda *_: None)
    return disk


NEW = 'openat(AT_FDCWD</>, "/d/a", O_WRONLY|O_CREAT|O_TRUNC, 0666) = 3</d/a>'
WRITE = 'write(3</d/a>, "one\\n", 4) = 4'
SYNC = "fsync(3</d/a>) = 0"
SYNC_FOLDER = "fsync(4</d>) = 0"


# --- the model ----------------------------------------------------------------------------------


def test_a_file_that_was_not_synced_is_lost_or_empty_or_zeros():
    disk = disk_after(NEW, WRITE)
    assert disk.left("lost") == {}
    assert disk.left("names") == {"a": b""}
    assert disk.left("zeros") == {"a": bytes(4)}


def test_an_fsync_keeps_the_bytes_and_that_of_the_folder_the_name():
    assert disk_after(NEW, WRITE, SYNC).left("lost") == {}
    assert disk_after(NEW, WRITE, SYNC).left("names") == {"a": b"one\n"}
    assert disk_after(NEW, WRITE, SYNC_FOLDER).left("lost") == {"a": b""}
    for order in ([SYNC, SYNC_FOLDER], [SYNC_FOLDER, SYNC]):
        assert disk_after(NEW, WRITE, *order).left("lost") == {"a": b"one\n"}


def test_bytes_added_after_the_fsync_are_lost():
    more = 'write(3</d/a>, "\\0\\377", 2) = 2'
    disk = disk_after(NEW, WRITE, SYNC, SYNC_FOLDER, more)
    assert disk.left("lost") == disk.left("names") == {"a": b"one\n"}
    assert disk.left("zeros") == {"a": b"one\n\0\0"}
    assert disk_after(NEW, WRITE, more, SYNC, SYNC_FOLDER).left("lost") == {"a": b"one\n\0\xff"}


def test_a_file_that_is_written_anew_can_be_lost_with_its_old_bytes():
    disk = disk_after(NEW, WRITE, SYNC, SYNC_FOLDER, "close(3</d/a>) = 0", NEW)
    assert disk.left("lost") == {"a": b"one\n"}  # the old file
    assert disk.left("names") == {"a": b""}


def test_an_fsync_covers_only_what_was_written_before_it_began():
    disk = disk_after(
        NEW, SYNC_FOLDER, WRITE, "1  fsync(3</d/a> <unfinished ...>",
        '2  write(3</d/a>, "two", 3) = 3', "1  <... fsync resumed>) = 0",
    )  # fmt: skip
    assert disk.left("lost") == {"a": b"one\n"}


def test_a_rename_lasts_as_a_whole_or_not_at_all():
    rename = 'rename("/d/a", "/d/b") = 0'
    disk = disk_after(NEW, WRITE, SYNC, SYNC_FOLDER, rename)
    assert disk.left("lost") == {"a": b"one\n"}
    assert disk.left("names") == {"b": b"one\n"}
    assert {tuple(disk.left("random", seed)) for seed in range(20)} == {("a",), ("b",)}
    assert disk_after(NEW, WRITE, SYNC, rename, SYNC_FOLDER).left("lost") == {"b": b"one\n"}


def test_a_file_in_a_folder_without_a_name_is_lost():
    inside = 'openat(AT_FDCWD</>, "/d/in/a", O_WRONLY|O_CREAT, 0666) = 3</d/in/a>'
    lines = ['mkdir("/d/in", 0777) = 0', inside, "fsync(3</d/in/a>) = 0", "fsync(5</d/in>) = 0"]
    assert disk_after(*lines).left("lost") == {}
    assert disk_after(*lines, SYNC_FOLDER).left("lost") == {"in": None, "in/a": b""}


def test_a_removed_file_can_come_back():
    gone = 'unlinkat(4</d>, "a", 0) = 0'
    disk = disk_after(NEW, WRITE, SYNC, SYNC_FOLDER, gone)
    assert disk.left("lost") == {"a": b"one\n"}
    assert disk.left("names") == {}
    assert disk_after(NEW, WRITE, SYNC, SYNC_FOLDER, gone, SYNC_FOLDER).left("lost") == {}


def test_a_call_that_failed_or_is_of_other_files_changes_nothing():
    failed = 'openat(AT_FDCWD</>, "/d/a", O_WRONLY|O_CREAT, 0666) = -1 ENOSPC (No space left)'
    other = 'openat(AT_FDCWD</>, "/e/a", O_WRONLY|O_CREAT, 0666) = 3</e/a>'
    assert disk_after(failed, other, 'write(3</e/a>, "x", 1) = 1').left("names") == {}


def test_a_call_that_the_replay_does_not_know_is_refused():
    for call in ('link("/d/a", "/d/b") = 0', 'rename("/d/a", "/e/a") = 0'):
        with pytest.raises(NotImplementedError):
            disk_after(NEW, call)


TRIAL = """
import os, sys
import numpy as np
os.chdir(sys.argv[1])
os.mkdir("in")
with open("in/text", "w") as file:
    file.write("one")
    file.flush()
    os.fsync(file.fileno())
    file.write("two")
with open("array", "wb") as file:
    np.save(file, np.arange(1000))
with open("array", "r+b") as file:
    file.seek(-8, 2)
    file.truncate()
os.rename("array", "in-place")
with open("gone", "ab", 0) as file:
    file.write(b"x")
os.remove("gone")
"""


@needs_strace
def test_a_real_trace_gives_the_real_files(tmp_path):
    folder, trace = tmp_path / "disk", tmp_path / "trace"
    folder.mkdir()
    line = ["strace", "-f", "-y", "-s", "100000", "-o", trace, "-e", f"trace={CALLS}"]
    if subprocess.run(["strace", "-o", os.devnull, "true"], check=False).returncode:
        pytest.skip("this machine does not let strace trace")
    # Absolute paths, as ours are.
    trial = TRIAL.replace("os.chdir(sys.argv[1])\n", "")
    for name in ("in/text", "in-place", "array", "gone", "in"):
        trial = trial.replace(f'"{name}"', f'sys.argv[1] + "/{name}"')
    subprocess.run([*line, sys.executable, "-c", trial, folder], check=True)
    disk = Disk(str(folder))
    with trace.open(encoding="latin-1", newline="\n") as lines:
        assert replay(lines, disk, lambda *_: None) > 8
    for node in (disk.top, disk.top.names["in"]):
        node.synced, node.later = node.names, []
    for file in (disk.top.names["in-place"], disk.top.names["in"].names["text"]):
        assert file.synced != file.data
        file.synced = bytes(file.data)
    write_files(disk.left("lost"), tmp_path / "again")
    for path in ("in/text", "in-place"):
        assert (tmp_path / "again" / path).read_bytes() == (folder / path).read_bytes()
    assert {path.name for path in (tmp_path / "again").iterdir()} == {"in", "in-place"}


# --- what the program does ----------------------------------------------------------------------


@pytest.fixture
def calls(monkeypatch):
    """The files and folders that Python synced, and those that it renamed, in their order."""
    seen, fsync, replace = list[str](), os.fsync, os.replace

    def watched_fsync(number):
        fsync(number)
        seen.append(f"sync {os.readlink(f'/proc/self/fd/{number}')}")

    def watched_rename(old, new, **_):
        replace(old, new)
        seen.append(f"name {os.fspath(new)}")

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "replace", watched_rename)
    monkeypatch.setattr(os, "rename", watched_rename)
    return seen


def test_a_new_file_is_synced_then_named_then_its_folder_is_synced(tmp_path, calls):
    files.make_folder(tmp_path / "a" / "b")
    assert set(calls) == {f"sync {tmp_path}", f"sync {tmp_path}/a"}
    calls.clear()
    files.write_text(tmp_path / "a" / "b" / "c", "text")
    folder = tmp_path / "a" / "b"
    assert calls == [f"sync {folder}/.c.tmp", f"name {folder}/c", f"sync {folder}"]


@pytest.mark.parametrize("kind", ["raw", "jpeg"])
def test_records_are_synced_before_they_have_their_names(tmp_path, calls, kind):
    prepare("generated:16", tmp_path / "out", size=8, format=kind)
    for path in (tmp_path / "out").iterdir():
        named = calls.index(f"name {path}")
        assert f"sync {files.unfinished(path)}" in calls[:named]
        assert f"sync {tmp_path}/out" in calls[named:]


def test_a_checkpoint_is_synced_before_it_has_its_name(tmp_path, calls):
    import jax.numpy as jnp

    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(7, {"w": jnp.ones(3)}, {}, {})
    final = tmp_path / "checkpoints" / "00000007"
    named = calls.index(f"name {final}")
    before = {call.replace(".orbax-checkpoint-tmp", "") for call in calls[:named]}
    # This one is written when all else is synced; nothing reads it.
    wanted = {path for path in (final, *final.rglob("*")) if path.name != "commit_success.txt"}
    assert {f"sync {path}" for path in wanted} <= before
    assert {f"sync {path}" for path in (final.parent, tmp_path)} <= set(calls[named:])


def test_a_write_that_fails_names_the_file_and_keeps_the_old_one(tmp_path):
    file = tmp_path / "a.json"
    files.write_text(file, "old")

    def write():
        with files.new_file(file) as out:
            out.write(b"new")
            raise OSError(5, "Input/output error")

    with pytest.raises(OSError, match=r"a\.json") as caught:
        write()
    assert caught.value.filename == str(file)
    assert file.read_text() == "old"


def test_an_error_of_the_system_is_not_taken_for_damage():
    assert system_reason(OSError(24, "Too many open files")) == "Too many open files"
    array_record = "pread() failed: Input/output error; reading a.array_record; at byte 7"
    assert system_reason(RuntimeError(array_record)) == "Input/output error"
    assert system_reason(RuntimeError("Hash mismatch; at record 7")) is None
    assert system_reason(FileNotFoundError(2, "No such file or directory")) is None


def test_a_checkpoint_that_cannot_be_read_now_is_not_put_aside(tmp_path, monkeypatch):
    import jax
    import numpy as np

    from alexnet_jax.runtime import checkpoint
    from alexnet_jax.runtime.errors import UserError

    state = {"w": jax.device_put(np.arange(4.0, dtype=np.float32))}
    shapes = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), state
    )
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, state, {}, {})

    def refuse(*_):
        try:
            raise ValueError("UNAVAILABLE: [source locations='x'] [os_error_code='24'] opening")
        except ValueError as error:
            raise Exception("an array") from error  # as Orbax does

    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, "_read_arrays", refuse)
            with pytest.raises(
                UserError, match=r"checkpoint 2 .* cannot be read: Too many open files"
            ):
                checkpoints.restore(shapes)
        assert checkpoints.restore(shapes).step == 2


def of_tool(*line: str) -> str:
    """The last line that a tool of tests/stress prints. Fails if its exit status is not 0."""
    done = subprocess.run(
        [sys.executable, "-m", *line], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout.splitlines()[-1]


@pytest.mark.slow
@needs_strace
def test_power_cuts_come_to_the_same_end():
    told = of_tool("tests.stress.power_cut", "--points=12")
    assert told == "12 power cuts: 12 of 12 came to the same end"


@pytest.mark.slow
@needs_gcc
def test_failing_calls_end_in_one_line_and_the_same_command_goes_on():
    told = of_tool("tests.stress.failing_calls", "--each=1", "--jobs=prepare jpeg")
    assert told.endswith("ended well")
