"""AlexNet trained by PyTorch, to compare with ours: same records, augmentation and config.

    python -m tests.reference.torch_run --config=configs/alexnet_2012.py --workdir=runs/torch [...]

Images, their order, crops, mirror images and lighting are ours, bit for bit; the network,
gradients, dropout and update are PyTorch's, on the CPU or one GPU. The workdir has the same
`config.json` and `metrics.jsonl` as ours, so `figures curves` and `report` read both; it has no
checkpoints and cannot be resumed. The initial weights are ours, of the config's seed.
"""

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import torch
import torch.nn.functional as F
from absl import flags

from alexnet_jax import config, optim
from alexnet_jax.data import augment, cores
from alexnet_jax.data.pipeline import eval_batches, train_batches
from alexnet_jax.runtime import cli, host, workdir
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.runtime.metrics import MetricsLog
from alexnet_jax.runtime.terminal import progress_bar, say
from alexnet_jax.training.plan import Plan
from alexnet_jax.training.scores import Scores, Views, mean_scores
from alexnet_jax.training.setup import Setup, make_setup
from alexnet_jax.training.step import training_input
from tests.reference.torch_alexnet import TorchAlexNet


class TorchRun:
    """PyTorch's network and velocity, trained on our batches."""

    def __init__(self, setup: Setup) -> None:
        self.c, self.setup = setup.config, setup
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        torch.manual_seed(self.c.seed)
        params = jax.device_get(setup.network.init(self.c.seed))
        self.net = TorchAlexNet(self.c.model, params).to(self.device)
        self.velocity = {name: torch.zeros_like(p) for name, p in self.net.named_parameters()}
        self.prepare = jax.jit(lambda *given: training_input(self.c.data, *given))
        self.views = jax.jit(lambda images, mean, n: augment.view(images, mean, self.c.data, n))

    def step(self, batch: dict[str, np.ndarray], setting: optim.Hyperparams) -> tuple:
        """Each image's loss, float [b], and its label's rank, int [b]."""
        x = self.load(self.prepare(self.setup.normalization, batch, float(setting.lighting)))
        labels = torch.tensor(batch["label"], dtype=torch.long, device=self.device)
        self.net.zero_grad()
        logits = self.net(x, self.masks(len(x)))
        losses = F.cross_entropy(logits, labels, reduction="none")
        (losses.sum() / self.c.batch).backward()
        self.update(setting)
        return losses.detach().cpu().numpy(), ranks(logits.detach(), labels)

    def masks(self, images: int) -> tuple:
        """Dropout masks for fc6 and fc7, from PyTorch's random numbers."""
        neurons = (len(self.net.biases[layer]) for layer in ("fc6", "fc7"))
        drawn = (torch.rand(images, n, device=self.device) for n in neurons)
        return tuple((one >= self.c.model.dropout).float() for one in drawn)

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
    """Trains for all of the config's epochs.

    Raises:
      UserError: records or workdir do not fit, or it is no AlexNet.
    """
    if not isinstance(c.model, config.AlexNet) or (folder / workdir.CONFIG).exists():
        raise UserError(f"{folder} holds a run already, or this is no AlexNet: a new run is made")
    torch.set_num_threads(cores())
    setup = make_setup(c)
    workdir.claim(folder, c)
    kind = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    machine = host.describe(jax.devices()[:1]) | {"kind": kind, "torch": torch.__version__}
    workdir.record_start(folder, 0, setup.records.manifest.hash, machine)
    theirs = TorchRun(setup)
    policy = optim.make_policy(c.policy)
    plan = Plan(c, setup.order)
    total = plan.last
    outcomes: list[tuple] = []
    with closing(MetricsLog(folder, 0)) as log, progress_bar(total, "PyTorch", "steps") as bar:
        for step, batch in enumerate(_batches(setup, total), 1):
            outcomes.append(theirs.step(batch, policy.hyperparams(plan.epochs(step - 1))))
            bar.update()
            epochs, values = plan.epochs(step), dict[str, float]()
            ended = plan.evaluates(step)
            if ended or step % c.log.every == 0:
                parts = (np.concatenate(part) for part in zip(*outcomes, strict=True))
                values |= mean_scores(*parts).named("train")
                outcomes.clear()
            if ended:
                one = theirs.score(1)
                policy.observe(one.wrong, one.images)
                values |= one.named("val")
                say(f"epoch {epochs:.2f}, step {step}: {one.text()}")
            if step == total and c.evaluate.ten_views_at_end:
                ten = theirs.score(10)
                values |= ten.named("val_ten_views")
                say(f"ten views: {ten.text()}")
            if values:
                log.write(step, epochs, values)


def _batches(setup: Setup, steps: int) -> Iterator[dict[str, np.ndarray]]:
    c = setup.config
    rows = [(0, c.batch)]
    read = train_batches(
        setup.train, c.data, batch=c.batch, seed=c.seed, rows=rows, order=setup.order
    )
    with closing(read) as all_:
        for _ in range(steps):
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
