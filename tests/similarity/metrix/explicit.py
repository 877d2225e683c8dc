"""Mixtures made one by one, as the definition reads: what the Gram form must equal."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from scorecraft.similarity.metrix import PairForm, generic_pair_loss

FORMS = {
    "contrastive": PairForm.contrastive(),
    "lifted": PairForm.lifted_structure(margin=-2.0),
    "binomial": PairForm.binomial_deviance(),
    "multi_similarity": PairForm.multi_similarity(),
    "proxy_anchor": PairForm.proxy_anchor(),
    "nca": PairForm.nca(temperature=0.1),
    "proxy_nca_plus_plus": PairForm.proxy_nca_plus_plus(temperature=0.1),
}
MOVED = {name: form for name, form in FORMS.items() if not form.blind_to_equal_labels}


def batch(n: int = 20, classes: int = 5, d: int = 6, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Embeddings of any length, float64, and labels with uneven classes."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64)
    return x.requires_grad_(), torch.randint(0, classes, (n,), generator=generator)


def masks(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Positives without the diagonal, and negatives."""
    same = labels[:, None] == labels
    return same & ~torch.eye(len(labels), dtype=torch.bool), ~same


def explicit_losses(
    form: PairForm, anchors: Tensor, others: Tensor, positives: Tensor, negatives: Tensor, lam: float, *, kind: str,
    normalised: bool = True, average: bool = False,
) -> Tensor:  # fmt: skip
    """The loss of each anchor, from vectors `lam x + (1 - lam) x'` that are made."""
    anchors, others = F.normalize(anchors, dim=1), F.normalize(others, dim=1)
    losses = []
    for row, anchor in enumerate(anchors):
        first = others[positives[row]] if kind == "positive_negative" else anchor[None]
        second = others[negatives[row]]
        mixtures = (lam * first[:, None] + (1 - lam) * second[None]).flatten(0, 1)
        mixtures = F.normalize(mixtures, dim=1) if normalised else mixtures
        labels = torch.full((1, len(mixtures)), lam, dtype=anchors.dtype)
        losses.append(generic_pair_loss(form, (mixtures @ anchor)[None], labels, average=average))
    return torch.cat(losses)
