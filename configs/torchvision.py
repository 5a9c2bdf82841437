"""torchvision's `alexnet`: a later network with one tower and without LRN, for its weights.

python -m alexnet_jax.weights import --from=torchvision --file=alexnet-owt-7be5be79.pth \\
    --workdir=runs/torchvision

This file lists all differences from alexnet.py. Expected, as torchvision reports: 43.478% top-1 and
20.934% top-5 error on the validation set, centre crop. We have not seen its file, see
docs/weights.md. The rates here are the paper's, not torchvision's.
"""

from ml_collections import ConfigDict

from alexnet_jax.configs import alexnet


def get_config() -> ConfigDict:
    config = alexnet.get_config()
    config.experiment.name = "torchvision"
    config.experiment.paper = ""
    config.devices = 1

    config.data.resize = "bilinear"
    config.data.lighting.sigma = 0.0

    config.model.towers = 1
    config.model.kernels = (64, 192, 384, 256, 256)
    config.model.padding.conv1 = 2
    config.model.lrn.layers = ()
    config.model.dropout_before = ("fc6", "fc7")
    return config
