"""PyTorch's training step, the update included, as fast as it offers: eager and compiled."""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F

from alexnet_jax import config
from alexnet_jax.data import cores
from tests.reference.torch_alexnet import TorchAlexNet
from tests.reference.torch_cifar import TorchCifar


def steps(
    c: config.Config, params: dict, images: np.ndarray, labels: np.ndarray
) -> dict[str, Callable[[int], None]]:
    """'PyTorch eager', 'PyTorch compile', each also with channels_last: they do so many steps."""
    torch.set_num_threads(cores())
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_float32_matmul_precision("high")  # TF32, as JAX does; cuDNN has it by default
    torch.backends.cudnn.benchmark = True  # tries its algorithms, as XLA does
    build = TorchAlexNet if isinstance(c.model, config.AlexNet) else TorchCifar
    images = torch.tensor(images).permute(0, 3, 1, 2).contiguous().to(device)
    targets = torch.tensor(labels, dtype=torch.long, device=device)
    works = {}
    for name, layout in (("", torch.contiguous_format), (" channels_last", torch.channels_last)):
        x = images.to(memory_format=layout)
        for way in ("eager", "compile"):
            net = build(c.model, params).to(device)
            if layout is torch.channels_last:
                for weight in net.weights.values():
                    if weight.ndim == 4:
                        weight.data = weight.data.to(memory_format=layout)
            call = torch.compile(net) if way == "compile" else net
            works[f"PyTorch {way}{name}"] = _step(c, net, call, x, targets)
    return works


def _step(
    c: config.Config,
    net: torch.nn.Module,
    call: Callable,
    images: torch.Tensor,
    labels: torch.Tensor,
) -> Callable[[int], None]:
    o = c.optim
    sgd = torch.optim.SGD(
        net.parameters(), 1e-6, o.momentum, weight_decay=o.weight_decay, fused=True
    )
    bfloat16 = torch.autocast(images.device.type, torch.bfloat16, enabled=c.dtype == "bfloat16")

    def logits() -> torch.Tensor:
        if not isinstance(c.model, config.AlexNet):
            return call(images)
        draw = lambda n: torch.rand(len(images), n, device=images.device)  # noqa: E731
        neurons = (len(net.biases[layer]) for layer in ("fc6", "fc7"))
        masks = tuple((draw(n) >= c.model.dropout).float() for n in neurons)
        return call(images, masks)

    def run(count: int) -> None:
        for _ in range(count):
            sgd.zero_grad()
            with bfloat16:
                loss = F.cross_entropy(logits(), labels)
            loss.backward()
            sgd.step()
        if images.is_cuda:
            torch.cuda.synchronize()

    return run
