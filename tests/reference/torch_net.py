"""What the networks in PyTorch have in common: our parameters, in PyTorch's order of axes."""

from typing import Any

import numpy as np
import torch
from torch import nn


class TorchNet(nn.Module):
    """`c` is the model's config; `weights` and `biases` have an entry for each layer."""

    def __init__(self, c: Any, params: dict[str, dict[str, np.ndarray]]) -> None:
        super().__init__()
        self.c = c
        self.weights, self.biases = nn.ParameterDict(), nn.ParameterDict()
        for layer, values in params.items():
            kernel = torch.tensor(np.asarray(values["kernel"]))
            bias = torch.tensor(np.asarray(values["bias"]))
            order = (3, 2, 0, 1) if kernel.ndim == 4 else (1, 0)
            if bias.ndim > 1:  # locally connected: PyTorch has no such layer, and no order
                order = tuple(range(4))
            self.weights[layer] = nn.Parameter(kernel.permute(order).contiguous())
            self.biases[layer] = nn.Parameter(bias)
