"""The network in PyTorch: towers as groups, LRN and all; it takes our parameters."""

import torch
import torch.nn.functional as F

from tests.reference.torch_net import TorchNet


class TorchAlexNet(TorchNet):
    """Two towers as the two groups of grouped convolutions, for images [b, 3, h, w]."""

    def forward(
        self, x: torch.Tensor, masks: tuple[torch.Tensor, torch.Tensor] | None = None
    ) -> torch.Tensor:
        """Logits [b, classes]. `masks` are those of dropout; None in testing."""
        x = F.pad(x, (0, 3, 0, 3))
        x = self.pool(self.convolve("conv1", x, stride=4))
        own, zeros = self.c.towers, dict.fromkeys(("conv3", "conv4", "conv5", "conv6"), 1)
        zeros |= {"conv2": 2} | dict(self.c.padding)
        x = self.pool(self.convolve("conv2", x, padding=zeros["conv2"], groups=own))
        x = self.convolve("conv3", x, padding=zeros["conv3"])
        x = self.convolve("conv4", x, padding=zeros["conv4"], groups=own)
        x = self.pool(self.convolve("conv5", x, padding=zeros["conv5"], groups=own))
        if "conv6" in self.weights:
            groups = 1 if "conv6" in self.c.cross else own
            x = self.convolve("conv6", x, padding=zeros["conv6"], groups=groups)
        x = x.permute(0, 2, 3, 1).flatten(1)  # maps last, as ours are
        for i, layer in enumerate(("fc6", "fc7")):
            x = self.activate(F.linear(x, self.weights[layer], self.biases[layer]))
            x = x * (masks[i] if masks else 1 - self.c.dropout)
        return F.linear(x, self.weights["fc8"], self.biases["fc8"])

    def convolve(self, layer: str, x: torch.Tensor, **how: int) -> torch.Tensor:
        x = F.conv2d(x, self.weights[layer], self.biases[layer], **how)
        before = layer in self.c.lrn.before_activation
        x = x if before else self.activate(x)
        if layer in self.c.lrn.layers:
            x = self.across_maps(x)
        x = self.activate(x) if before else x
        return self.within_maps(x) if layer in self.c.within_map.layers else x

    def activate(self, x: torch.Tensor) -> torch.Tensor:
        return getattr(torch, self.c.activation)(x)

    def pool(self, x: torch.Tensor) -> torch.Tensor:
        over = self.c.pool_over_edges
        return F.max_pool2d(x, self.c.pool_window, self.c.pool_stride, ceil_mode=over)

    def across_maps(self, x: torch.Tensor) -> torch.Tensor:
        """Each tower by itself; PyTorch divides alpha by the window's size, so it is given more."""
        r = self.c.lrn
        towers = x.chunk(self.c.towers, dim=1)
        alpha = r.alpha * r.size
        return torch.cat(
            [F.local_response_norm(t, r.size, alpha=alpha, beta=r.beta, k=r.k) for t in towers], 1
        )

    def within_maps(self, x: torch.Tensor) -> torch.Tensor:
        r = self.c.within_map
        total = F.avg_pool2d(x**2, r.size, 1, r.size // 2) * r.size**2
        return x / (r.k + r.alpha * total) ** r.beta
