"""What a run prints: a bar with the newest numbers, and a line for each epoch.

All of it is read from the lines of metrics, so a resumed run prints the epochs before it, too.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from alexnet_jax.runtime.terminal import duration, is_terminal, progress_bar, say

Line = Mapping[str, float]
"""A line of metrics, as `runtime.metrics` writes it."""

APART = ("compile", "evaluate", "checkpoint", "layers")
"""What takes time of its own in a run, beside training."""


def header(*, top5: bool) -> str:
    """The names of the columns; `top5`: with the top-5 error."""
    error5 = "val top-5 error  " if top5 else ""
    return f"epoch  train loss  train error  val error   {error5} rate   images/s     time"


class Epoch(NamedTuple):
    """What the lines of metrics say of the time since the evaluation before.

    Errors are shares of images: 0.25 for 25%.
    """

    epoch: float  # done at its end
    train_loss: float  # of training images, as they were learnt from
    train_error: float
    val_top1: float
    val_top5: float
    rate: float
    images_per_s: float
    seconds: float  # with evaluation and checkpoints
    best: bool  # whether no evaluation before was as good

    def text(self, *, top5: bool) -> str:
        """A line under `header`."""
        mark = "*" if self.best else " "
        error5 = f"{self.val_top5:15.2%}  " if top5 else ""
        return (
            f"{self.epoch:5.4g}  {self.train_loss:10.4f}  {self.train_error:11.2%}  "
            f"{self.val_top1:8.2%} {mark}  {error5}{self.rate:5.3g}  "
            f"{self.images_per_s:9,.0f}  {duration(self.seconds):>7}"
        )


def epochs(lines: Iterable[Line], batch: int) -> list[Epoch]:
    """An entry for each evaluation in a run's metrics; numbers of training are means between them.

    Args:
      lines: all of the run, in order.
      batch: images in a step.
    """
    found, since, best = list[Epoch](), _Sums(batch), float("inf")
    for line in lines:
        since.add(line)
        if "val/top1_error" in line:
            found.append(since.epoch(line, best))
            since.begin()
            best = min(best, line["val/top1_error"])
    return found


class _Sums:
    """Sums over lines of metrics since an evaluation."""

    def __init__(self, batch: int) -> None:
        self._batch, self._timed, self._scored = batch, 0, 0  # steps up to the last such line
        self.begin()

    def begin(self) -> None:
        """After an evaluation."""
        self._steps = self._images = 0
        self._loss = self._error = self._training = self._apart = 0.0

    def add(self, line: Line) -> None:
        """A line. Not all have a loss: those about layers alone do not."""
        step = int(line["step"])
        self._apart += sum(line.get(f"time/{what}_s", 0.0) for what in APART)
        if "time/images_per_s" in line:
            images, self._timed = (step - self._timed) * self._batch, step
            self._images += images
            self._training += images / line["time/images_per_s"]
        if "train/loss" in line:
            steps, self._scored = step - self._scored, step
            self._steps += steps
            self._loss += steps * line["train/loss"]
            self._error += steps * line["train/top1_error"]

    def epoch(self, line: Line, best: float) -> Epoch:
        """The epoch that ends with `line`; `best` is the lowest validation error before."""
        return Epoch(
            line["epoch"],
            self._loss / max(1, self._steps),
            self._error / max(1, self._steps),
            line["val/top1_error"],
            line["val/top5_error"],
            line.get("opt/lr", 0.0),
            self._images / self._training if self._training else 0.0,
            self._training + self._apart,
            line["val/top1_error"] < best,
        )


class Progress:
    """Prints how a run goes on. Without a terminal there is no bar, but each line of metrics."""

    def __init__(
        self, lines: Iterable[Line], *, batch: int, first: int, last: int, top5: bool
    ) -> None:
        """Prints the epochs so far.

        Args:
          lines: of metrics that the run has written before.
          batch: images in a step.
          first: steps done before.
          last: the step that ends the run, unless it ends before.
          top5: whether the top-5 error is shown.
        """
        self._lines, self._batch, self._last, self._top5 = list(lines), batch, last, top5
        say(header(top5=top5))
        for one in epochs(self._lines, batch):
            say(one.text(top5=top5))
        self._bar = progress_bar(  # its numbers say how many images/s
            last, "training", "steps", initial=first, only_on_terminal=True, rate=False
        )

    def step(self) -> None:
        """A step was done."""
        self._bar.update()

    def add(self, line: Line) -> None:
        """A line of metrics was written."""
        self._lines.append(line)
        if "train/loss" not in line:
            return
        parts = [f"loss {line['train/loss']:.4f}", f"error {line['train/top1_error']:.2%}"]
        parts.append(f"rate {line['opt/lr']:.3g}")
        if "time/images_per_s" in line:
            parts.append(f"{line['time/images_per_s']:,.0f} images/s")
        self._bar.set_postfix_str(", ".join(parts))
        if "val/top1_error" in line:
            say(epochs(self._lines, self._batch)[-1].text(top5=self._top5))
        elif not is_terminal():
            left = f", {duration(line['time/left_s'])} left" if "time/left_s" in line else ""
            say(f"step {line['step']:.0f} of {self._last}: {', '.join(parts)}{left}")

    def close(self) -> None:
        """The bar stays as it is."""
        self._bar.close()

    def best(self) -> str:
        """For example 'best: epoch 9, top-1 error 12.30%'; '' before the first evaluation."""
        found = [one for one in epochs(self._lines, self._batch) if one.best]
        if not found:
            return ""
        text = f"best: epoch {found[-1].epoch:.4g}, top-1 error {found[-1].val_top1:.2%}"
        for name in ("nine views", "ten views"):
            key = f"val_{name.replace(' ', '_')}"
            if f"{key}/top1_error" in self._lines[-1]:
                top1, top5 = (self._lines[-1][f"{key}/top{k}_error"] for k in (1, 5))
                text += f"; at the end with {name} {top1:.2%}"
                text += f" (top-5 error {top5:.2%})" if self._top5 else ""
        return text


def next_commands(folder: Path) -> str:
    """What to do with a run that has ended."""
    module, png = "python -m alexnet_jax", f"--workdirs={folder} --out=kernels.png"
    commands = {
        "label a photo": f"{module}.predict --model={folder} photo.jpg",
        "see its kernels": f"{module}.figures kernels {png}",
        "see its curves": f"tensorboard --logdir={folder}  # after: pip install tensorboard",
        "share it": f"{module}.weights save --workdir={folder} --out={folder.name}_shared",
    }
    return "\n".join(["next", *(f"  {what:16} {command}" for what, command in commands.items())])
