"""The network as its authors ran it in 2012: like their code where the paper's text differs.

python -m alexnet_jax.prepare --source=ilsvrc2012:DOWNLOADS --out=records/imagenet2012
python -m alexnet_jax.main --config=configs/alexnet_2012.py --workdir=runs/alexnet_2012

Cost: as configs/alexnet.py. Expected: 40.664% top-1 and 18.210% top-5 error on the validation set,
ten views (the log of the released run 145). This file lists all differences from alexnet.py.
What else that code does is in configs/run_145.py, and all differences in docs/differences.md.
"""

from typing import Any

from ml_collections import ConfigDict

from alexnet_jax.configs import alexnet


def get_config() -> ConfigDict:
    config = alexnet.get_config()
    config.experiment.name = "alexnet_2012"
    config.experiment.log = "40.664 / 18.210"
    config.epochs = 91

    # The centre of the mean image is subtracted, wherever the crop was cut, after mirroring.
    config.data.mean = "centre"
    # The random numbers are multiplied by standard deviations on 0..255. The shifted image is
    # divided by 1.1, so that training images have about the same scale as test images.
    config.data.lighting.scale = "deviation"
    config.data.lighting.shrink = True

    # Layer 1 is conv, LRN, pool, ReLU. (Max pooling and ReLU can be swapped, LRN and ReLU cannot.)
    config.model.lrn.before_activation = ("conv1",)
    # The code divides the alpha of its config, 1e-4, by the 5 maps of the window.
    config.model.lrn.alpha = 2e-5
    # After LRN2 a normalization that is not in the paper, over 5x5 places of each map:
    # alpha = 1e-3 / 25.
    config.model.within_map.layers = ("conv2",)
    # With 0.01 in conv3-5 little of the image reaches the softmax: at the start conv5's outputs
    # vary between images by 4% of their mean, with 0.03 by 35%.
    config.model.std.conv3 = 0.03
    config.model.std.conv4 = 0.03
    config.model.std.conv5 = 0.03

    # Biases do not decay. Their rate begins at twice the weights'.
    config.optim.bias_rate = 2.0
    config.optim.decay_biases = False

    # The notes of run 145: set by hand during the run. Only the weights' rate falls. That of
    # conv1's biases ends at 0; we suppose that it was set together with that of its weights.
    config.policy = as_noted(
        {"rate": 1e-2, "biases": {"all": 0.02}},
        {"epoch": 25, "rate": 1e-3},
        {"epoch": 51, "rate": 1e-4},
        {"epoch": 67, "layers": {"conv1": 1e-5}, "lighting": False},
        {"epoch": 72, "layers": {"conv1": 0.0}, "biases": {"all": 0.02, "conv1": 0.0}},
        {"epoch": 79, "rate": 1e-5},
    )
    return config


def as_noted(*notes: dict[str, Any]) -> ConfigDict:
    """A schedule from notes, each of which says what changes at an epoch; the rest stays."""
    phase = {"epoch": 0, "layers": {}, "biases": {}, "lighting": True, "images": 0}
    phases = tuple(phase := phase | note for note in notes)
    return ConfigDict({"kind": "schedule", "phases": phases})
