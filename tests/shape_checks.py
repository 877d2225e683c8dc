"""A pytest plugin that checks every shape annotation at every call: `pytest -p tests.shape_checks tests/conformance`.

Not on by default: the checks answer before our own do, so what the door says of bad input could not be tested.
"""

from __future__ import annotations

from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook

check = beartype(conf=BeartypeConf(is_pep484_tower=True))

install_import_hook(
    ["scorecraft.core", "scorecraft.similarity", "scorecraft.relevance", "scorecraft.preference"],
    "tests.shape_checks.check",
)
