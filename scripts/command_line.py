"""Shared by the scripts: parsing flags, finding configs, and reporting errors in one line."""

import re
import signal
import sys
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

try:
    from absl import app, flags, logging
    from ml_collections import config_flags

    from jax_mnist import config as config_lib
except ModuleNotFoundError as error:
    sys.exit(
        f"{error.name} is not installed in this Python ({sys.executable}): run python -m pip "
        "install -e . in the repository, in a virtual environment, and use its Python"
    )
from jax_mnist.config import ConfigError
from jax_mnist.data.datasets import DatasetError
from jax_mnist.runs.record import RecordError
from jax_mnist.runs.signals import StoppedError
from jax_mnist.runs.study import LostWorkerError, Variant, load_variant

CONFIGS = Path(__file__).parent.parent / "configs"
HELP = {"--help", "-help", "--helpshort", "-h", "-?"}


def fail(error):
    """Prints an error, which is a message or an exception, as one line and exits with code 2."""
    message = str(error.args[0] if isinstance(error, KeyError) else error)
    printable = "".join(c if c.isprintable() else " " for c in message)
    leave(" ".join(printable.split()), 2)


def leave(message, code):
    """Prints a message after the script's name on standard error, and exits."""
    print(f"{Path(sys.argv[0]).name}: {message}", file=sys.stderr, flush=True)
    sys.exit(code)


def define_config():
    """Defines `--config.FIELD=VALUE` for every field, and `--config NAME_OR_FILE` before parsing.

    A script calls it beside its other flags, and `load_variants` with the arguments of its `main`.
    """
    try:
        config_flags.DEFINE_config_dict(
            "config", config_lib.base(), "Sets a field.", sys_argv=_without_config(sys.argv)
        )
    except AttributeError as error:  # an unknown field on the command line
        name = re.match(r"[\W]*([\w.]*)", str(error.args[0].args[0]))[1]
        fail(config_lib.no_field(name))
    except Exception as error:
        fail(error)


def fields_from_flags():
    """The fields that the command line sets, by name."""
    try:
        return config_flags.get_override_values(flags.FLAGS["config"])
    except Exception as error:  # a field of a field, such as --config.l2.x
        fail(f"the fields set by --config cannot be read: {error}")


def load_variants(arguments: Sequence[str], changes: Mapping[str, Any]) -> dict[str, Variant]:
    """Loads variants given by name (`gbn`) or config file (`configs/gbn.py`).

    Args:
      arguments: The names and files.
      changes: Fields and their values, which replace those of the files.

    Returns:
      The variants by their names, which are those of their files.
    """
    variants: dict[str, Variant] = {}
    for argument in arguments:
        file = _find(argument)
        if file.stem in variants:
            fail(f"two configs are named {file.stem!r}: a variant is named after its file")
        variants[file.stem] = load_variant(file)
        try:
            variants[file.stem].config.update_from_flattened_dict(changes)
        except Exception as error:  # what a file returns as its config may raise anything
            fail(f"{file}: {error!r}" if isinstance(error, KeyError) else f"{file}: {error}")
    return variants


def load_only_variant(arguments: Sequence[str]) -> tuple[str, Variant]:
    """Loads the only config of a command line; returns its name and the variant."""
    if len(arguments) != 1:
        named = f"got {', '.join(map(repr, arguments))}" if arguments else f"such as {_known()}"
        fail(f"name one config or its file: {named}")
    ((name, variant),) = load_variants(arguments, fields_from_flags()).items()
    return name, variant


def _find(argument):
    if argument.endswith(".py") or "/" in argument:
        if not Path(argument).is_file():
            fail(f"there is no file {argument!r}; the configs here are {_known()}")
        return Path(argument)
    for folder in (Path("configs"), CONFIGS):
        if (file := folder / f"{argument}.py").is_file():
            return file
    fail(f"there is no config {argument!r}; name a file, or one of {_known()}")


def _known():
    files = [*Path("configs").glob("*.py"), *CONFIGS.glob("*.py")]
    return ", ".join(sorted({file.stem for file in files}))


def _without_config(argv):
    """Replaces `--config X` and `--config=X` by the argument `X`."""
    kept, words = [], iter(argv)
    for word in words:
        flag, equals, value = word.partition("=")
        if word == "--":
            return [*kept, word, *words]
        if flag in ("--config", "-config"):
            if value.startswith("-"):
                fail(f"there is no config {value!r}; name a file, or one of {_known()}")
            kept += [value] if equals else []  # without "=", the next word is the value
        else:
            kept.append(word)
    return kept


def run(main):
    """Parses the flags and calls `main` with the list of the other arguments.

    Exit codes: 2 for an error in the input, 1 if a worker process was lost, and 128 plus the number
    of the signal that stopped the script.
    """

    def parse(argv):
        if HELP & set(argv):
            print(_help(main.__globals__["__doc__"]))
            sys.exit(0)
        try:
            return flags.FLAGS(_without_config(argv) if "config" in flags.FLAGS else argv)
        except flags.UnrecognizedFlagError as error:
            field = "config" in flags.FLAGS and error.flagname in config_lib.base()
            meant = f"; did you mean --config.{error.flagname}?" if field else ""
            fail(f"there is no flag --{error.flagname}{meant}")
        except flags.IllegalFlagValueError as error:
            if wrong := re.match(r"flag --config\.(\w+)=(.*?): ", str(error)):
                kind = type(config_lib.base()[wrong[1]]).__name__
                fail(f"config.{wrong[1]} must be of type {kind}; got {wrong[2]!r:.64}")
            fail(error)
        except Exception as error:  # flags and config files may raise anything
            fail(error)

    def call(argv):
        logging.set_verbosity(logging.WARNING)
        warnings.showwarning = lambda message, *_: print(message, file=sys.stderr, flush=True)
        try:
            main(argv[1:])
        except StoppedError as stop:
            leave(stop, 128 + stop.signal)
        except KeyboardInterrupt:  # before there was anything to save
            leave("interrupted", 128 + signal.SIGINT)
        except LostWorkerError as error:
            leave(error, 1)
        except (ConfigError, DatasetError, RecordError, OSError) as error:
            fail(error)

    app.run(call, flags_parser=parse)


def _help(description):
    """The help of a script: its description, its own flags, and the fields of a config."""
    own = flags.FLAGS.flags_by_module_dict().get(sys.argv[0], [])
    lines = [description.strip(), "", "Flags:"]
    for flag in own:
        default = "" if flag.default in (None, False) else f" (default: {flag.default})"
        meaning = flag.help.partition(";\n")[0]  # absl says of some that they may be repeated
        first, *more = textwrap.wrap(f"{meaning}{default}", 52)
        lines += [f"  --{flag.name:22}  {first}", *(f"{'':28}{line}" for line in more)]
    if "config" in flags.FLAGS:
        lines += ["", "Fields of a config and their defaults, set by --config.FIELD=VALUE:"]
        lines.append(config_lib.plain_table())
    return "\n".join([*lines, "", "--helpfull lists the flags of the libraries too."])
