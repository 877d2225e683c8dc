"""The logic of direct preference losses: formulas to losses, losses to formulas, and their order (arXiv 2412.17696)."""

from scorecraft.core.paper import Paper
from scorecraft.preference.dpa_logic.catalogue import CATALOGUE, TRL_LOSS_TYPES, NamedLoss, find_named
from scorecraft.preference.dpa_logic.counting import (
    LogCount,
    LogRatio,
    log1mexp,
    log_weighted_count,
    semantic_loss,
)
from scorecraft.preference.dpa_logic.description import Description, describe_structure
from scorecraft.preference.dpa_logic.formulas import Formula, parse_formula, truth_table
from scorecraft.preference.dpa_logic.loss import LogicLoss
from scorecraft.preference.dpa_logic.minimal import short_formula
from scorecraft.preference.dpa_logic.order import (
    Lattice,
    Place,
    every_structure,
    interval,
    known_structures,
    lattice,
    place,
)
from scorecraft.preference.dpa_logic.structures import PreferenceStructure
from scorecraft.preference.dpa_logic.text import FormulaError

__all__ = [
    "CATALOGUE",
    "PAPER",
    "TRL_LOSS_TYPES",
    "Description",
    "Formula",
    "FormulaError",
    "Lattice",
    "LogCount",
    "LogRatio",
    "LogicLoss",
    "NamedLoss",
    "Place",
    "PreferenceStructure",
    "describe_structure",
    "every_structure",
    "find_named",
    "interval",
    "known_structures",
    "lattice",
    "log1mexp",
    "log_weighted_count",
    "parse_formula",
    "place",
    "semantic_loss",
    "short_formula",
    "truth_table",
]

PAPER = Paper(
    slug="dpa_logic",
    title="Understanding the Logic of Direct Preference Alignment through Logic",
    arxiv="2412.17696",
    date="2024-12-23",
    room="preference",
    kind="loss algebra (loss <-> logic compiler/decompiler) + analysis",
    authors="Richardson, Kyle and Srikumar, Vivek and Sabharwal, Ashish",
    venue="ICML 2025",
    api=(
        "scorecraft.preference.dpa_logic.LogicLoss",
        "scorecraft.preference.dpa_logic.PreferenceStructure",
        "scorecraft.preference.dpa_logic.describe_structure",
        "scorecraft.preference.dpa_logic.place",
        "scorecraft.preference.dpa_logic.lattice",
        "scorecraft.preference.dpa_logic.interval",
        "scorecraft.preference.dpa_logic.log_weighted_count",
        "scorecraft.preference.dpa_logic.semantic_loss",
    ),
    hosts=("TRL",),
)
