"""The CIFAR-10 nets in PyTorch; they take our parameters."""

import torch
import torch.nn.functional as F

from tests.reference.torch_net import TorchNet


class TorchCifar(TorchNet):
    """For images [b, 3, h, w]."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits [b, classes]."""
        for layer in self.c.layers:
            weight, bias = self.weights[layer.name], self.biases[layer.name]
            if layer.kind == "conv":
                x = F.conv2d(x, weight, bias, padding=layer.window // 2)
            elif layer.kind == "local":
                x = self.local(x, weight, bias, layer.window)
            else:
                x = F.linear(x.permute(0, 2, 3, 1).flatten(1) if x.ndim == 4 else x, weight, bias)
            for step in layer.then:
                x = self.step(step, x)
        return x

    def local(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, window: int
    ) -> torch.Tensor:
        batch, seen, height, width = x.shape
        seen_by_each = F.unfold(x, window, padding=window // 2)  # [b, seen * window^2, places]
        parts = seen_by_each.reshape(batch, seen, window, window, height, width)
        weight = weight.reshape(height, width, window, window, seen, -1)
        return torch.einsum("bcijhw,hwijcn->bnhw", parts, weight) + bias.permute(2, 0, 1)

    def step(self, name: str, x: torch.Tensor) -> torch.Tensor:
        window, stride, r = self.c.pool_window, self.c.pool_stride, self.c.within_map
        if name == "max":
            return F.max_pool2d(x, window, stride, ceil_mode=True)
        if name == "average":
            return F.avg_pool2d(x, window, stride, ceil_mode=True, count_include_pad=False)
        if name == "within_map":
            total = F.avg_pool2d(x**2, r.size, 1, r.size // 2) * r.size**2
            return x / (r.k + r.alpha * total) ** r.beta
        if name == "across_maps":
            a = self.c.across_maps
            return F.local_response_norm(x, a.size, a.alpha * a.size, a.beta, a.k)
        return getattr(torch, name)(x)
