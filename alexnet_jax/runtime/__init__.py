"""Devices, processes, files and the terminal: all that is no part of AlexNet."""
