"""Caffe's CaffeNet, `bvlc_reference_caffenet`: as bvlc_alexnet.py, but it pools before LRN.

python -m alexnet_jax.weights import --from=caffenet --file=bvlc_reference_caffenet.caffemodel \\
    --mean=imagenet_mean.binaryproto --workdir=runs/caffenet

Expected, as BVLC reports: 42.6% top-1 and 19.6% top-5 error on the validation set, centre crop. We
have not seen their file, see docs/weights.md. Cost of a training: as configs/alexnet.py.
"""

from ml_collections import ConfigDict

from alexnet_jax.configs import bvlc_alexnet


def get_config() -> ConfigDict:
    config = bvlc_alexnet.get_config()
    config.experiment.name = "caffenet"
    config.model.lrn_after_pooling = True
    return config
