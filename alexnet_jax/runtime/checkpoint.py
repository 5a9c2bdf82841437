"""Checkpoints: the state of a run on disk. The only module that uses Orbax."""

import errno
import json
import logging
import os
import re
import shutil
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, Self

import jax
import orbax.checkpoint as ocp

from alexnet_jax.runtime import distributed
from alexnet_jax.runtime.checksum import array_checksums, json_checksum
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.runtime.files import sync
from alexnet_jax.runtime.terminal import say

ERROR = "val/top1_error"  # the best checkpoint has the lowest
CHANGED = "its contents are not what was saved"

# Orbax logs every stage of a save by absl. Its errors it raises as well, so nothing is lost.
_ORBAX = os.path.dirname(ocp.__file__)
logging.getLogger("absl").addFilter(lambda record: not record.pathname.startswith(_ORBAX))


# When an array cannot be read or written, that error is raised. The errors of the others would each
# be a traceback on the terminal; TensorStore's too, which comes when its event loop is closed.
_report_unraisable = sys.unraisablehook


def _report_other(problem: "sys.UnraisableHookArgs") -> None:
    files = [frame.filename for frame in traceback.extract_tb(problem.exc_traceback)]
    of_orbax = any(file.startswith(_ORBAX) for file in files)
    if not of_orbax and str(problem.exc_value) != "Event loop is closed":
        _report_unraisable(problem)


sys.unraisablehook = _report_other


class Restored(NamedTuple):
    """The contents of a checkpoint."""

    step: int  # training steps done
    state: Any  # arrays, on the devices that `Checkpoints.restore` was given
    meta: dict[str, Any]


class Checkpoints:
    """The checkpoints of a workdir. The newest two and the best are kept.

    Saving is asynchronous. An interrupted save leaves nothing that counts as a checkpoint. A
    damaged checkpoint is renamed to ``damaged-STEP``, and the one before it is used.

    Several processes must make the same calls; they share the folder.
    """

    def __init__(self, folder: Path, *, read_only: bool = False) -> None:
        """Opens the folder; the first save makes it. With `read_only` nothing in it changes."""
        self.folder, self._read_only = folder.absolute(), read_only
        policies = ocp.checkpoint_managers
        best = policies.BestN(get_metric_fn=_score, n=1, keep_checkpoints_without_metrics=False)
        options = ocp.CheckpointManagerOptions(
            save_decision_policy=policies.FixedIntervalPolicy(1),  # train.py decides
            preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(2), best]),
            best_fn=_score,
            step_format_fixed_length=8,
            cleanup_tmp_directories=not read_only,
            read_only=read_only,
            temporary_path_class=_Unfinished,
        )
        # Orbax cannot open a folder with damaged scores in it.
        bad = distributed.on_main_process(lambda: _with_bad_scores(self.folder, read_only))
        _put_aside(self.folder, bad)
        # Compression saves 8% of the bytes for several times the work (docs/performance.md).
        handler = ocp.PyTreeCheckpointHandler(use_compression=False)
        handlers = {"state": handler, "meta": ocp.JsonCheckpointHandler()}
        self._manager = _Manager(self.folder, options=options, item_handlers=handlers)

    def steps(self) -> list[int]:
        """The steps of all checkpoints, rising."""
        return sorted(self._manager.all_steps())

    def best_step(self) -> int | None:
        """The step with the lowest validation top-1 error."""
        return self._manager.best_step()

    def scores(self, step: int) -> dict[str, float]:
        """The scores that the checkpoint of `step` was saved with; none if it was not scored."""
        return dict(self._manager.metrics(step) or {})

    def save(
        self, step: int, state: Any, meta: dict[str, Any], scores: Mapping[str, float]
    ) -> None:
        """Begins to save. When it returns, `state` has been copied and may change.

        A checkpoint of the same step is replaced.

        Args:
          step: training steps done. The batch of the next step has this number.
          state: a tree of arrays.
          meta: what else belongs to the run; values of JSON.
          scores: metrics of the step. With 'val/top1_error' in them, it can become the best.

        Raises:
          UserError: this checkpoint, or the one before, cannot be written.
        """
        kept = dict(scores) if ERROR in scores else {}
        sealed = {"meta": meta, "data": {"next_step": step}, "state": array_checksums(state)}
        sealed |= {"scores": json_checksum(kept)}
        items = ocp.args.Composite(
            state=ocp.args.PyTreeSave(state),
            meta=ocp.args.JsonSave(sealed | {"seal": json_checksum(sealed)}),
        )
        with self._write_errors():
            self._check_space(state)
            if step in self.steps():
                self._manager.delete(step)
            self._manager.save(step, args=items, metrics=kept or None)

    def restore(self, state: Any, step: int | None = None) -> Restored | None:
        """The newest intact checkpoint, or that of `step`; None if there is none.

        Args:
          state: a tree of ShapeDtypeStructs with shardings: where to put the arrays. The devices
            may differ from those that saved them.
          step: which; None for the newest.

        Raises:
          UserError: there is no checkpoint of `step`; or all are damaged.
        """
        steps = self.steps()
        if step is not None and step not in steps:
            have = ", ".join(map(str, steps)) or "none"
            raise UserError(f"{self.folder} has no checkpoint of step {step}; it has {have}")
        damaged = list[int]()
        for candidate in reversed(steps if step is None else [step]):
            restored = self._read(candidate, state)
            if restored is not None:
                if damaged and not self._read_only:
                    _put_aside(self.folder, damaged)
                    self._manager.reload()
                return restored
            damaged.append(candidate)
        if damaged:
            raise _all_damaged(self.folder, damaged)
        return None

    def writing(self) -> bool:
        """Whether a save is still being written."""
        return self._manager.is_saving_in_progress()

    def wait(self) -> None:
        """Returns when the newest save is complete. Raises UserError if it cannot be written."""
        with self._write_errors():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for the newest save, and closes. Raises UserError as `wait` does."""
        with self._write_errors():
            self._manager.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
            return
        # After any other error another process may have died, and Orbax would wait for it.
        known = issubclass(kind, UserError | OSError | KeyboardInterrupt)
        if known or distributed.process_count() == 1:
            with suppress(UserError):  # the first error says more
                self.close()

    def _check_space(self, state: Any) -> None:
        """Raises OSError if the disk is too full.

        Otherwise the run would hear of it at the next save, perhaps an epoch later.
        """
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) + 2**20
        if shutil.disk_usage(self.folder).free < needed:
            raise OSError(
                errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}, {needed / 1e6:,.0f} MB needed"
            )

    @contextmanager
    def _write_errors(self) -> Iterator[None]:
        """Makes one line of what Orbax raises when it cannot write."""
        try:
            yield
        except Exception as error:  # it raises whatever its file formats raise
            raise UserError(
                f"a checkpoint cannot be written in {self.folder}: {_reason(error)}; the earlier "
                f"ones are kept; fix this, and the same command resumes from the newest"
            ) from error

    def _read(self, step: int, state: Any) -> Restored | None:
        """The checkpoint of `step`; None, in all processes, if any process finds it damaged."""
        folder, problem = self.folder / f"{step:08d}", ""
        try:
            sealed = json.loads((folder / "meta" / "metadata").read_text())
            if sealed.pop("seal") != json_checksum(sealed):
                raise ValueError(CHANGED)
            found = _read_arrays(folder / "state", state)
        except MemoryError:
            raise
        except Exception as error:  # Orbax raises whatever its file formats raise
            problem = _reason(error)
            if _errno(error) not in (None, errno.ENOENT, errno.EIO):  # the file is not at fault
                raise UserError(
                    f"checkpoint {step} in {self.folder} cannot be read: {problem}; fix this, and "
                    f"run the same command again"
                ) from error
        problems = [one for one in distributed.gather_text(problem) if one]
        if not problems and array_checksums(found) != sealed["state"]:
            problems = [CHANGED]
        if problems:
            say(f"checkpoint {step} in {self.folder} is damaged: {problems[0]}")
            return None
        return Restored(step, found, sealed["meta"])


class _Manager(ocp.CheckpointManager):
    """Orbax' manager, which does not ask JAX whether a signal came: `Stop` does.

    It would ask with the number of the step. JAX answers once, for the newest number that it was
    given. A signal that Orbax was told of would never reach `Stop`, which counts otherwise.
    """

    def reached_preemption(self, step: int) -> bool:
        return False


class _Unfinished(ocp.path.atomicity.AtomicRenameTemporaryPath):
    """The folder of a checkpoint until all is written. Orbax renames it then, but syncs nothing.

    What is safe when `finalize` returns has the earlier checkpoints deleted.
    """

    async def finalize(self) -> None:
        _sync_all(Path(self.get()))
        await super().finalize()
        final = Path(self.get_final())
        for folder in (final, final.parent, final.parent.parent):
            sync(folder)


def _sync_all(folder: Path) -> None:
    """Syncs a folder and all that is in it."""
    for path in (*folder.rglob("*"), folder):
        sync(path)


def _read_arrays(folder: Path, state: Any) -> Any:
    """This process's parts of the arrays in `folder`, placed as `state` says.

    Does not wait for other processes. Orbax by itself ends with a barrier, and would wait there for
    minutes for a process that has found its part damaged.
    """
    here = distributed.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=here, active_processes={here}, barrier_sync_key_prefix=f"process{here}"
    )
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone)
    placed = ocp.checkpoint_utils.construct_restore_args(state)
    with ocp.Checkpointer(handler, multiprocessing_options=alone) as reader:
        return reader.restore(folder, args=ocp.args.PyTreeRestore(state, restore_args=placed))


# --- damage -------------------------------------------------------------------------------------


def _with_bad_scores(folder: Path, read_only: bool) -> list[int]:
    """The steps of checkpoints whose scores are not what was saved, if there are others.

    Raises:
      UserError: there are no others, or the folder must not change.
    """
    steps, bad = [path for path in folder.glob("*") if path.name.isdecimal()], list[int]()
    for step in steps:
        scores = step / "metrics" / "metrics"
        try:
            found = json.loads(scores.read_text() if scores.exists() else "{}")
            if _saved_scores(step) not in (None, json_checksum(found)):
                raise ValueError(CHANGED)
        except ValueError:
            say(f"the scores of checkpoint {int(step.name)}, {scores}, are damaged")
            bad.append(int(step.name))
    if bad and (read_only or len(bad) == len(steps)):
        raise _all_damaged(folder, bad)
    return bad


def _saved_scores(checkpoint: Path) -> str | None:
    """The checksum of a checkpoint's scores; None if it has none, or if `restore` will refuse it.

    Version 0.1 wrote none.
    """
    try:
        sealed = json.loads((checkpoint / "meta" / "metadata").read_text())
        intact = sealed.pop("seal") == json_checksum(sealed)
        return sealed.get("scores") if intact else None
    except (OSError, ValueError, LookupError, AttributeError, TypeError):
        return None


def _all_damaged(folder: Path, steps: list[int]) -> UserError:
    return UserError(
        f"the checkpoints of step {', '.join(map(str, steps))} in {folder} are damaged; "
        f"restore one from a copy, or train in another --workdir"
    )


def _put_aside(folder: Path, steps: list[int]) -> None:
    """Renames damaged checkpoints: nothing is deleted, and their steps can be saved again."""

    def rename() -> None:
        for step in steps:
            aside, copies = folder.with_name(f"damaged-{step}"), 0
            while aside.exists():
                copies += 1
                aside = folder.with_name(f"damaged-{step}.{copies}")
            os.replace(folder / f"{step:08d}", aside)
            say(f"checkpoint {step} is put aside as {aside}")

    distributed.on_main_process(rename)


def _errno(error: Exception) -> int | None:
    """The operating system's number of an error, if it is one."""
    if code := re.search(r"os_error_code='(\d+)'", str(error)):
        return int(code[1])
    if isinstance(error, OSError):
        return error.errno
    cause = error.__cause__ or error.__context__  # Orbax says only which array it was
    return _errno(cause) if isinstance(cause, Exception) else None


def _reason(error: Exception) -> str:
    """The operating system's words for an error, if it is one of its; else the first line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    number = _errno(error)
    if number is not None:
        return os.strerror(number)
    return (str(error).strip() or repr(error)).splitlines()[0][:200]


def _score(metrics: Mapping[str, float]) -> float:
    return -metrics[ERROR]
