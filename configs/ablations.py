"""Ablations: what each part of the network contributes, as --config=configs/ablations.py:no_lrn

python -m alexnet_jax.main --config=configs/ablations.py:NAME --workdir=runs/NAME

Each is configs/alexnet_2012.py with a few other values, which `ABLATIONS` lists. Beside them are
two results of others. First what the paper says: by how many points the top-1 / top-5 error rises,
on ILSVRC-2010 or 2012. Then the top-1 / top-5 error, in %, in the log of the authors' run of 2012,
where there is one; the whole network has 40.664 / 18.210. Cost: as configs/alexnet.py. That ten
views are better than the centre crop (§4.1: 39.0 / 18.3 to 37.5 / 17.0) needs no run of its own,
because every run ends with both.
"""

from typing import Any, NamedTuple

from ml_collections import ConfigDict

from alexnet_jax.configs import alexnet_2012


class Ablation(NamedTuple):
    """The changed values, by key; what the paper says; the errors in the log."""

    changes: dict[str, Any]
    paper: str
    log: str = ""


NO_LRN = {"lrn.layers": (), "lrn.before_activation": (), "within_map.layers": ()}
OVERFITS = "substantial overfitting (§4.1, §4.2)"
MIDDLE = "about +2 top-1 for any of the middle layers (§7)"

ABLATIONS = {
    # Half of the kernels, on one device. The last convolution keeps all its kernels, because fc6
    # has most of the parameters and would be halved as well (§3.2, footnote 2).
    "half_net": Ablation(
        {"devices": 1, "model.towers": 1, "model.kernels": (48, 128, 192, 192, 256)},
        "+1.7 / +1.2 (§3.2)",
        "39.168 / 18.229 on ILSVRC-2010, where the whole network has 37.473 / 16.999",
    ),
    "no_lrn": Ablation(
        {f"model.{key}": value for key, value in NO_LRN.items()},
        "+1.4 / +1.2 (§3.3)",
        "42.034 / 19.362",
    ),
    "no_overlap": Ablation({"model.pool_window": 2}, "+0.4 / +0.3 (§3.4)", "41.058 / 18.510"),
    "no_lighting": Ablation({"data.lighting.sigma": 0.0}, "over +1 top-1 (§4.1)"),
    "no_crops": Ablation({"data.random_crop": False, "data.mirror": False}, OVERFITS),
    "no_dropout": Ablation({"model.dropout": 0.0}, OVERFITS),
    "tanh": Ablation({"model.activation": "tanh"}, "several times slower to train (§3.1)"),
    "without_conv2": Ablation({"model.without": "conv2"}, MIDDLE),
    "without_conv3": Ablation({"model.without": "conv3"}, MIDDLE),
    "without_conv4": Ablation({"model.without": "conv4"}, MIDDLE),
    "without_conv5": Ablation({"model.without": "conv5"}, ""),
    # Two towers that meet only at the logits. Those of the run in the log were wider.
    "no_crossing": Ablation({"model.cross": ()}, "", "41.828 / 19.330"),
    # Over the last pooling layer; the paper does not give its size, so we chose one. The paper
    # trained it on all classes of ImageNet's release of autumn 2011 and then on those of
    # ILSVRC-2012: use --config.init_from for that.
    "sixth_conv": Ablation(
        {
            "model.kernels": (96, 256, 384, 384, 256, 256),
            "model.std.conv6": 0.03,
            "model.bias.conv6": 1.0,
        },
        "39.0 / 16.6, trained before on the release of autumn 2011 (§6.1)",
        "38.990 / 16.622",
    ),
    "no_momentum": Ablation({"optim.momentum": 0.0}, ""),
    "no_decay": Ablation({"optim.weight_decay": 0.0}, "a higher training error (§5)"),
}

NAMES = tuple(ABLATIONS)


def get_config(name: str = "no_lrn") -> ConfigDict:
    """Raises ValueError if the name is unknown."""
    if name not in ABLATIONS:
        raise ValueError(f"configs/ablations.py has no {name!r}; there are {', '.join(ABLATIONS)}")
    config = alexnet_2012.get_config()
    ablation = ABLATIONS[name]
    config.update_from_flattened_dict(ablation.changes)
    about = {"name": name, "paper": ablation.paper, "log": ablation.log, "against": "alexnet_2012"}
    config.experiment.update(about)
    return config
