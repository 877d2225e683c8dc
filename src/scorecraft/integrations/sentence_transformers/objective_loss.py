"""An objective as a loss of the host's trainer: plain, and with gradient caching.

What a batch means (one text column with labels, queries with their passages) is said by a `Layout`; everything else
(components, citation, caching, devices) is the same for all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Protocol, TypeAlias, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from scorecraft.core import Objective, across_ranks, citation
from scorecraft.core.checks import positive_integer
from scorecraft.core.paper import papers_of
from scorecraft.integrations.optional import require

require("sentence_transformers", "text")

from sentence_transformers import SentenceTransformer  # noqa: E402
from sentence_transformers.base.losses import CachedLossMixin, has_static_embedding_input  # noqa: E402
from sentence_transformers.base.losses.merged_forward import embed_columns  # noqa: E402

Features: TypeAlias = Mapping[str, Any]
"""One text column of a batch, as the host's preprocessing returns it."""


class Layout(Protocol):
    """What the columns of a batch are to an objective."""

    def read(self, columns: Sequence[Features], labels: Tensor | None) -> Tensor:
        """Refuse columns that do not fit, and say what the objective must know beside the embeddings."""
        ...

    def value(self, objective: Objective, columns: Sequence[Tensor], known: Tensor) -> Tensor:
        """The objective of the embeddings of each column."""
        ...


class ObjectiveLoss(nn.Module):
    """An objective on the embeddings of the columns, as its `layout` reads them.

    Args:
        model: the `SentenceTransformer` being trained.
        objective: an objective, or a mapping from names to objectives. The value of a mapping is their sum, and the
            trainer logs every component under its name; a sum written with `+` is logged as one number.
        gather_across_devices: take the loss over the batches of all devices together instead of each on its own. The
            mean over devices of the returned values is then the loss of the whole batch.
    """

    layout: ClassVar[Layout]

    def __init__(
        self,
        model: SentenceTransformer,
        objective: Objective | Mapping[str, Objective],
        gather_across_devices: bool = False,
    ) -> None:
        super().__init__()
        self.model = model
        self.objective = nn.ModuleDict(objective) if isinstance(objective, Mapping) else objective
        self.gather_across_devices = gather_across_devices

    def forward(
        self, sentence_features: Iterable[Features], labels: Int[Tensor, "n ..."] | None = None
    ) -> Tensor | dict[str, Tensor]:
        """The loss of one batch as the trainer hands it over: a scalar, or the named components of a mapping."""
        columns: list[Any] = list(sentence_features)
        known = self.layout.read(columns, labels)
        return self.compute_loss_from_embeddings(embed_columns(self.model, columns), known)

    def compute_loss_from_embeddings(
        self, embeddings: list[Float[Tensor, "n d"]], labels: Int[Tensor, "n ..."]
    ) -> Tensor | dict[str, Tensor]:
        """The loss of embeddings that were computed already, as other losses of the host call it."""
        if isinstance(self.objective, nn.ModuleDict):
            return {name: self._value(part, embeddings, labels) for name, part in self.objective.items()}
        return self._value(self.objective, embeddings, labels)

    def _value(self, objective: nn.Module, embeddings: list[Tensor], known: Tensor) -> Tensor:
        alone = cast(Objective, objective)
        return self.layout.value(across_ranks(alone) if self.gather_across_devices else alone, embeddings, known)

    def get_config_dict(self) -> dict[str, Any]:
        """What the model card shows as the loss's parameters."""
        named = self.objective if isinstance(self.objective, nn.ModuleDict) else {"objective": self.objective}
        return {name: one_line(part) for name, part in named.items()} | {
            "gather_across_devices": self.gather_across_devices
        }

    @property
    def citation(self) -> str:
        """BibTeX of the papers behind the objective; the host writes it into the model card."""
        named = self.objective.values() if isinstance(self.objective, nn.ModuleDict) else [self.objective]
        return "\n".join(dict.fromkeys(filter(None, (cited(part) for part in named))))


class CachedObjectiveLoss(CachedLossMixin, nn.Module):
    """`ObjectiveLoss` with gradient caching: the batch may be as large as the objective likes.

    The texts are embedded in mini-batches without a graph, the objective is taken over the whole batch, and every
    mini-batch is embedded once more to carry the objective's gradient into the model. Value and gradient equal those of
    the plain loss; the encoder's activations never exceed one mini-batch, for one more forward pass.

    Args:
        model: the `SentenceTransformer` being trained; one with token inputs (a static embedding cannot be sliced).
        objective: an objective without trainable parameters. The caching carries gradients to the embeddings only, and
            those of a parameter would miss the scaling of gradient accumulation and mixed precision.
        mini_batch_size: texts embedded at a time.
        mini_batch_num_tokens: a budget of tokens per mini-batch instead of a number of texts.
        gather_across_devices: take the loss over the batches of all devices together.
        show_progress_bar: show the mini-batches of every step.

    Raises:
        ValueError: for a static embedding model or an objective with trainable parameters.
    """

    layout: ClassVar[Layout]

    def __init__(
        self,
        model: SentenceTransformer,
        objective: Objective,
        mini_batch_size: int = 32,
        mini_batch_num_tokens: int | None = None,
        gather_across_devices: bool = False,
        show_progress_bar: bool = False,
    ) -> None:
        super().__init__()
        if has_static_embedding_input(model):
            raise ValueError(
                "argument `model`: expected token inputs, which can be sliced into mini-batches, got a StaticEmbedding"
            )
        trainable = [name for name, parameter in objective.named_parameters() if parameter.requires_grad]
        if trainable:
            raise ValueError(
                "argument `objective`: expected no trainable parameters, whose gradients caching cannot carry, "
                f"got {', '.join(trainable)}"
            )
        self.model = model
        self.objective = objective
        self.mini_batch_size = positive_integer("mini_batch_size", mini_batch_size)
        if mini_batch_num_tokens is not None:
            positive_integer("mini_batch_num_tokens", mini_batch_num_tokens)
        self.mini_batch_num_tokens = mini_batch_num_tokens
        self.gather_across_devices = gather_across_devices
        self.show_progress_bar = show_progress_bar

    def forward(self, sentence_features: Iterable[Features], labels: Int[Tensor, "n ..."] | None = None) -> Tensor:
        """The loss of one batch as the trainer hands it over; its backward pass embeds the mini-batches again."""
        columns: list[Any] = list(sentence_features)
        return self.forward_cached(columns, self.layout.read(columns, labels))

    def calculate_loss(
        self,
        reps: list[list[Float[Tensor, "_ d"]]],
        labels: Int[Tensor, "n ..."] | None = None,
        *,
        with_backward: bool = False,
    ) -> Tensor:
        """The objective over all mini-batches together; `with_backward` also leaves its gradient on each of them."""
        assert labels is not None  # what `forward` read
        objective = across_ranks(self.objective) if self.gather_across_devices else self.objective
        loss = self.layout.value(objective, [torch.cat(column) for column in reps], labels)
        if not with_backward:
            return loss
        loss.backward()
        return loss.detach()

    def get_config_dict(self) -> dict[str, Any]:
        """What the model card shows as the loss's parameters."""
        return {
            "objective": one_line(self.objective),
            "mini_batch_size": self.mini_batch_size,
            "mini_batch_num_tokens": self.mini_batch_num_tokens,
            "gather_across_devices": self.gather_across_devices,
        }

    @property
    def citation(self) -> str:
        """BibTeX of the papers behind the objective; the host writes it into the model card."""
        return cited(self.objective)


def cited(objective: nn.Module) -> str:
    """BibTeX of the papers behind an objective; nothing for a classical loss, which is a paper of no catalogue."""
    return citation(objective) if papers_of(objective) else ""


def one_line(module: nn.Module) -> str:
    """How a module is shown in a model card."""
    return " ".join(repr(module).split())
