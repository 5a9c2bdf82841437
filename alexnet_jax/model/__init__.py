"""The network, its layers, and where their parts lie on the devices."""
