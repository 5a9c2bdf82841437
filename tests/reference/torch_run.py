"""A network trained by PyTorch, to compare with ours: same records, augmentation and config.

    python -m tests.reference.torch_run --config=configs/cifar10.py:18 --workdir=runs/torch [...]

Images, their order, crops, mirror images, lighting, initial weights and dropout masks are ours, bit
for bit; the network, its gradients and the update are PyTorch's, on the CPU or one GPU. The workdir
has the same `config.json` and `metrics.jsonl` as ours, so `figures curves` and `report` read both.
The same command resumes after the last epoch that was scored; `torch.pt` has weights and velocity.
"""

import io
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F
from absl import flags

from alexnet_jax import config, optim
from alexnet_jax.data import augment, cores
from alexnet_jax.data.pipeline import eval_batches, train_batches
from alexnet_jax.model.ops import DropoutKey, dropout
from alexnet_jax.runtime import cli, host, workdir
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.runtime.metrics import Clock, MetricsLog
from alexnet_jax.runtime.terminal import say
from alexnet_jax.training.plan import Plan
from alexnet_jax.training.progress import Progress
from alexnet_jax.training.scores import Scores, Views, mean_scores
from alexnet_jax.training.setup import Setup, make_setup
from alexnet_jax.training.step import training_input
from tests.reference.torch_alexnet import TorchAlexNet
from tests.reference.torch_cifar import TorchCifar

SAVED = "torch.pt"
CROSS = {"conv3", "fc6", "fc7"}


class TorchRun:
    """PyTorch's network and velocity, trained on our batches."""

    def __init__(self, setup: Setup) -> None:
        self.c, self.setup = setup.config, setup
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        params = jax.device_get(setup.network.init(self.c.seed))
        build = TorchAlexNet if isinstance(self.c.model, config.AlexNet) else TorchCifar
        self.net = build(self.c.model, params).to(self.device)
        self.velocity = {name: torch.zeros_like(p) for name, p in self.net.named_parameters()}
        self.prepare = jax.jit(lambda *given: training_input(self.c.data, *given))
        self.views = jax.jit(lambda images, mean, n: augment.view(images, mean, self.c.data, n))
        self.draw = jax.jit(self.drawn)

    def step(self, number: int, batch: dict[str, np.ndarray], setting: optim.Hyperparams) -> tuple:
        """Each image's loss, float [b], and its label's rank, int [b]; after `number` steps."""
        x = self.load(self.prepare(self.setup.normalization, batch, float(setting.lighting)))
        labels = torch.tensor(batch["label"], dtype=torch.long, device=self.device)
        self.net.zero_grad()
        logits = self.net(x, *self.masks(number, batch["row"]))
        losses = F.cross_entropy(logits, labels, reduction="none")
        (losses.sum() / self.c.batch).backward()
        self.update(setting)
        return losses.detach().cpu().numpy(), ranks(logits.detach(), labels)

    def masks(self, step: int, rows: np.ndarray) -> tuple:
        """The argument after the images: none, or our dropout masks for fc6 and fc7."""
        if not isinstance(self.c.model, config.AlexNet):
            return ()
        drawn = self.draw(step, jnp.asarray(rows))
        return (tuple(torch.tensor(np.asarray(one), device=self.device) for one in drawn),)

    def drawn(self, step: jax.Array, rows: jax.Array) -> list[jax.Array]:
        """What dropout leaves of ones, tower by tower."""
        c = self.c.model
        key = DropoutKey(jax.random.fold_in(jax.random.key(self.c.seed), step), rows)

        def of_layer(layer: int) -> jax.Array:
            neurons = self.setup.network.shapes[f"fc{layer}"]["bias"].size // c.towers
            ones = jnp.ones((len(rows), neurons))
            return jnp.concatenate(
                [dropout(ones, c.dropout, key, layer, tower) for tower in range(c.towers)], axis=1
            )

        return [of_layer(6), of_layer(7)]

    @torch.no_grad()
    def update(self, setting: optim.Hyperparams) -> None:
        """Paper §5, by hand: torch.optim.SGD has the rate outside of the velocity."""
        o, rates = self.c.optim, setting.rates(self.c.optim, self.setup.network.shapes)
        for name, p in self.net.named_parameters():
            kind, layer = name.split(".")
            kernel = kind == "weights"
            rate = rates[layer]["kernel" if kernel else "bias"]
            decay = o.layer_decay.get(layer, o.weight_decay) if kernel or o.decay_biases else 0.0
            v = self.velocity[name]
            if rate:  # as in the 2012 code, a rate of 0 leaves the velocity as it is
                v.mul_(o.momentum).sub_(rate * (p.grad + decay * p))
                p.add_(v)

    def score(self, views: Views) -> Scores:
        """The validation split."""
        split, losses, found = self.setup.validation, [], []
        batch = self.c.evaluate.batch
        batches = eval_batches(split, batch=batch, rows=[(0, batch)], threads=self.c.data.threads)
        numbers = augment.VIEWS[views]
        with closing(batches):
            for number, one in enumerate(batches):
                count = min(batch, len(split) - number * batch)  # the last one is filled up
                labels = torch.tensor(one["label"], dtype=torch.long, device=self.device)[:count]
                probs = sum(self.probs(one["image"], n) for n in numbers)[:count] / len(numbers)
                losses.append(F.nll_loss(probs.log(), labels, reduction="none").cpu().numpy())
                found.append(ranks(probs, labels))
        return mean_scores(np.concatenate(losses), np.concatenate(found))

    @torch.no_grad()
    def probs(self, images: np.ndarray, view: int) -> torch.Tensor:
        """Probabilities [b, classes] by one view."""
        x = self.load(self.views(images, self.setup.normalization["mean"], view))
        return self.net(x).softmax(1)

    def load(self, images: jax.Array) -> torch.Tensor:
        """Images [b, h, w, 3] as PyTorch's [b, 3, h, w]."""
        array = torch.tensor(np.asarray(images), device=self.device)
        return array.permute(0, 3, 1, 2).contiguous()


def ranks(scores: torch.Tensor, labels: torch.Tensor) -> np.ndarray:
    """How many classes have a higher score than the right one: int [b]."""
    own = scores.gather(1, labels[:, None])
    return (scores > own).sum(1).cpu().numpy()


def run(c: config.Config, folder: Path) -> None:
    """Trains until the config's epochs are over, or its policy ends the run.

    Raises:
      UserError: records or workdir do not fit, or PyTorch's network is another one.
    """
    m = c.model
    if isinstance(m, config.AlexNet) and (m.without or not CROSS.issubset(m.cross)):
        raise UserError("PyTorch's network has all layers, and its towers meet at conv3, fc6, fc7")
    torch.set_num_threads(cores())
    setup = make_setup(c)
    with workdir.hold(folder, setup.config):  # with the source that its records name
        _train(setup, folder)


def _train(setup: Setup, folder: Path) -> None:
    c, theirs, saved = setup.config, TorchRun(setup), _load(folder)
    if saved:
        theirs.net.load_state_dict(saved["net"])
        theirs.velocity = saved["velocity"]
    policy = optim.make_policy(c.policy, saved.get("policy", {}))
    plan, first = Plan(c, setup.order), saved.get("step", 0)
    kind = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    machine = host.describe(jax.devices()[:1]) | {"kind": kind, "torch": torch.__version__}
    workdir.record_start(folder, first, setup.records.manifest.hash, machine)
    outcomes: list[tuple] = []
    last = first if policy.finished else plan.last
    with closing(MetricsLog(folder, first)) as log:
        progress = Progress(log.kept, batch=c.batch, first=first, last=last, top5=c.has_top5)
        clock = Clock(c.batch, first)
        for step, batch in enumerate(_batches(setup, first, last), first + 1):
            setting = policy.hyperparams(plan.epochs(step - 1))
            outcomes.append(theirs.step(step - 1, batch, setting))
            progress.step()
            if not (plan.evaluates(step) or step % c.log.every == 0):
                continue
            values = _means(outcomes).named("train") | {"opt/lr": setting.rate}
            outcomes.clear()
            if plan.evaluates(step):
                with clock.apart("evaluate"):
                    one = theirs.score(1)
                    values |= one.named("val")
                    if plan.ends_epoch(step):
                        policy.observe(one.wrong, one.images)
                    if step == last or policy.finished:
                        values |= _more_views(theirs)
            values |= clock.read(step, steps_left=last - step, evaluations_left=0)
            log.write(step, plan.epochs(step), values)
            progress.add({"step": step, "epoch": plan.epochs(step), **values})
            if plan.evaluates(step):
                _save(folder, step, theirs, policy)
            if policy.finished:
                break
        say(progress.best())
        progress.close()


def _more_views(theirs: TorchRun) -> dict[str, float]:
    c, values = theirs.c.evaluate, dict[str, float]()
    if c.nine_views_at_end:
        values |= theirs.score(9).named("val_nine_views")
    if c.ten_views_at_end:
        values |= theirs.score(10).named("val_ten_views")
    return values


def _means(outcomes: list[tuple]) -> Scores:
    return mean_scores(*(np.concatenate(part) for part in zip(*outcomes, strict=True)))


def _save(folder: Path, step: int, theirs: TorchRun, policy: optim.Policy) -> None:
    memory = io.BytesIO()
    state = {"net": theirs.net.state_dict(), "velocity": theirs.velocity}
    torch.save(state | {"step": step, "policy": policy.state()}, memory)
    workdir.write(folder / SAVED, memory.getvalue())


def _load(folder: Path) -> dict[str, Any]:
    file, device = folder / SAVED, "cuda" if torch.cuda.is_available() else "cpu"
    return torch.load(file, map_location=device) if file.exists() else {}


def _batches(setup: Setup, first: int, last: int) -> Iterator[dict[str, np.ndarray]]:
    """The batches of the steps after `first`."""
    c = setup.config
    rows = [(0, c.batch)]
    read = train_batches(
        setup.train,
        c.data,
        batch=c.batch,
        seed=c.seed,
        rows=rows,
        first_step=first,
        order=setup.order,
    )
    with closing(read) as all_:
        for _ in range(last - first):
            yield next(all_)


OPTIONS = flags.FlagValues()
CONFIG = cli.define_config(OPTIONS)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.", OPTIONS)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command; `arguments` are those of the process if None."""
    cli.run(_run, OPTIONS, __doc__, arguments)


def _run(arguments: Sequence[str]) -> None:
    cli.no_more(arguments)
    folder = Path(cli.required(WORKDIR, "runs/torch"))
    c = replace(cli.given_config(CONFIG), devices=1)
    name = f"{c.experiment.name}_pytorch"
    c = replace(c, experiment=replace(c.experiment, name=name, against=c.experiment.name))
    host.configure_jax(1)
    run(c, folder)


if __name__ == "__main__":
    main()
