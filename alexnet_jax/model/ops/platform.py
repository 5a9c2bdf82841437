"""For which platform a program is made."""

import jax


def platform() -> str | None:
    """'cpu', 'gpu', ...: of the mesh that the program is for; None outside of a mesh."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.platform if device else None
