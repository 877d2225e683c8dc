"""One learnable anchor per class, in front of any objective."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from scorecraft.core.checks import check_labels, check_values, positive_integer
from scorecraft.core.objective import Objective


class ProxyAnchored(nn.Module):
    """An objective whose anchors are proxies, one per class, and whose others are the examples of the batch.

        objective(proxies, (0 ... C-1), reference=embeddings, reference_labels=labels)

    With `GenericPairLoss(PairForm.proxy_anchor())` inside it is the Proxy Anchor loss, with a `MetrixLoss` of that its
    mixed companion is added. Proxies of absent classes are anchors as well, with
    negatives only. The proxies are parameters: give them to the optimiser.

    Args:
        objective: any objective that takes a reference, also a wrapped one (`tiled`, `across_ranks`).
        num_classes: `C >= 1`.
        dimension: of an embedding.
        generator: draws the initial proxies, standard normal.

    Source: Kim et al. 2020, arXiv 2003.13911; as anchors of the generic form, arXiv 2106.04990, table 1.
    """

    def __init__(
        self, objective: Objective, num_classes: int, dimension: int, *, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        if not isinstance(objective, Objective):
            raise TypeError(f"argument `objective`: expected a scorecraft objective, got {type(objective).__name__}")
        self.objective = objective
        self.num_classes = positive_integer("num_classes", num_classes)
        self.proxies = nn.Parameter(torch.empty(num_classes, positive_integer("dimension", dimension)))
        nn.init.normal_(self.proxies, generator=generator)

    def forward(self, embeddings: Float[Tensor, "n d"], labels: Int[Tensor, " n"]) -> Tensor:
        """The loss of the proxies against a batch: a scalar, or `[C]` with an objective of `reduction="none"`.

        Raises:
            ValueError: embeddings or labels of another shape or dtype, or labels outside `0 ... C-1`.
        """
        check_labels("labels", labels, len(embeddings))
        in_range = f"class indices in 0 ... {self.num_classes - 1}"
        check_values("labels", in_range, lambda: ((labels >= 0) & (labels < self.num_classes)).all(), labels)
        classes = torch.arange(self.num_classes, device=labels.device)
        dtype = torch.promote_types(self.proxies.dtype, embeddings.dtype)
        return self.objective(self.proxies.to(dtype), classes, reference=embeddings.to(dtype), reference_labels=labels)

    def extra_repr(self) -> str:
        return f"num_classes={self.num_classes}, dimension={self.proxies.shape[1]}"
