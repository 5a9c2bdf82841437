"""How a layer is computed, where there is more than one form. The results differ by rounding."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from alexnet_jax.model import ops


@dataclass(frozen=True)
class LayerForm:
    """Of one layer; None is the platform's default."""

    together: bool | None = None  # one convolution for all towers on a device, or one for each
    then: ops.Form | None = None  # ReLU, LRN and pooling after it


DEFAULT = LayerForm()
Forms = Mapping[str, LayerForm]
"""By the layer's name; layers that are not in it have the default."""

NO_FORMS: Forms = MappingProxyType({})
