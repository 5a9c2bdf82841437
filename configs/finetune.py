"""Your own photos, best from trained weights: the number of classes is that of the folders.

python -m alexnet_jax.main --config=configs/finetune.py --config.data.source=folder:PHOTOS \\
    --config.init_from=MODEL --workdir=runs/mine

PHOTOS holds CLASS/*.jpg, or train/CLASS/*.jpg and val/CLASS/*.jpg. The records are made first, in
records/PHOTOS. MODEL is the workdir of a run or a safetensors file; without it, all layers begin at
random. finetune.py:narrow is a quarter as wide, for a computer without a GPU: with 3,068 photos of
clothing in 10 classes, from random weights, 37.0% top-1 error, 32.0% by ten views (seed 0, one
run). Differences from alexnet_2012.py are listed here.
"""

from ml_collections import ConfigDict

from alexnet_jax.configs import alexnet_2012

NAMES = ("full", "narrow")


def get_config(name: str = "full") -> ConfigDict:
    """Raises ValueError if the name is unknown."""
    if name not in NAMES:
        raise ValueError(f"configs/finetune.py has no {name!r}; there are {', '.join(NAMES)}")
    config = alexnet_2012.get_config()
    config.experiment.update({"name": f"finetune_{name}", "log": "", "paper": ""})
    config.batch = 32
    config.epochs = 10
    config.checkpoint_every = 0

    config.data.source = "folder:PATH"
    config.data.records = ""  # a folder in records/ with the name of the photos' folder
    config.model.classes = 0  # as many as there are folders
    if name == "narrow":
        config.model.width = 0.25
        # All layers but conv1 have a quarter of the inputs, so weights twice as large keep the
        # signal's size.
        for layer in set(config.model.std) - {"conv1"}:
            config.model.std[layer] *= 2

    config.policy = alexnet_2012.as_noted({"rate": 1e-2}, {"epoch": 8, "rate": 1e-3})

    config.evaluate.batch = 32
    config.log.every = 20
    config.log.layers_every = 0
    config.log.stuck_after = 500
    return config
