"""Mixtures of inputs and features: which pairs, the hook in the model, and the loss on what comes out."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tests.similarity.metrix.explicit import FORMS, MOVED, batch, explicit_losses, masks
from torch import Tensor, nn
from torch.nn import functional as F

from scorecraft.core import citation
from scorecraft.similarity.metrix import (
    MetrixLoss,
    MetrixModelLoss,
    MixingAt,
    MixingPairs,
    PairForm,
    generic_pair_loss,
    mix,
    mixing_pairs,
    mixture_loss,
)
from scorecraft.similarity.multi_similarity import MultiSimilarityLoss

KINDS = ("positive_negative", "anchor_negative")


def unit_batch(n: int = 14, classes: int = 4) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x, labels = batch(n, classes)
    positives, negatives = masks(labels)
    return F.normalize(x.detach(), dim=1), labels, positives, negatives


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5)).double()


@pytest.mark.parametrize("hardest", [1, 3, 50])
@pytest.mark.parametrize("kind", KINDS)
def test_each_of_the_hardest_negatives_meets_every_positive(kind: Any, hardest: int) -> None:
    x, _, positives, negatives = unit_batch()
    scores = x @ x.T
    pairs = mixing_pairs(scores, positives, negatives, hardest=hardest, kind=kind)
    expected = set()
    for a in range(len(x)):
        foreign = negatives[a].nonzero().flatten().tolist()
        hard = sorted(foreign, key=lambda n, a=a: -scores[a, n])[:hardest]
        firsts = positives[a].nonzero().flatten().tolist() if kind == "positive_negative" else [a]
        expected |= {(a, first, second) for first in firsts for second in hard}
    found = list(zip(pairs.anchors.tolist(), pairs.first.tolist(), pairs.second.tolist(), strict=True))
    assert set(found) == expected
    assert len(found) == len(expected) == len(pairs)
    places = list(zip(pairs.anchors.tolist(), pairs.places.tolist(), strict=True))
    assert len(set(places)) == len(places)
    assert int(pairs.places.max()) + 1 == pairs.width


@pytest.mark.parametrize("average", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", MOVED.values(), ids=MOVED)
def test_all_mixtures_of_embeddings_are_the_embedding_mixtures(form: PairForm, kind: Any, average: bool) -> None:
    x, _, positives, negatives = unit_batch()
    pairs = mixing_pairs(x @ x.T, positives, negatives, hardest=len(x), kind=kind)
    mixtures = F.normalize(mix(x, pairs, 0.3), dim=1)
    found = mixture_loss(form, x, mixtures, pairs, 0.3, average=average)
    expected = explicit_losses(form, x, x, positives, negatives, 0.3, kind=kind, average=average)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_proxies_may_be_the_anchors() -> None:
    x, labels, _, _ = unit_batch()
    proxies = F.normalize(torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1)), dim=1)
    own = torch.arange(4)[:, None] == labels
    pairs = mixing_pairs(proxies @ x.T, own, ~own, hardest=len(x))
    form = FORMS["proxy_anchor"]
    found = mixture_loss(form, proxies, F.normalize(mix(x, pairs, 0.6), dim=1), pairs, 0.6)
    torch.testing.assert_close(found, explicit_losses(form, proxies, x, own, ~own, 0.6, kind="positive_negative"))
    with pytest.raises(ValueError, match="argument `kind`: expected 'positive_negative'"):
        mixing_pairs(proxies @ x.T, own, ~own, kind="anchor_negative")


def test_mixing_keeps_the_pure_ends() -> None:
    x, _, positives, negatives = unit_batch()
    pairs = mixing_pairs(x @ x.T, positives, negatives)
    assert torch.equal(mix(x, pairs, 1.0), x[pairs.first])
    assert torch.equal(mix(x, pairs, 0.0), x[pairs.second])


@pytest.mark.parametrize("layer", ["0", "1", "2"])
def test_the_hook_mixes_inside_the_forward_pass(layer: str) -> None:
    x, _, positives, negatives = unit_batch()
    model = network()
    pairs = mixing_pairs(x @ x.T, positives, negatives, hardest=2)
    with MixingAt(model, layer, pairs, 0.3):
        found = model(x)
    cut = int(layer) + 1
    torch.testing.assert_close(found, model[cut:](mix(model[:cut](x), pairs, 0.3)))
    assert len(model(x)) == len(x)


def test_the_hook_is_gone_after_an_exception() -> None:
    x, _, positives, negatives = unit_batch()
    model = network()
    pairs = mixing_pairs(x @ x.T, positives, negatives)
    with pytest.raises(RuntimeError), MixingAt(model, "1", pairs, 0.3):
        model(x[:, :2])
    assert not any(module._forward_hooks for module in model.modules())
    assert len(model(x)) == len(x)


class Awkward(nn.Module):
    """A module that returns no tensor, and one that is run twice."""

    def __init__(self) -> None:
        super().__init__()
        self.pair = Pair()
        self.shared = nn.Linear(6, 6).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.shared(self.shared(self.pair(x)[0]))


class Pair(nn.Module):
    """Returns a tuple."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


def test_layers_that_cannot_be_mixed_at_are_refused() -> None:
    x, _, positives, negatives = unit_batch()
    pairs = mixing_pairs(x @ x.T, positives, negatives)
    model = Awkward()
    for layer in ("", "absent"):
        with pytest.raises(ValueError, match="argument `layer`: expected the dotted name of a submodule"):
            MixingAt(model, layer, pairs, 0.5)
    with (
        pytest.raises(ValueError, match="argument `layer`: expected a module that returns a tensor, got 'pair'"),
        MixingAt(model, "pair", pairs, 0.5),
    ):
        model(x)
    short = MixingPairs(*(torch.zeros(3, dtype=torch.long) for _ in range(3)), torch.arange(3), 3)  # type: ignore[arg-type]
    with (
        pytest.raises(ValueError, match=r"argument `layer`: expected a module that runs once .*ran 2 times"),
        MixingAt(model, "shared", short, 0.5),
    ):
        model(x)
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("layer", [None, "0", "1", "2"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_of_a_model(layer: str | None, kind: Any) -> None:
    x, labels, positives, negatives = unit_batch()
    model, base = network(), MultiSimilarityLoss()
    loss = MetrixLoss(base, kind=kind, weight=0.7)
    lam, _ = copy.deepcopy(loss).draw()
    value = MetrixModelLoss(loss, layer=layer, hardest=2)(model, x, labels)
    embeddings = model(x)
    anchors = F.normalize(embeddings, dim=1)
    pairs = mixing_pairs(anchors @ anchors.T, positives, negatives, hardest=2, kind=kind)
    cut = 0 if layer is None else int(layer) + 1
    mixtures = F.normalize(model[cut:](mix(model[:cut](x), pairs, lam)), dim=1)
    losses = []
    for a in range(len(x)):
        own = mixtures[pairs.anchors == a] @ anchors[a]
        losses.append(generic_pair_loss(loss.form, own[None], lam))
    expected = base(embeddings, labels) + 0.7 * torch.cat(losses).mean()
    torch.testing.assert_close(value, expected)
    parameters = list(model.parameters())
    for mine, theirs in zip(
        torch.autograd.grad(value, parameters), torch.autograd.grad(expected, parameters), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)


def test_without_mixing_the_model_runs_once() -> None:
    x, labels, _, _ = unit_batch()
    model, base = network(), MultiSimilarityLoss()
    runs = []
    model.register_forward_hook(lambda *_: runs.append(1))
    expected = base(model(x), labels)
    runs.clear()
    assert torch.equal(MetrixModelLoss(MetrixLoss(base)).eval()(model, x, labels), expected)
    assert torch.equal(MetrixModelLoss(MetrixLoss(base, weight=0))(model, x, labels), expected)
    one_class = MetrixModelLoss(MetrixLoss(base))(model, x, torch.zeros_like(labels))
    assert one_class == 0
    assert one_class.requires_grad
    assert len(runs) == 3


def test_model_inputs_that_have_nothing_in_between_are_refused() -> None:
    model = nn.Sequential(nn.Embedding(10, 6), nn.Linear(6, 5)).double()
    tokens, labels = torch.arange(10), torch.arange(10) % 3
    with pytest.raises(ValueError, match="argument `values`: expected floating-point values"):
        MetrixModelLoss(MetrixLoss(MultiSimilarityLoss()))(model, tokens, labels)
    assert MetrixModelLoss(MetrixLoss(MultiSimilarityLoss()), layer="0")(model, tokens, labels).isfinite()


def test_bad_input_is_refused_in_one_line() -> None:
    x, labels, positives, negatives = unit_batch()
    pairs = mixing_pairs(x @ x.T, positives, negatives)
    with pytest.raises(ValueError, match="argument `hardest`: expected an integer >= 1"):
        mixing_pairs(x @ x.T, positives, negatives, hardest=0)
    with pytest.raises(ValueError, match="argument `positives`: expected a bool matrix"):
        mixing_pairs(x @ x.T, positives.double(), negatives)
    with pytest.raises(ValueError, match="argument `lam`: expected a number in"):
        mix(x, pairs, -0.1)
    with pytest.raises(ValueError, match="argument `mixtures`: expected vectors of shape"):
        mixture_loss(FORMS["contrastive"], x, x, pairs, 0.5)
    with pytest.raises(ValueError, match="argument `hardest`"):
        MetrixModelLoss(MetrixLoss(MultiSimilarityLoss()), hardest=0)
    with pytest.raises(TypeError, match="argument `loss`: expected a MetrixLoss, got MultiSimilarityLoss"):
        MetrixModelLoss(MultiSimilarityLoss())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="argument `labels`"):
        MetrixModelLoss(MetrixLoss(MultiSimilarityLoss()))(network(), x, labels[:-1])


def test_it_cites_its_papers() -> None:
    cited = citation(MetrixModelLoss(MetrixLoss(MultiSimilarityLoss())))
    assert "2106.04990" in cited
    assert "1904.06627" in cited
