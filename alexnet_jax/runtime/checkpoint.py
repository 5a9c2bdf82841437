"""Checkpoints: the state of a run on disk, by Orbax; the one module that knows it."""

import errno
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Self

import jax
import orbax.checkpoint as ocp

from alexnet_jax.runtime import distributed
from alexnet_jax.runtime.checksum import array_checksums, seal
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.runtime.terminal import say

ERROR = "val/top1_error"  # by which the best checkpoint is chosen
CHANGED = "its contents are not what was saved"


class Restored(NamedTuple):
    """What a checkpoint held."""

    step: int
    state: Any  # arrays as `Checkpoints.restore` was asked to place them
    meta: dict[str, Any]


class Checkpoints:
    """The checkpoints of a workdir: the newest two and the best are kept; saving is asynchronous.

    An interrupted save leaves nothing that counts as a checkpoint. When one that was damaged on
    disk gives way to the one before, it is put aside as ``damaged-STEP``.

    Several processes must call everything here alike; the folder is one that they share.
    """

    def __init__(self, folder: Path, *, read_only: bool = False) -> None:
        """Opens the folder, which the first save makes. Reading only changes nothing in it."""
        # Orbax tells every stage of a save; what goes wrong it raises, too.
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        self.folder, self._read_only = folder.absolute(), read_only
        policies = ocp.checkpoint_managers
        best = policies.BestN(
            get_metric_fn=_score, n=1, reverse=False, keep_checkpoints_without_metrics=False
        )
        options = ocp.CheckpointManagerOptions(
            save_decision_policy=policies.FixedIntervalPolicy(1),  # train decides
            preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(2), best]),
            best_fn=_score,
            best_mode="max",
            step_format_fixed_length=8,
            cleanup_tmp_directories=not read_only,
            read_only=read_only,
        )
        # Orbax would not open the folder.
        bad = distributed.on_main_process(lambda: _with_bad_scores(self.folder, read_only))
        _put_aside(self.folder, bad)
        self._manager = _Manager(self.folder, options=options, item_handlers=_handlers())
        self._reader = _Reader(self.folder)

    def steps(self) -> list[int]:
        """The steps of all checkpoints, rising."""
        return sorted(self._manager.all_steps())

    def best_step(self) -> int | None:
        """The step with the lowest validation top-1 error."""
        return self._manager.best_step()

    def save(
        self, step: int, state: Any, data: Any, meta: dict[str, Any], scores: Mapping[str, float]
    ) -> None:
        """Begins to save; returns when `state` has been copied and may change.

        A checkpoint of the same step is replaced.

        Args:
          step: training steps done.
          state: a tree of arrays.
          data: the iterator over training batches; its position is saved. It is the same in all
            processes, and so fits another number of them.
          meta: what else belongs to the run, as JSON.
          scores: 'val/top1_error' if it was measured at this step; else empty.

        Raises:
          UserError: this checkpoint, or the one before, cannot be written.
        """
        sealed = {"meta": meta, "data": data.get_state(), "state": array_checksums(state)}
        items = ocp.args.Composite(
            state=ocp.args.PyTreeSave(state),
            meta=ocp.args.JsonSave(sealed | {"seal": seal(sealed)}),
        )
        with self._writes():
            self._check_space(state)
            if step in self.steps():
                self._manager.delete(step)
            self._manager.save(step, args=items, metrics=dict(scores) if ERROR in scores else None)

    def restore(
        self,
        state: Any,
        data: Any,
        check: Callable[[dict[str, Any]], None],
        step: int | None = None,
    ) -> Restored | None:
        """The newest intact checkpoint, or the one of `step`; None when there is none.

        Args:
          state: a tree of ShapeDtypeStructs with shardings: how to place the arrays. They may be
            other devices than those that saved.
          data: the iterator to set to the saved position, or None.
          check: gets the meta; raises UserError if the checkpoint does not fit the run.
          step: which; None for the newest.

        Raises:
          UserError: there is no checkpoint of `step`; or all are damaged; or `check` raised it.
        """
        steps = self.steps()
        if step is not None and step not in steps:
            have = ", ".join(map(str, steps)) or "none"
            raise UserError(f"{self.folder} has no checkpoint of step {step}; it has {have}")
        wanted, damaged = steps if step is None else [step], list[int]()
        for candidate in reversed(wanted):
            restored = self._read(candidate, state, data, check)
            if restored is not None:
                if damaged and not self._read_only:
                    _put_aside(self.folder, damaged)
                    self._manager.reload()
                    self._reader.reload()
                return restored
            damaged.append(candidate)
        if damaged:
            raise _all_damaged(self.folder, damaged)
        return None

    def writing(self) -> bool:
        """Whether a save is under way."""
        return self._manager.is_saving_in_progress()

    def wait(self) -> None:
        """Returns when the save under way, if any, is complete.

        Raises:
          UserError: it cannot be written.
        """
        with self._writes():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for a save under way, and closes. Raises UserError as `wait` does."""
        self._reader.close()
        with self._writes():
            self._manager.close()

    def _check_space(self, state: Any) -> None:
        """Raises OSError where the disk is too full: better than to notice it when half is written.

        What is in the way of another process is not known here, so writing may still fail.
        """
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) + 2**20
        if shutil.disk_usage(self.folder).free < needed:
            raise OSError(
                errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}, {needed / 1e6:,.0f} MB needed"
            )

    @contextmanager
    def _writes(self) -> Iterator[None]:
        """Turns what Orbax raises when it cannot write into one line."""
        try:
            yield
        except Exception as error:  # it raises whatever its file formats raise
            raise UserError(
                f"a checkpoint cannot be written in {self.folder}: {_reason(error)}; those before "
                f"it are kept; fix this, and the same command goes on from the newest"
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self.close()
        except UserError:
            if kind is None:  # else that exception tells more
                raise

    def _read(
        self, step: int, state: Any, data: Any, check: Callable[[dict[str, Any]], None]
    ) -> Restored | None:
        """The checkpoint of `step`; None, in all processes, if any has found it damaged."""
        problem, values, found = "", dict[str, Any](), None
        try:
            values, found = self._reader.read(step, state, check)
        except (UserError, MemoryError):
            raise
        except Exception as error:  # Orbax raises whatever its file formats raise
            problem = _reason(error)
        problems = [one for one in distributed.gather_text(problem) if one]
        if not problems and array_checksums(found) != values["state"]:
            problems = [CHANGED]
        if problems:
            say(f"checkpoint {step} in {self.folder} is damaged: {problems[0]}")
            return None
        if data is not None:
            data.set_state(values["data"])
        return Restored(step, found, values["meta"])


class _Manager(ocp.CheckpointManager):
    """Orbax' manager, but that it leaves it to `Stop` to ask JAX whether a signal came.

    It would ask with the number of the step. JAX goes by the newest count that it was given, and
    answers once: if a signal came meanwhile, `Stop`, whose count is another, would never be told.
    """

    def reached_preemption(self, step: int) -> bool:
        del step
        return False


# --- reading ------------------------------------------------------------------------------------


class _Reader:
    """Reads checkpoints, or this process' parts of them, without waiting for other processes.

    Orbax' own way ends with all processes waiting for each other, and would wait long for one that
    has found its part damaged.
    """

    def __init__(self, folder: Path) -> None:
        here = distributed.process_index()
        alone = ocp.options.MultiprocessingOptions(
            primary_host=here, active_processes={here}, barrier_sync_key_prefix=f"process{here}"
        )
        options = ocp.CheckpointManagerOptions(
            step_format_fixed_length=8, read_only=True, multiprocessing_options=alone
        )
        handlers = _handlers(multiprocessing_options=alone)
        self._manager = ocp.CheckpointManager(folder, options=options, item_handlers=handlers)
        self._folder = folder
        self.reload, self.close = self._manager.reload, self._manager.close

    def read(
        self, step: int, state: Any, check: Callable[[dict[str, Any]], None]
    ) -> tuple[dict[str, Any], Any]:
        """What was sealed, and the arrays as `state` places them; raises what Orbax raises."""
        sealed = self._restore(step, meta=ocp.args.JsonRestore()).meta
        if "seal" not in sealed:
            raise UserError(f"checkpoint {step} in {self._folder} is of another version")
        if sealed.pop("seal") != seal(sealed):
            raise ValueError(CHANGED)
        check(sealed["meta"])
        placed = ocp.checkpoint_utils.construct_restore_args(state)
        arrays = ocp.args.PyTreeRestore(state, restore_args=placed)
        return sealed, self._restore(step, state=arrays).state

    def _restore(self, step: int, **items: Any) -> Any:
        return self._manager.restore(step, args=ocp.args.Composite(**items))


def _handlers(**options: Any) -> dict[str, Any]:
    # Compression saves 8% of the bytes for several times the work (docs/performance.md).
    return {
        "state": ocp.PyTreeCheckpointHandler(use_compression=False, **options),
        "meta": ocp.JsonCheckpointHandler(**options),
    }


# --- what is damaged ----------------------------------------------------------------------------


def _with_bad_scores(folder: Path, read_only: bool) -> list[int]:
    """The steps of checkpoints whose scores cannot be read, if there are others to go on with.

    Raises:
      UserError: there are none, or the folder must not be changed.
    """
    steps, bad = [path for path in folder.glob("*") if path.name.isdecimal()], []
    for step in steps:
        scores = step / "metrics" / "metrics"
        try:
            json.loads(scores.read_text() if scores.exists() else "{}")
        except ValueError:
            say(f"the scores of checkpoint {int(step.name)}, {scores}, are damaged")
            bad.append(int(step.name))
    if bad and (read_only or len(bad) == len(steps)):
        raise _all_damaged(folder, bad)
    return bad


def _all_damaged(folder: Path, steps: list[int]) -> UserError:
    return UserError(
        f"the checkpoints of step {', '.join(map(str, steps))} in {folder} are damaged; "
        f"restore one from a copy, or train in another --workdir"
    )


def _put_aside(folder: Path, steps: list[int]) -> None:
    """Renames damaged checkpoints: their steps can be saved again, and nothing is lost."""

    def rename() -> None:
        for step in steps:
            aside, tried = folder.with_name(f"damaged-{step}"), 0
            while aside.exists():
                tried += 1
                aside = folder.with_name(f"damaged-{step}.{tried}")
            os.replace(folder / f"{step:08d}", aside)
            say(f"checkpoint {step} is put aside as {aside}")

    distributed.on_main_process(rename)


def _reason(error: Exception) -> str:
    """The system's own words for a failed write, if it was one; else the error's first line."""
    code = re.search(r"os_error_code='(\d+)'", str(error))
    if code:
        return os.strerror(int(code[1]))
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error).strip() or repr(error)).splitlines()[0][:200]


def _score(metrics: Mapping[str, float]) -> float:
    return -metrics[ERROR]
