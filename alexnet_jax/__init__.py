"""The AlexNet of 2012: two towers on two devices (Krizhevsky, Sutskever, Hinton, NIPS 2012)."""
