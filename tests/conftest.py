"""Four CPU devices for all tests, and small records that one session makes once."""

import os
import tempfile
from pathlib import Path

import jax
import numpy as np
import pytest
from absl import flags
from ml_collections import ConfigDict

jax.config.update("jax_platforms", os.environ.get("JAX_PLATFORMS", "cpu"))
jax.config.update("jax_num_cpu_devices", 4)
# Most of a test's time is XLA's compiling. Code that runs a few times need not be optimized.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=1")
# Many tests compile the same step. Each session begins with an empty cache; its workers, and the
# processes that they start, share it.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _CACHE = tempfile.TemporaryDirectory(prefix="alexnet-jax-tests-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _CACHE.name
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)  # as the commands do

from alexnet_jax import config  # noqa: E402
from alexnet_jax.configs import tiny  # noqa: E402
from alexnet_jax.data.images import centre_square, decode  # noqa: E402
from alexnet_jax.data.sources import generated  # noqa: E402
from alexnet_jax.prepare import prepare  # noqa: E402

flags.FLAGS.mark_as_parsed()  # Grain asks absl's flags; under pytest no one has parsed them

PHOTOS = Path(__file__).parent / "photos"
SHARED = Path(os.environ.get("ALEXNET_JAX_IMAGES", Path(__file__).parents[2] / "shared" / "data"))


@pytest.fixture(scope="session")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Records of generated images, 72 x 72: 256 to train, 64 to validate.

    Users get 512 to validate. Most of the time of a short run would go into their scores.
    """
    folder = tmp_path_factory.mktemp("records") / "generated"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generated, "VALIDATION", 64)
        prepare("generated:256", folder, size=72, format="raw")
    return folder


def photos(size: int = 224) -> np.ndarray:
    """The centre squares of the photos in tests/photos: uint8 [5, size, size, 3]."""
    files = sorted(PHOTOS.glob("*.jpg"))
    return np.stack([centre_square(decode(file.read_bytes()), size) for file in files])


def make_config(records: Path | str = "no/records", **values: object) -> config.Config:
    """configs/tiny.py with a small batch, and with `values` by dotted key ('__' for the dot).

    Its source is that of the records, whatever that is.
    """
    c: ConfigDict = tiny.get_config()
    c.data.source, c.data.records = "folder:PATH", str(records)
    c.batch, c.evaluate.batch, c.model.width = 16, 16, 0.125
    with c.unlocked():
        for key, value in values.items():
            section, *names = c, *key.split("__")
            for name in names[:-1]:
                section = section[name]
            section[names[-1]] = value
    return config.parse(c)
