"""Proto-Triplet and ICNN, two distance losses for few-shot learning, and the ICNN score of an embedding."""

from scorecraft.core.paper import Paper
from scorecraft.similarity.susana.earlier_icnn import EarlierICNNScore, earlier_icnn_score
from scorecraft.similarity.susana.episode import EpisodeLoss
from scorecraft.similarity.susana.icnn import ICNNLoss, ICNNScore, icnn_loss, icnn_score
from scorecraft.similarity.susana.proto_triplet import ProtoTripletLoss, proto_triplet_loss
from scorecraft.similarity.susana.prototypes import class_prototypes, prototype_logits, prototypical_loss

__all__ = [
    "PAPER",
    "EarlierICNNScore",
    "EpisodeLoss",
    "ICNNLoss",
    "ICNNScore",
    "ProtoTripletLoss",
    "class_prototypes",
    "earlier_icnn_score",
    "icnn_loss",
    "icnn_score",
    "proto_triplet_loss",
    "prototype_logits",
    "prototypical_loss",
]

PAPER = Paper(
    slug="susana",
    title="SuSana Distancia is all you need: Enforcing class separability in metric learning via two novel "
    "distance-based loss functions for few-shot image classification",
    arxiv="2305.09062",
    date="2023-05-15",
    room="similarity",
    kind="two losses (Proto-Triplet, ICNN) + embedding quality score",
    authors="Mendez-Ruiz, Mauricio and Gonzalez-Zapata, Jorge and Reyes-Amezcua, Ivan and Flores-Araiza, Daniel "
    "and Lopez-Tiro, Francisco and Mendez-Vazquez, Andres and Ochoa-Ruiz, Gilberto",
    api=(
        "scorecraft.similarity.susana.EpisodeLoss",
        "scorecraft.similarity.susana.ProtoTripletLoss",
        "scorecraft.similarity.susana.ICNNLoss",
        "scorecraft.similarity.susana.icnn_score",
        "scorecraft.similarity.episodic_sampler.EpisodicBatchSampler",
    ),
    hosts=("pytorch-metric-learning", "sentence-transformers", "torchmetrics"),
)
