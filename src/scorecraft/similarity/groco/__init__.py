"""Learning by Sorting: group ordering constraints by relaxed sorting networks (Shvetsova et al. 2023)."""

from scorecraft.core.paper import Paper
from scorecraft.similarity.groco.groups import group_ordering_loss, group_probabilities, ordering_gap
from scorecraft.similarity.groco.loss import GroupOrderingLoss
from scorecraft.similarity.groco.sorting import relaxed_sort
from scorecraft.similarity.groco.views import GroCoLoss

__all__ = [
    "PAPER",
    "GroCoLoss",
    "GroupOrderingLoss",
    "group_ordering_loss",
    "group_probabilities",
    "ordering_gap",
    "relaxed_sort",
]

PAPER = Paper(
    slug="groco",
    title="Learning by Sorting: Self-supervised Learning with Group Ordering Constraints",
    arxiv="2301.02009",
    date="2023-01-05",
    room="similarity",
    kind="loss",
    authors="Shvetsova, Nina and Petersen, Felix and Kukleva, Anna and Schiele, Bernt and Kuehne, Hilde",
    venue="ICCV 2023",
    api=(
        "scorecraft.similarity.groco.GroCoLoss",
        "scorecraft.similarity.groco.GroupOrderingLoss",
        "scorecraft.similarity.groco.group_ordering_loss",
        "scorecraft.similarity.groco.group_probabilities",
        "scorecraft.similarity.groco.ordering_gap",
        "scorecraft.similarity.groco.relaxed_sort",
    ),
    hosts=("pytorch-metric-learning", "sentence-transformers"),
)
