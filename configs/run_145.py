"""Run 145 to the letter: configs/alexnet_2012.py, and what else the released code does.

python -m alexnet_jax.main --config=configs/run_145.py --workdir=runs/run_145

Cost and expected: as configs/alexnet_2012.py, which lists the differences from the paper. Added
here is what the authors' code does to images in a row, which makes the draws of a batch depend on
each other. Known from that code:

- 32 images in a row share one crop and one mirror; the colours of each image are its own.
- The images lie in files of 1,024, in which their order is fixed; a batch is 128 of them in a row.
  (1,024 is a multiple of 32, so for the chunks the files make no difference.)

Inferred, because the part that reads the files (data.py) was not released: the files have the same
order in each epoch. So it is in the authors' earlier code. That order is random here, as we suppose
that theirs was: images were mixed when the files were written.

Also known: pooling windows may hang over the far edges; at 224 pixels none does.

Not done: the last file of an epoch has fewer images, and so has its last batch, where ours take
the first images of the next epoch; colours were used again where the thread that draws them was
late; and after epoch 91 the authors raised the rate once more (40.250 / 17.994 at epoch 135).
"""

from ml_collections import ConfigDict

from alexnet_jax.configs import alexnet_2012


def get_config() -> ConfigDict:
    config = alexnet_2012.get_config()
    config.experiment.name = "run_145"
    config.experiment.against = "alexnet_2012"
    config.data.order = "fixed"
    config.data.chunk = 32
    return config
