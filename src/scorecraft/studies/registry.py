"""Which studies there are. Naming them imports none of them."""

from __future__ import annotations

import difflib
import importlib

from scorecraft.studies.study import Study, StudyError

_SLUGS = (
    "aft",
    "amcl",
    "dco",
    "dpa_logic",
    "groco",
    "helpsteer2_preference",
    "metrix",
    "multi_similarity",
    "mw",
    "r3",
    "ranking_accuracy",
    "reward_transform",
    "sft_vs_cl",
    "star_adore",
    "susana",
    "tcm",
    "unime_v2",
    "unpg",
)


def slugs() -> tuple[str, ...]:
    """The slugs of all studies; each is the module `scorecraft.studies.<slug>`, which holds its `STUDY`."""
    return _SLUGS


def find(slug: str) -> Study:
    """The study of a paper, imported when asked for. Hyphens are as good as underscores.

    Raises:
        StudyError: there is no such study; the line names the nearest one.
    """
    name = slug.strip().lower().replace("-", "_")
    if name not in _SLUGS:
        nearest = difflib.get_close_matches(name, _SLUGS, n=1, cutoff=0.4)
        hint = f"did you mean `{nearest[0]}`?" if nearest else f"expected one of {', '.join(_SLUGS)}"
        raise StudyError(f"no study is named `{slug}`: {hint}")
    return importlib.import_module(f"scorecraft.studies.{name}").STUDY
