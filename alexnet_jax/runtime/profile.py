"""A trace of some steps: what the devices and the host did, and when."""

from pathlib import Path
from typing import Any

import jax

from alexnet_jax.runtime.terminal import say


class Profile:
    """Traces some steps of a run, once."""

    def __init__(self, steps: range, folder: Path, *, done: int, last: int) -> None:
        """Says so if the first of `steps` is not among those that are left.

        Args:
          steps: to trace; may be none.
          folder: the workdir.
          done: steps before this start.
          last: the step that ends the run, unless it ends before.
        """
        self._folder, self._steps, self._begun = folder / "profile", steps, False
        if steps and not done < steps[0] <= last:
            say(f"config.profile: no trace, as step {steps[0]} is not among {done + 1} to {last}")

    def before(self, step: int) -> None:
        """Called before `step`."""
        if self._steps and step == self._steps[0]:
            jax.profiler.start_trace(self._folder, create_perfetto_trace=True)
            self._begun = True

    def after(self, step: int, result: Any) -> None:
        """Called after `step` was begun; `result` is what it computes."""
        if self._begun and step == self._steps[-1]:
            jax.block_until_ready(result)
            self.close()

    def close(self) -> None:
        """Writes the trace, if one was begun."""
        if not self._begun:
            return
        self._begun = False
        jax.profiler.stop_trace()
        say(
            f"a trace from step {self._steps[0]} on is in {self._folder}: open its "
            f"perfetto_trace.json.gz at ui.perfetto.dev, or pip install xprof, then "
            f"tensorboard --logdir={self._folder.parent}"
        )
