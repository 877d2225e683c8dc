"""Metric Mix: mixup for metric learning (Venkataramanan et al. 2021)."""

from scorecraft.core.paper import Paper
from scorecraft.similarity.metrix.diagnostics import (
    acts_as_positive,
    alignment,
    positivity_probability,
    positivity_threshold,
    uniformity,
    utilization,
)
from scorecraft.similarity.metrix.embeddings import PairKind, embedding_mixture_loss, mixed_scores
from scorecraft.similarity.metrix.generic import GenericPairLoss, PairForm, generic_pair_loss
from scorecraft.similarity.metrix.loss import MetrixLoss, form_of, symmetric_beta
from scorecraft.similarity.metrix.mixing import MixingAt, MixingPairs, mix, mixing_pairs, mixture_loss
from scorecraft.similarity.metrix.models import MetrixModelLoss
from scorecraft.similarity.metrix.official import pooled_distance_contrastive
from scorecraft.similarity.metrix.proxies import ProxyAnchored

__all__ = [
    "PAPER",
    "GenericPairLoss",
    "MetrixLoss",
    "MetrixModelLoss",
    "MixingAt",
    "MixingPairs",
    "PairForm",
    "PairKind",
    "ProxyAnchored",
    "acts_as_positive",
    "alignment",
    "embedding_mixture_loss",
    "form_of",
    "generic_pair_loss",
    "mix",
    "mixed_scores",
    "mixing_pairs",
    "mixture_loss",
    "pooled_distance_contrastive",
    "positivity_probability",
    "positivity_threshold",
    "symmetric_beta",
    "uniformity",
    "utilization",
]

PAPER = Paper(
    slug="metrix",
    title="It Takes Two to Tango: Mixup for Deep Metric Learning",
    arxiv="2106.04990",
    date="2021-06-09",
    room="similarity",
    kind="loss framework + mixing procedure + diagnostic metric",
    authors="Venkataramanan, Shashanka and Psomas, Bill and Kijak, Ewa and Amsaleg, Laurent and"
    " Karantzalos, Konstantinos and Avrithis, Yannis",
    venue="ICLR 2022",
    api=(
        "scorecraft.similarity.metrix.MetrixLoss",
        "scorecraft.similarity.metrix.MetrixModelLoss",
        "scorecraft.similarity.metrix.GenericPairLoss",
        "scorecraft.similarity.metrix.PairForm",
        "scorecraft.similarity.metrix.ProxyAnchored",
        "scorecraft.similarity.metrix.utilization",
        "scorecraft.similarity.metrix.positivity_threshold",
    ),
    hosts=("pytorch-metric-learning", "sentence-transformers"),
)
