"""Caffe's `bvlc_alexnet`: the paper's network as BVLC arranged it, for their trained weights.

python -m alexnet_jax.weights import --from=bvlc_alexnet --file=bvlc_alexnet.caffemodel \\
    --mean=imagenet_mean.binaryproto --workdir=runs/bvlc_alexnet

This file lists all differences from alexnet.py. Expected, as BVLC reports: 42.9% top-1 and 19.8%
top-5 error on the validation set, centre crop. We have not seen their file, see docs/weights.md.
Cost of a training: as configs/alexnet.py; the rates here are the paper's, not BVLC's.
"""

from ml_collections import ConfigDict

from alexnet_jax.configs import alexnet


def get_config() -> ConfigDict:
    config = alexnet.get_config()
    config.experiment.name = "bvlc_alexnet"
    config.experiment.paper = ""
    config.devices = 1  # any number that alexnet.py may have

    # Windows of 11 pixels, 4 apart, fit 227 pixels without padding.
    config.data.crop = 227
    config.data.resize = "squeeze"
    config.data.lighting.sigma = 0.0

    # LRN over the maps of both towers. Caffe divides its alpha, 1e-4, by the 5 maps of the window.
    config.model.lrn_over_towers = True
    config.model.lrn.k = 1.0
    config.model.lrn.alpha = 2e-5

    for layer in ("conv2", "conv4", "conv5", "fc6", "fc7"):
        config.model.bias[layer] = 0.1
    config.model.std.fc6 = 0.005
    config.model.std.fc7 = 0.005
    return config
