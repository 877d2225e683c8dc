"""Do several heads with a learned temperature per pair make better features than one head with a constant one?

The contenders share the encoder's initial weights, the items and their views; they differ in the number of heads and in
what sets the temperature of a pair.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.nn import functional as F

from scorecraft.similarity.amcl import PAPER, AMCLLoss, MultiHeadProjector, PairTemperature
from scorecraft.studies.study import Claim, Contender, Metric, Scale, Study, World
from scorecraft.studies.two_views import GeneratedViews, encoded, encoder, knn_accuracy, train_two_views
from scorecraft.studies.worlds import Items, generator

_TRAINING = {"hidden": 128, "features": 64, "projection": 32, "batch": 128, "learning_rate": 2e-3}
_ADAPTIVE = {"beta": 0.1, "low": 0.05, "high": 1.05}
_KNOWS_NOTHING = 0.5  # the area under the curve of a constant


class Heads(nn.Module):
    """Projection heads and the loss of their outputs, from features `[2, n, k]` of two views.

    Args:
        projector: from features to the outputs of all heads.
        objective: the loss of both views' outputs; an `AMCLLoss` is trained along.
    """

    def __init__(self, projector: MultiHeadProjector, objective: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.projector, self.objective = projector, objective

    def forward(self, features: Float[Tensor, "2 n k"]) -> Float[Tensor, ""]:
        return self.objective(*(self.projector(view) for view in features))

    @torch.no_grad()
    def about(
        self, first: Float[Tensor, "n k"], second: Float[Tensor, "n k"]
    ) -> tuple[Float[Tensor, " n"] | None, Float[Tensor, " n"]]:
        """The learned temperatures, if any, and the dissimilarities of positive pairs, averaged over heads."""
        x, y = (F.normalize(self.projector(view), dim=-1) for view in (first, second))
        dissimilarity = -(x * y).sum(dim=-1).mean(dim=1)
        temperature = getattr(self.objective, "temperature", None)
        if not isinstance(temperature, PairTemperature):
            return None, dissimilarity
        return temperature.paired(x, y).mean(dim=1), dissimilarity


def nt_xent(
    first: Float[Tensor, "n heads d"], second: Float[Tensor, "n heads d"], *, temperature: float
) -> Float[Tensor, ""]:
    """SimCLR's loss at a constant temperature, summed over heads: the other view of an item among all other vectors."""
    x = F.normalize(torch.cat([first, second]), dim=-1).transpose(0, 1)
    heads, count = x.shape[:2]
    own = torch.eye(count, dtype=torch.bool, device=x.device)
    logits = (x @ x.mT / temperature).masked_fill(own, -torch.inf)
    partners = torch.arange(count, device=x.device).roll(len(first)).repeat(heads)
    return heads * F.cross_entropy(logits.flatten(0, 1), partners)


def trial(world: World, contender: Contender, seed: int, scale: Scale) -> dict[str, float]:
    """Train on pairs of views; judge the encoder's features, and what the heads know of how strong a view was."""
    views = GeneratedViews(seed, **world.settings)
    if contender.role == "reference":
        accuracy = knn_accuracy(_raw if contender.name == "raw" else _identity, views)
        return {"accuracy": accuracy, "temperature_auc": _KNOWS_NOTHING, "dissimilarity_auc": _KNOWS_NOTHING}
    told = scale.settings
    backbone = encoder((views.seen.features.shape[1], told["hidden"], told["features"]), seed)
    heads = make_heads(contender, scale, seed)
    train_two_views(
        backbone,
        heads,
        views,
        seed,
        steps=told["steps"],
        batch=told["batch"],
        learning_rate=told["learning_rate"],
    )
    return {"accuracy": knn_accuracy(encoded(backbone), views), **strength_auc(backbone, heads, views, seed)}


def make_heads(contender: Contender, scale: Scale, seed: int) -> Heads:
    """A contender's heads and its loss."""
    told, widths = contender.settings, scale.settings
    projector = MultiHeadProjector(
        (widths["features"], widths["features"], widths["projection"]),
        heads=told["heads"],
        generator=generator(seed, "heads"),
    )
    if "temperature" in told:
        return Heads(projector, partial(nt_xent, temperature=told["temperature"]))
    temperature = PairTemperature(
        widths["projection"], low=told["low"], high=told["high"], generator=generator(seed, "temperature")
    )
    return Heads(projector, AMCLLoss(temperature, heads=told["heads"], beta=told["beta"], kappa=told.get("kappa")))


@torch.no_grad()
def strength_auc(backbone: nn.Module, heads: Heads, world: GeneratedViews, seed: int) -> dict[str, float]:
    """How well temperature and dissimilarity tell pairs of two strong views from pairs of none, as areas under curves.

    0.5 is chance, and what a constant temperature gets.
    """
    everyone = torch.arange(len(world.seen.labels))
    shown, strong = world.views(everyone, generator(seed, "views to judge"))
    backbone.eval()
    temperatures, dissimilarities = heads.about(*(backbone(view) for view in shown))
    alike = strong[0] == strong[1]

    def area(values: Tensor | None) -> float:
        return _KNOWS_NOTHING if values is None else float(roc_auc_score(strong[0, alike], values[alike]))

    return {"temperature_auc": area(temperatures), "dissimilarity_auc": area(dissimilarities)}


def _raw(items: Items) -> Tensor:
    return items.features


def _identity(items: Items) -> Tensor:
    assert items.identity is not None
    return items.identity


STUDY = Study(
    paper=PAPER,
    claim=Claim(
        "Three heads with learned temperatures make better features than one head with a constant temperature (SimCLR):"
        " k-NN accuracy is higher by 0.01 or more.",
        metric="accuracy",
        margin=0.01,
    ),
    further_claims=(
        Claim(
            "The heads matter to learned temperatures: with three, k-NN accuracy is higher by 0.005 or more than with"
            " one.",
            metric="accuracy",
            margin=0.005,
            baseline="amcl_one_head",
        ),
        Claim(
            "The heads alone are worth something: at the same constant temperature, k-NN accuracy is higher with three"
            " than with one.",
            metric="accuracy",
            margin=0.0,
            method="constant_temperature",
        ),
        Claim(
            "A learned temperature is an uncertainty: it ranks pairs of strong views above pairs of weak ones better"
            " than chance, by 0.1 or more.",
            metric="temperature_auc",
            margin=0.1,
        ),
    ),
    metrics=(
        Metric("accuracy", "k-NN accuracy"),
        Metric("temperature_auc", "AUC of temperature for strong views"),
        Metric("dissimilarity_auc", "AUC of dissimilarity for strong views"),
    ),
    worlds=(
        World(
            "generated",
            "generated world, uneven views",
            "20 classes differ in 8 hidden dimensions among 24 that every view draws anew; half of the views also blur"
            " the hidden ones (noise of 0.8).",
            {"classes": 20, "items": 100, "held_out": 600, "spread": 0.5, "nuisance": 1.2, "jitter": 0.8},
        ),
    ),
    contenders=(
        Contender("simclr", "SimCLR", "baseline", {"heads": 1, "temperature": 0.2}),
        Contender("constant_temperature", "3 heads, constant", settings={"heads": 3, "temperature": 0.2}),
        Contender("amcl_one_head", "AMCL, 1 head", settings={"heads": 1, **_ADAPTIVE}),
        Contender("amcl_hard", "AMCL, hard mode", settings={"heads": 3, "kappa": 10, **_ADAPTIVE}),
        Contender("amcl", "AMCL", "method", {"heads": 3, **_ADAPTIVE}),
        Contender("raw", "raw input", "reference"),
        Contender("oracle", "hidden truth", "reference"),
    ),
    trial=trial,
    scales=(Scale("smoke", 2, {**_TRAINING, "steps": 20}), Scale("desk", 16, {**_TRAINING, "steps": 250})),
    notes=(
        "An earlier run of this experiment with three seeds did not show the claim: AMCL and SimCLR were level, three"
        " learned temperatures were better than one by about 0.012, and the heads rather than the temperatures were"
        " what helped.",
        "In that run the learned temperatures stayed near the middle of their interval and ranked strong views the"
        " wrong way. Contenders without a learned temperature are given the 0.5 of a constant.",
        "In pilot runs (seeds 100 to 102) hard mode fell far behind or collapsed: its temperatures went to the ends of"
        " the interval and all vectors became alike. The earlier run did not see this. Claims and settings of the"
        " contenders were left as they were.",
        "The paper's gain grows with the number of kinds of augmentation; here there is one kind, in two strengths.",
        "The encoder is a small perceptron on low-dimensional data: this tests the mechanism, not the paper's"
        " benchmark figures.",
    ),
)
