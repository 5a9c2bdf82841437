"""The authors' small nets for CIFAR-10, by name: --config=configs/cifar10.py:18

python -m alexnet_jax.prepare --source=cifar10:PATH --size=32 --format=raw --out=records/cifar10
python -m alexnet_jax.main --config=configs/cifar10.py:18 --workdir=runs/cifar10_18

18: three convolutions; expected: 18% test error after 140 epochs, without augmentation.
"""

from ml_collections import ConfigDict

from configs import alexnet


def get_config(name: str = "18") -> ConfigDict:
    """Raises ValueError at an unknown name."""
    if name != "18":
        raise ValueError(f"configs/cifar10.py has no net {name!r}; there is 18")
    config = alexnet.get_config()
    config.devices = 1
    config.epochs = 140

    config.data.source = "cifar10:PATH"
    config.data.records = "records/cifar10"
    config.data.size = 32
    config.data.format = "raw"
    config.data.validation = "test"
    config.data.crop = 32
    config.data.random_crop = False
    config.data.mirror = False
    config.data.lighting.sigma = 0.0

    config.model = model = ConfigDict()
    model.kind = "cifar"
    model.classes = 10
    model.towers = 1
    model.layers = (
        _layer("conv1", 5, 32, 1e-4, "max", "relu", "within_map"),
        _layer("conv2", 5, 32, 0.01, "relu", "average", "within_map"),
        _layer("conv3", 5, 64, 0.01, "relu", "average"),
        {"name": "fc10", "kind": "dense", "window": 1, "units": 10, "then": (), "std": 0.01},
    )
    model.pool_window = 3
    model.pool_stride = 2
    model.within_map = ConfigDict()
    model.within_map.size = 3
    model.within_map.k = 1.0
    model.within_map.alpha = 5e-5 / 9
    model.within_map.beta = 0.75

    config.optim.weight_decay = 0.004
    config.optim.layer_decay.fc10 = 1.0
    config.optim.bias_rate = 2.0
    config.optim.decay_biases = False

    config.policy = ConfigDict()
    config.policy.kind = "schedule"
    config.policy.phases = (
        {"epoch": 0, "rate": 1e-3, "layers": {}, "lighting": True},
        {"epoch": 120, "rate": 1e-4, "layers": {}, "lighting": True},
        {"epoch": 130, "rate": 1e-5, "layers": {}, "lighting": True},
    )
    config.evaluate.ten_views_at_end = False
    config.log.layers_every = 391  # an epoch
    return config


def _layer(name: str, window: int, units: int, std: float, *then: str) -> dict[str, object]:
    """A convolution and what follows it."""
    shape = {"window": window, "units": units, "std": std}
    return {"name": name, "kind": "conv", "then": then, **shape}
