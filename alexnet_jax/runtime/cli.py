"""What the commands have in common: a config on the command line, and one line for each error."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from absl import app, flags
from ml_collections import config_flags

from alexnet_jax import config
from alexnet_jax.runtime import distributed
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.runtime.signals import INTERRUPTED, Stopped

_CONFIG = config_flags.DEFINE_config_file("config", None, "The run: a file of configs/.")


def run(job: Callable[[Sequence[str]], None], stopped: str) -> None:
    """Runs `job` on the arguments that are no options, and exits.

    An error that the user can fix gives one line and status 2; Ctrl-C gives `stopped` and 130.
    """

    app.run(lambda line: guard(lambda: job(line[1:]), stopped), flags_parser=_parse_flags)


def guard(job: Callable[[], None], stopped: str) -> None:
    """Does `job`. Exits with one line where an error that the user can fix or a signal ends it."""
    try:
        job()
    except (UserError, OSError) as error:
        _fail(error)
    except Stopped as stop:  # all processes do at the same time
        if distributed.process_index() == 0:
            print(stopped, file=sys.stderr)
        sys.exit(stop.status)
    except KeyboardInterrupt:
        print(stopped, file=sys.stderr)
        distributed.end(INTERRUPTED, "")


def parser(module: str, about: str) -> argparse.ArgumentParser:
    """For a command that needs no config: `python -m alexnet_jax.MODULE`, and its docstring."""
    return argparse.ArgumentParser(
        prog=f"python -m alexnet_jax.{module}",
        description=about,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def folders(text: str) -> list[Path]:
    """The folders that ``--workdirs`` names, separated by commas.

    Raises:
      UserError: there is none.
    """
    found = [Path(name) for name in text.split(",") if name]
    if not found:
        raise UserError("--workdirs is empty: give the folders of runs, as runs/a,runs/b")
    return found


def output(option: str, text: str | None) -> Path | None:
    """The file that a command is to write, checked before it begins to work; None if not given.

    Raises:
      UserError: its folder is missing, or it is a folder.
    """
    if text is None:
        return None
    file = Path(text)
    if not file.parent.is_dir():
        raise UserError(f"{option}={text}: there is no folder {file.parent}; make it first")
    if file.is_dir():
        raise UserError(f"{option}={text} is a folder; give the name of a file in it")
    return file


def count(text: str) -> int:
    """A number of an option, from 1 on, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number from 1 on")
    return int(text)


def given_config() -> config.Config:
    """The config of --config and its overrides.

    Raises:
      UserError: there is none, or see `config.parse`.
    """
    if _CONFIG.value is None:
        raise UserError("--config is missing: give a file, as --config=configs/tiny.py")
    return config.parse(_CONFIG.value)


def _parse_flags(arguments: list[str]) -> list[str]:
    """The flags; what is wrong with them or with the config's file, in one line."""
    try:
        rest = flags.FLAGS(arguments)
        if _CONFIG.value is not None:
            _CONFIG.value.to_dict()  # a file that cannot be loaded says so when it is used
        return rest
    except flags.Error as error:
        _fail(_without_traceback(str(error)))
    except Exception as error:  # a config is a program: it may raise anything
        _fail(f"the config cannot be loaded: {type(error).__name__}: {error}")


def _without_traceback(text: str) -> str:
    """What a config that was given an argument raised comes wrapped up in its whole traceback."""
    before, found, trace = text.partition("Traceback (most recent call last)")
    return before + trace.strip().splitlines()[-1] if found else text


def _fail(error: object) -> NoReturn:
    distributed.end(2, str(error))
