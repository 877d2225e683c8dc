"""Import an optional host library, or say in one line how to install it."""

from __future__ import annotations

import importlib
from types import ModuleType


def require(module: str, extra: str) -> ModuleType:
    """Import and return `module`, the host library that the extra `extra` of this package installs.

    Raises:
        ImportError: the module is not installed; the message is the one line that installs it. An error inside an
            installed host is passed on unchanged.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0]:
            raise
        raise ImportError(f'{error.name} is not installed: pip install "scorecraft[{extra}]"') from error
