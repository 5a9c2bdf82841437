"""ImageNet-C: error rates under 15 corruptions, and the mean corruption error, mCE.

As Hendrycks and Dietterich define it ("Benchmarking Neural Network Robustness to Common Corruptions
and Perturbations", ICLR 2019): CE of a corruption is the sum of the top-1 errors over the five
severities, divided by the same sum of a certain AlexNet (torchvision's); mCE is the mean over the
15 corruptions.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from alexnet_jax.data.unprepared import labelled_folder
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.runtime.terminal import markdown_table
from alexnet_jax.training.trained import Net

SEVERITIES = ("1", "2", "3", "4", "5")
BASELINE = {  # the mean top-1 error of that AlexNet over the severities, as they published it
    "gaussian_noise": 0.886428,
    "shot_noise": 0.894468,
    "impulse_noise": 0.922640,
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic_transform": 0.646056,
    "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
}


def folders_of(root: Path) -> dict[str, Path]:
    """The folder of each corruption: root/NAME, or root/GROUP/NAME as the tars unpack.

    Returns:
      {} if `root` has none of them.

    Raises:
      UserError: it has some, but not all with the five severities.
    """
    found = {}
    for name in BASELINE:
        places = [one for one in (root / name, *root.glob(f"*/{name}")) if one.is_dir()]
        if places:
            found[name] = places[0]
    for name in BASELINE if found else ():
        for severity in SEVERITIES:
            if name not in found or not (found[name] / severity).is_dir():
                raise UserError(f"{root} has no folder {name}/{severity}; mCE needs all 15 x 5")
    return found


def score(net: Net, root: Path, check: Callable[[], None]) -> dict[str, list[float]]:
    """The top-1 error of each corruption for each severity.

    The images are of the crop's size and seen whole, without the scaling of §2.

    Raises:
      UserError: see `folders_of`, `unprepared.labelled_folder` and `unprepared.Unprepared.read`.
    """
    setup = net.setup
    classes, data = setup.data.classes, setup.config.data
    sets = {
        (name, severity): labelled_folder(folder / severity, classes, data.size, data.crop)
        for name, folder in folders_of(root).items()
        for severity in SEVERITIES
    }
    errors: dict[str, list[float]] = {}
    for (name, severity), split in sets.items():
        scored = setup.evaluator.score(
            net.params, split, views=1, what=f"{name} {severity}", check=check
        )
        errors.setdefault(name, []).append(scored.top1_error)
    return errors


def mean_corruption_error(errors: Mapping[str, list[float]]) -> float:
    """mCE of top-1 errors in [0, 1]; 1 is that AlexNet's."""
    return float(np.mean([np.mean(errors[name]) / BASELINE[name] for name in BASELINE]))


def table(errors: Mapping[str, list[float]], classes: int) -> str:
    """The errors in percent, and mCE with its definition."""
    rows: list[dict[str, Any]] = []
    for name, of_name in errors.items():
        row = {"corruption": name}
        row |= {s: f"{100 * e:.2f}" for s, e in zip(SEVERITIES, of_name, strict=True)}
        ratio = np.mean(of_name) / BASELINE[name]
        rows.append(row | {"mean": f"{100 * np.mean(of_name):.2f}", "CE": f"{100 * ratio:.1f}"})
    other = "" if classes == 1000 else f" (which has 1000 classes; this network has {classes})"
    return (
        f"{markdown_table(rows)}\n\nmCE {100 * mean_corruption_error(errors):.1f}%: the mean over "
        f"the corruptions of CE, the sum of the top-1 errors over the severities divided by that "
        f"of torchvision's AlexNet{other}"
    )
