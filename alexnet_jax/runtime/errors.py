"""What the user did, and can fix: one line, no traceback."""


class UserError(Exception):
    """Bad input. The message says in one line what is wrong, where, and what to do."""

    __module__ = "alexnet_jax"  # where Python finds it, too, and what a traceback shows
