"""A trainer's module without its host."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest


@pytest.mark.parametrize(
    ("module", "host", "extra"),
    [
        ("trl.coverage", "trl", "rlhf"),
        ("trl.preference_trainer", "trl", "rlhf"),
        ("trl.rewards", "trl", "rlhf"),
        ("transformers.set_wise", "transformers", "text"),
    ],
)
def test_without_the_host_there_is_one_clear_line(module: str, host: str, extra: str) -> None:
    code = f"""
        import sys
        sys.modules["{host}"] = None
        try:
            import scorecraft.integrations.{module}
        except ImportError as error:
            print(error)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    assert done.stdout == f'{host} is not installed: pip install "scorecraft[{extra}]"\n'
