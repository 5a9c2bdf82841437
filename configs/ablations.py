"""Ablations: what each part of the network contributes, as --config=configs/ablations.py:no_lrn

python -m alexnet_jax.main --config=configs/ablations.py:NAME --workdir=runs/NAME

Each is configs/alexnet_2012.py with a few other values, which `ABLATIONS` lists. Beside the names
of the paper's variations stands by how many points its top-1 / top-5 error rises, on ILSVRC-2010 or
2012. The names that begin with run_ are runs of the released code, with the values of their files
and notes, and with the top-1 / top-5 error in their log, in %; the whole network has 40.664 /
18.210. Cost: as configs/alexnet.py. That ten views are better than the centre crop (§4.1: 39.0 /
18.3 to 37.5 / 17.0) needs no run of its own, because every run ends with both.
"""

from typing import Any, NamedTuple

from ml_collections import ConfigDict

from alexnet_jax.configs import alexnet_2012
from alexnet_jax.configs.alexnet_2012 import as_noted


class Ablation(NamedTuple):
    """The changed values, by key; what the paper says; the errors in the log."""

    changes: dict[str, Any]
    paper: str
    log: str = ""


HALF_NET = {"devices": 1, "model.towers": 1, "model.kernels": (48, 128, 192, 192, 256)}
NO_LRN = {
    "model.lrn.layers": (),
    "model.lrn.before_activation": (),
    "model.within_map.layers": (),
}
SIXTH_CONV = {
    "model.kernels": (96, 256, 384, 384, 256, 256),
    "model.std.conv6": 0.03,
    "model.bias.conv6": 1.0,
}
OVERFITS = "substantial overfitting (§4.1, §4.2)"
MIDDLE = "about +2 top-1 for any of the middle layers (§7)"

# Rates of the runs' notes and files, as in alexnet_2012.py. The notes give the epochs of the
# weights' rates; where a file's rates of biases ended lower than they began, we suppose that they
# fell together with the last ones of the weights.
BIASES, FROZEN = {"all": 0.02}, {"all": 0.02, "conv1": 0.0}
LOWER = {"all": 0.002, "conv1": 0.0}
START = {"rate": 1e-2, "biases": BIASES}
SLOW = {"layers": {"conv1": 1e-5}, "lighting": False}
FREEZE = {"layers": {"conv1": 0.0}, "biases": FROZEN}

ABLATIONS = {
    # Half of the kernels, on one device. The last convolution keeps all its kernels, because fc6
    # has most of the parameters and would be halved as well (§3.2, footnote 2).
    "half_net": Ablation(HALF_NET, "+1.7 / +1.2 (§3.2)"),
    # That network on ILSVRC-2010. The file has .002 for the biases of conv1 and conv2, without a
    # note; we suppose that they fell together with conv1's weights. It also has 1e-5 for all
    # weights. No note says when, so here they stay at 1e-4, and conv1's at 0.
    "run_145_half": Ablation(
        {
            **HALF_NET,
            "epochs": 96,
            "policy": as_noted(
                START,
                {"epoch": 20, "rate": 1e-3},
                {"epoch": 48, "rate": 1e-4},
                {"epoch": 66, "biases": {"all": 0.02, "conv1": 0.002, "conv2": 0.002}, **SLOW},
                {"epoch": 72, "layers": {"conv1": 0.0}},
            ),
        },
        "+1.7 / +1.2 (§3.2)",
        "39.168 / 18.229 on ILSVRC-2010, where run_145_2010 has 37.473 / 16.999",
    ),
    # The whole network on ILSVRC-2010.
    "run_145_2010": Ablation(
        {
            "epochs": 93,
            "policy": as_noted(
                START,
                {"epoch": 23, "rate": 1e-3},
                {"epoch": 51, "rate": 1e-4},
                {"epoch": 68, **SLOW},
                {"epoch": 72, **FREEZE},
                {"epoch": 78, "rate": 1e-5, "biases": LOWER},
            ),
        },
        "37.5 / 17.0 on ILSVRC-2010 (§6)",
        "37.473 / 16.999 on ILSVRC-2010",
    ),
    "no_lrn": Ablation(NO_LRN, "+1.4 / +1.2 (§3.3)"),
    "run_148": Ablation(
        {
            **NO_LRN,
            "epochs": 97,
            "policy": as_noted(
                START,
                {"epoch": 22, "rate": 1e-3},
                {"epoch": 44, "rate": 1e-4},
                {"epoch": 69, **SLOW},
                {"epoch": 73, **FREEZE},
                {"epoch": 86, "rate": 1e-5},
            ),
        },
        "+1.4 / +1.2 (§3.3)",
        "42.034 / 19.362",
    ),
    "no_overlap": Ablation({"model.pool_window": 2}, "+0.4 / +0.3 (§3.4)"),
    # The last windows of 2 hang over the edge: 55 to 28 pixels. conv2 makes 26 of them and conv5
    # 11 of 13, so that fc6 sees 6x6 here, too. The lighting stayed on.
    "run_147": Ablation(
        {
            "model.pool_window": 2,
            "model.pool_over_edges": True,
            "model.padding": {"conv2": 1, "conv5": 0},
            "epochs": 90,
            "policy": as_noted(
                START,
                {"epoch": 23, "rate": 1e-3},
                {"epoch": 51, "rate": 1e-4},
                {"epoch": 79, "rate": 1e-5, "layers": {"conv1": 0.0}, "biases": LOWER},
            ),
        },
        "+0.4 / +0.3 (§3.4)",
        "41.058 / 18.510",
    ),
    "no_lighting": Ablation({"data.lighting.sigma": 0.0}, "over +1 top-1 (§4.1)"),
    "no_crops": Ablation({"data.random_crop": False, "data.mirror": False}, OVERFITS),
    "no_dropout": Ablation({"model.dropout": 0.0}, OVERFITS),
    "tanh": Ablation({"model.activation": "tanh"}, "several times slower to train (§3.1)"),
    "sigmoid": Ablation({"model.activation": "sigmoid"}, "the same as of tanh (§3.1)"),
    "without_conv2": Ablation({"model.without": "conv2"}, MIDDLE),
    "without_conv3": Ablation({"model.without": "conv3"}, MIDDLE),
    "without_conv4": Ablation({"model.without": "conv4"}, MIDDLE),
    "without_conv5": Ablation({"model.without": "conv5"}, ""),
    # Two towers that meet only at the logits.
    "no_crossing": Ablation({"model.cross": ()}, ""),
    # The same, but wider: 2 x 160 kernels in conv2, 2 x 4096 neurons in fc6 and fc7.
    "run_150": Ablation(
        {
            "model.cross": (),
            "model.kernels": (96, 320, 384, 384, 256),
            "model.neurons": (8192, 8192),
            "epochs": 92,
            "policy": as_noted(
                START,
                {"epoch": 25, "rate": 1e-3},
                {"epoch": 49, "rate": 1e-4},
                {"epoch": 66, **SLOW},
                {"epoch": 72, **FREEZE},
                {"epoch": 79, "rate": 1e-5},
            ),
        },
        "",
        "41.828 / 19.330",
    ),
    # Over the last pooling layer; the paper does not give its size, so we chose one. The paper
    # trained it on all classes of ImageNet's release of autumn 2011 and then on those of
    # ILSVRC-2012: docs/results.md has the commands.
    "sixth_conv": Ablation(
        SIXTH_CONV, "39.0 / 16.6, trained before on the release of autumn 2011 (§6.1)"
    ),
    # 2 x 128 kernels that see both towers; the second of two runs, which begins with the weights of
    # the first: use --config.init_from. (The first: sixth_conv with the same cross.) The file has
    # .022 for the biases of conv6. fc8 is new, so after 300 batches of 1,024 images its rate rose.
    "run_146": Ablation(
        {
            **SIXTH_CONV,
            "model.cross": ("conv3", "conv6", "fc6", "fc7"),
            "epochs": 54,
            "policy": as_noted(
                {
                    "rate": 1e-3,
                    "layers": {"conv1": 1e-4},
                    "biases": {"all": 0.02, "conv6": 0.022},
                },
                {"epoch": 300 * 1024 / 1_281_167, "layers": {"conv1": 1e-4, "fc8": 1e-2}},
                {"epoch": 5, "layers": {"conv1": 1e-5, "fc8": 1e-2}},
                {
                    "epoch": 7,
                    "layers": {"conv1": 0.0, "fc8": 1e-2},
                    "biases": {"all": 0.02, "conv6": 0.022, "conv1": 0.0},
                },
                {"epoch": 9, "layers": {"conv1": 0.0}},
                {"epoch": 22, "rate": 1e-4},
                {"epoch": 38, "lighting": False},
                {"epoch": 42, "rate": 1e-5},
            ),
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
    for key, value in ablation.changes.items():
        *sections, last = key.split(".")
        section = config
        for one in sections:
            section = section[one]
        section[last] = value
    about = {"name": name, "paper": ablation.paper, "log": ablation.log, "against": "alexnet_2012"}
    config.experiment.update(about)
    return config
