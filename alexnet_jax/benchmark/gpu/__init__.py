"""The training step as it is compiled for an NVIDIA GPU that need not be there."""
