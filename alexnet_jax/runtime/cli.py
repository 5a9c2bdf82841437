"""What all commands share: their options, --config, and one line for each error.

A command defines its options in ``flags.FlagValues`` of its own, because one command may import
another. Its ``main(arguments)`` hands them to `run`.
"""

import os
import re
import runpy
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TypeVar

from absl import flags
from ml_collections import ConfigDict, config_flags

from alexnet_jax import config
from alexnet_jax.runtime import distributed
from alexnet_jax.runtime.errors import UserError, system_error
from alexnet_jax.runtime.signals import INTERRUPTED, Stopped

ConfigFlag = flags.FlagHolder[ConfigDict | None]
_T = TypeVar("_T")

_command_line: list[str] = []  # what is parsed now; config_flags looks for --config.KEY in it


def run(
    job: Callable[[Sequence[str]], None],
    options: flags.FlagValues,
    about: str | None,
    arguments: Sequence[str] | None = None,
    *,
    stopped: str = "stopped",
) -> None:
    """Sets `options` from a command line, and calls `job` with the arguments that are no options.

    The command line is `arguments`, or that of this process. --help prints `about`, the docstring
    of the command, above the options. An error that the user can fix is one line and exit status 2,
    and so is a lack of memory. A signal is a line that says `stopped`; the status is 130 after
    Ctrl-C, 75 after SIGTERM.
    """
    given = sys.argv[1:] if arguments is None else arguments
    if not {"--help", "-h"}.isdisjoint(given):
        print(f"{(about or '').strip()}\n{options.get_help(include_special_flags=False)}")
        sys.exit()
    try:
        job(_parse(options, given))
    except UserError as error:
        distributed.end(2, str(error))
    except OSError as error:
        distributed.end(2, system_error(error))
    except Stopped as stop:  # all processes stop after the same step
        if distributed.process_index() == 0:
            print(stopped, file=sys.stderr)
        sys.exit(stop.status)
    except KeyboardInterrupt:
        print(stopped, file=sys.stderr)
        distributed.end(INTERRUPTED)
    except Exception as error:
        if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
            distributed.end(2, f"not enough memory: {str(error) or 'Python got none'}")
        if distributed.process_count() == 1:
            raise
        distributed.end_with_traceback(error)


def _parse(options: flags.FlagValues, arguments: Sequence[str]) -> list[str]:
    """Sets the options; returns the other arguments. UserError: an option does not fit."""
    for name in [name for name in options if name.startswith("config.")]:
        delattr(options, name)  # from an earlier command line
    options.unparse_flags()
    flags.FLAGS.mark_as_parsed()  # Grain reads flags of its own; they keep their defaults
    _command_line[:] = ["python", *arguments]
    try:
        return options(_command_line)[1:]
    except flags.IllegalFlagValueError as error:
        raise UserError(_wrong_value(options, error)) from None
    except (flags.Error, ValueError, TypeError) as error:
        raise UserError(str(error)) from None
    except (LookupError, AttributeError) as error:  # of config_flags, for a --config.KEY
        key = str(error).strip("\"'")  # which Python has put in quotes, once or twice
        raise UserError(f"the config has no such key: {key}") from None


def _wrong_value(options: flags.FlagValues, error: flags.IllegalFlagValueError) -> str:
    """The option, its value, and what it must be, such as '--size=x must be an integer'."""
    given = str(error).removesuffix(f": {error.__context__}").removeprefix("flag ")
    parser = options[given.removeprefix("--").partition("=")[0]].parser
    kinds = {"bool": "true or false", "tuple": "a tuple, as (1, 2) or ('a', 'b')"}
    kinds |= dict.fromkeys(("int", "float"), parser.syntactic_help)  # with limits, if it has some
    kind = kinds.get(parser.flag_type())
    return f"{given} must be {kind}" if kind else str(error)


def required(option: flags.FlagHolder[_T | None], example: str) -> _T:
    """The value of an option; UserError, with the `example`, if it was not given, or is ""."""
    if option.value is None or option.value == "":
        raise UserError(f"--{option.name} is missing: give it, as --{option.name}={example}")
    return option.value


def one_of(choices: Collection[str], arguments: Sequence[str]) -> str:
    """The only argument that is not an option; UserError unless it is one of `choices`."""
    if len(arguments) != 1 or arguments[0] not in choices:
        got = " ".join(arguments) or "nothing"
        raise UserError(f"give one of {', '.join(choices)}, and options; got {got}")
    return arguments[0]


def no_more(arguments: Sequence[str]) -> None:
    """Raises UserError if there are arguments that are not options."""
    if arguments:
        raise UserError(f"{arguments[0]!r} is not an option: options begin with --")


def folders(option: flags.FlagHolder[list[str] | None]) -> list[Path]:
    """The folders that ``--workdirs`` names; UserError if there are none, or one is named twice."""
    found = [Path(name) for name in option.value or [] if name]
    if not found:
        raise UserError("--workdirs is missing: give the folders of runs, as runs/a,runs/b")
    places = [os.path.realpath(folder) for folder in found]
    for number, folder in enumerate(found):
        if places[number] in places[:number]:
            raise UserError(f"--workdirs names {folder} twice; it would count as two runs")
    return found


def input_files(option: flags.FlagHolder[list[str] | None], example: str) -> list[Path]:
    """The files that an option names; UserError if there are none."""
    found = [Path(name) for name in option.value or [] if name]
    if not found:
        raise UserError(f"--{option.name} is missing: give it, as --{option.name}={example}")
    return found


def output(option: flags.FlagHolder[str | None]) -> Path | None:
    """The file to write, or None; UserError, before the work begins, if that is impossible."""
    if option.value is None:
        return None
    file, given = Path(option.value), f"--{option.name}={option.value}"
    if not file.parent.is_dir():
        raise UserError(f"{given}: there is no folder {file.parent}; make it first")
    if file.is_dir():
        raise UserError(f"{given} is a folder; give the name of a file in it")
    return file


# --- configs ------------------------------------------------------------------------------------


class _ConfigParser(flags.ArgumentParser[ConfigDict]):
    def parse(self, argument: str) -> ConfigDict:
        return load_configs(argument)[0]


def define_config(options: flags.FlagValues) -> ConfigFlag:
    """Adds --config=FILE, and --config.KEY=VALUE for every value of that config."""
    flag = config_flags.DEFINE_config_file(
        "config",
        None,
        "A config: a file, as configs/tiny.py; a variant in a file, as configs/cifar10.py:18; or "
        "the name of a packaged file, as tiny. Any of its values can be set: --config.batch=64.",
        flag_values=options,
        lock_config=False,
        accept_new_attributes=True,  # `config.parse` finds an unknown key, and says which is meant
        sys_argv=_command_line,
    )
    options["config"].parser = _ConfigParser()
    return flag


def given_config(flag: ConfigFlag) -> config.Config:
    """The config of --config and --config.KEY; UserError if not given, or see `config.parse`."""
    return config.parse(required(flag, "configs/tiny.py"))


def load_config(name: str) -> config.Config:
    """A config by its name, 'alexnet_2012' or 'cifar10:18', or of a file.

    It is frozen: `dataclasses.replace` makes another, with other values.

    Raises:
      UserError: there is none, or it cannot be loaded.
    """
    return config.parse(load_configs(name)[0])


def load_configs(text: str, *, all_variants: bool = False) -> list[ConfigDict]:
    """The config of FILE or FILE:VARIANT; FILE is a path, or the name of a packaged file.

    With `all_variants`, a FILE without :VARIANT gives all that it lists as NAMES.

    Raises:
      UserError: it cannot be found or loaded.
    """
    name, _, variant = text.partition(":")
    file = _find_config(name)
    _refuse_stale_base(file)
    try:
        module = runpy.run_path(str(file))
        variants = [variant] if variant else module.get("NAMES", ()) if all_variants else ()
        get_config = module["get_config"]
        return [ConfigDict(get_config(one)) for one in variants] or [ConfigDict(get_config())]
    except Exception as error:  # a config is a program: it may raise anything
        raise UserError(f"{text} cannot be loaded: {type(error).__name__}: {error}") from None


def _find_config(name: str) -> Path:
    """The file `name` if there is one, else the packaged file for 'configs/NAME.py' or 'NAME'."""
    file = Path(name)
    if file.is_file():
        return file
    packaged = {one.stem: one for one in sorted(_packaged_configs().glob("[!_]*.py"))}
    short = file.stem if file == Path("configs", f"{file.stem}.py") else name
    if short not in packaged:
        raise UserError(f"there is no config {name}; give a file, or one of {', '.join(packaged)}")
    return packaged[short]


def _packaged_configs() -> Path:
    """The folder of the package's configs. UserError in a checkout that is not installed."""
    try:
        return Path(str(files("alexnet_jax.configs")))
    except ModuleNotFoundError:
        raise UserError("alexnet_jax is not installed; run pip install -e . first") from None


def _refuse_stale_base(file: Path) -> None:
    """Raises UserError if `file` builds on a packaged config that has an edited copy beside it.

    Its `from alexnet_jax.configs import alexnet` takes the packaged alexnet.py: the edited copy
    would be ignored without a word.
    """
    for packaged in _packaged_bases(file):
        beside = file.with_name(packaged.name)
        edited = beside.is_file() and beside.read_bytes() != packaged.read_bytes()
        if edited and beside != file:  # a file may change the packaged one of its own name
            raise UserError(
                f"{file} builds on the installed {packaged.name}, but {beside} differs from it; "
                f"install this checkout (pip install -e .), or give the copy another name"
            )


def _packaged_bases(file: Path) -> Iterator[Path]:
    """The packaged configs that a config imports, and those that they import."""
    for names in re.findall(r"^from alexnet_jax\.configs import (.+)$", file.read_text(), re.M):
        for name in names.split(","):
            base = _packaged_configs() / f"{name.strip()}.py"
            if base.is_file():
                yield base
                yield from _packaged_bases(base)
