"""The command `scorecraft`.

Exit codes: 0 it worked (also when the verdict is "fails": reproducing worked), 1 it could not be done, 2 the command
was not understood, 130 interrupted. Anything foreseeable that goes wrong is one line on stderr.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130


class UsageError(Exception):
    """A command that asks for something there is not."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and leave the process with its exit code."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Run the command line and return its exit code; without arguments it shows its help."""
    from scorecraft.cli.app import app
    from scorecraft.cli.terminal import complain

    try:
        code = app(args=list(arguments) or ["--help"], prog_name="scorecraft", standalone_mode=False)
        sys.stdout.flush()
        return int(code or OK)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader (`| head`) has seen enough; without this Python complains when it flushes on the way out.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except Exception as error:
        if (problem := _foreseeable(error)) is None:
            raise
        code, message = problem
        complain(message)
        return code


def _foreseeable(error: Exception) -> tuple[int, str] | None:
    """Exit code and line of an error that the user can do something about; None for a fault of ours."""
    explain = getattr(error, "format_message", None)  # how Typer says that a command line makes no sense
    if explain is not None:
        command = getattr(getattr(error, "ctx", None), "command_path", "scorecraft")
        return USAGE, f"{explain().rstrip('.')} (see `{command} --help`)"
    if isinstance(error, UsageError):
        return USAGE, str(error)
    if isinstance(error, ModuleNotFoundError) and (error.name or "").startswith("scorecraft"):
        return None
    if isinstance(error, (ValueError, OSError, ImportError)) or type(error).__module__.startswith("scorecraft."):
        return FAILED, str(error) or type(error).__name__
    return None
