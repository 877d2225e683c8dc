"""The contrastive objectives: check values, what they equal in special cases, and their ties."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from scorecraft.core import Batch, Objective, Pairs, RowObjective, score_gradients, tiled
from scorecraft.similarity.amcl import HardestMultiHeadContrastLoss, MultiHeadContrastLoss, PairLikelihood
from scorecraft.similarity.amcl.contrast import most_similar

LOW, HIGH, WIDTH = 0.05, 1.05, 8
SIMILARITIES = torch.tensor([[0.8, 0.5, 0.1, -0.2]], dtype=torch.float64)
TEMPERATURES = torch.tensor([[0.25, 0.4, 0.5, 0.8]], dtype=torch.float64)
POSITIVE = torch.tensor([[True, False, False, False]])


def objective(kappa: int | None = None, **options: Any) -> RowObjective:
    shape: dict[str, Any] = {"heads": 1, "width": WIDTH, "features": 1, "low": LOW, "high": HIGH, **options}
    if kappa is None:
        return MultiHeadContrastLoss(**shape)
    return HardestMultiHeadContrastLoss(kappa=kappa, **shape)


def products_of(temperatures: Tensor) -> Tensor:
    """The products behind some temperatures."""
    return ((temperatures - LOW) / (HIGH - LOW)).logit()


def on_channels(loss: Objective, similarities: Tensor, temperatures: Tensor, positives: Tensor) -> Tensor:
    """The loss of one head with given similarities and temperatures."""
    batch = Batch(None, None, Pairs.from_masks(positives))
    return loss.evaluate_scores((similarities, products_of(temperatures)), batch)


def views(items: int = 9, heads: int = 2, seed: int = 0, features: int = 3) -> tuple[Tensor, Tensor]:
    """Rows of two views with temperature features, and the items they show."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(2 * items, heads * (WIDTH + features), generator=generator, dtype=torch.float64)
    return rows.requires_grad_(), torch.arange(items).repeat(2)


@pytest.mark.parametrize(
    "loss, expected",
    [
        (objective(kappa=1, beta=1.0), -2.3300145170),
        (objective(kappa=2, beta=0.1), -2.5326301620),
        (objective(beta=1.0), -2.0792607082),
        (objective(beta=0.0), -1.4969722050),
        (objective(kappa=1, beta=0.1, with_positive=True), 0.0),
        (objective(kappa=2, beta=0.1, with_positive=True), -0.9940007258),
        (objective(beta=0.1, with_positive=True), 0.1900415239),
    ],
)
def test_check_values(loss: RowObjective, expected: float) -> None:
    assert on_channels(loss, SIMILARITIES, TEMPERATURES, POSITIVE).item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("with_positive", [False, True])
@pytest.mark.parametrize("beta", [0.0, 0.1, 1.0])
def test_soft_mode_is_never_below_the_hardest_candidate(beta: float, with_positive: bool) -> None:
    rows, items = views(30)
    options = {"heads": 2, "features": 3, "beta": beta, "with_positive": with_positive, "reduction": "none"}
    soft, hard = objective(**options)(rows, items), objective(kappa=1, **options)(rows, items)
    assert (soft >= hard).all()


def one_temperature(rows: Tensor, heads: int, features: int) -> Tensor:
    """The same vectors with temperature features of zero: every temperature is the middle of the interval."""
    vectors, zeros = rows.detach().unflatten(1, (heads, -1)).split([WIDTH, features], dim=-1)
    return torch.cat([vectors, torch.zeros_like(zeros)], dim=-1).flatten(1)


@pytest.mark.parametrize("beta", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("with_positive", [False, True])
def test_with_one_temperature_it_is_nt_xent_and_the_regulariser_drops_out(with_positive: bool, beta: float) -> None:
    rows, items = views()
    rows = one_temperature(rows, 2, 3)
    expected = torch.zeros((), dtype=torch.float64)
    same, own = items[:, None] == items, torch.eye(len(items), dtype=torch.bool)
    for head in rows.unflatten(1, (2, -1))[..., :WIDTH].unbind(1):
        logits = F.normalize(head, dim=1) @ F.normalize(head, dim=1).T / ((LOW + HIGH) / 2)
        candidates = ~own if with_positive else ~same
        positive = logits[same & ~own]
        expected += (logits.masked_fill(~candidates, -math.inf).logsumexp(dim=1) - positive).mean()
    found = objective(heads=2, features=3, beta=beta, with_positive=with_positive)(rows, items)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kappa", [None, 1, 4])
def test_equal_heads_are_as_many_times_one_head(kappa: int | None) -> None:
    rows, items = views(heads=1)
    one = objective(kappa, features=3)(rows, items)
    three = objective(kappa, heads=3, features=3)(rows.repeat(1, 3), items)
    torch.testing.assert_close(three, 3 * one, rtol=1e-12, atol=1e-12)


def test_several_positives_count_by_their_mean() -> None:
    rows, _ = views(6, heads=1)
    labels = torch.arange(12) % 3
    pair = PairLikelihood(WIDTH, 0.1, LOW, HIGH)
    vectors, features = rows.detach().split([WIDTH, 3], dim=1)
    exponents = pair.exponent(F.normalize(vectors) @ F.normalize(vectors).T, pair.temperature(features @ features.T))
    same = labels[:, None] == labels
    expected = [
        torch.logsumexp(row[~alike], 0) - row[alike & (torch.arange(12) != index)].mean()
        for index, (row, alike) in enumerate(zip(exponents, same, strict=True))
    ]
    found = objective(features=3, reduction="none")(rows, labels)
    torch.testing.assert_close(found, torch.stack(expected))


def test_the_hardest_are_chosen_by_similarity_and_not_by_exponent() -> None:
    temperatures = torch.tensor([[0.25, 1.0, 0.06, 0.5]], dtype=torch.float64)
    pair = PairLikelihood(WIDTH, 0.1, LOW, HIGH)
    exponents = pair.exponent(SIMILARITIES, temperatures)[0]
    assert exponents[1] < exponents[2]
    found = on_channels(objective(kappa=1), SIMILARITIES, temperatures, POSITIVE)
    torch.testing.assert_close(found, exponents[1] - exponents[0])


def test_each_head_chooses_for_itself() -> None:
    rows, items = views(heads=2)
    heads = rows.unflatten(1, (2, -1))
    apart = [objective(kappa=2, features=3)(heads[:, head], items) for head in range(2)]
    torch.testing.assert_close(objective(kappa=2, heads=2, features=3)(rows, items), apart[0] + apart[1])


def test_of_equal_candidates_the_first_is_taken() -> None:
    similarity = torch.tensor([[0.5, 0.9, 0.5, 0.5, -math.inf], [0.1, 0.1, 0.1, 0.1, 0.1]])
    candidates = torch.tensor([[True] * 5, [False, True, True, False, True]])
    assert most_similar(similarity, candidates, 1).long().tolist() == [[0, 1, 0, 0, 0], [0, 1, 0, 0, 0]]
    assert most_similar(similarity, candidates, 2).long().tolist() == [[1, 1, 0, 0, 0], [0, 1, 1, 0, 0]]
    assert most_similar(similarity, candidates, 9).long().tolist() == [[1, 1, 1, 1, 0], [0, 1, 1, 0, 1]]


def test_only_the_positive_and_the_hardest_are_pulled() -> None:
    rows, items = views(heads=1)
    pull = score_gradients(objective(kappa=3, features=3), rows, items)
    assert pull.shape == (2, 18, 18)
    assert (pull != 0).sum(dim=2).eq(4).all()


def test_an_anchor_that_is_right_costs_nothing_in_the_hard_infonce_family() -> None:
    similarities = SIMILARITIES.clone().requires_grad_()
    temperatures = TEMPERATURES.clone().requires_grad_()
    loss = on_channels(objective(kappa=1, with_positive=True), similarities, temperatures, POSITIVE)
    assert loss.item() == 0
    assert all(not gradient.any() for gradient in torch.autograd.grad(loss, (similarities, temperatures)))


@pytest.mark.parametrize("kappa", [None, 2])
@pytest.mark.parametrize("with_positive", [False, True])
@pytest.mark.parametrize("labels", [[0] * 6, [0, 1, 2, 3, 4, 5]], ids=["no negatives", "no positives"])
def test_an_anchor_with_one_kind_of_pair_contributes_zero(
    labels: list[int], with_positive: bool, kappa: int | None
) -> None:
    rows, _ = views(3)
    loss = objective(kappa, heads=2, features=3, with_positive=with_positive)
    for way in (loss, tiled(loss, block=4)):
        value = way(rows, torch.tensor(labels))
        assert value.item() == 0
        assert not torch.autograd.grad(value, rows)[0].any()


def test_the_regulariser_uses_the_width_of_a_head() -> None:
    """A wider head makes the logarithm of the temperature count for more."""
    narrow, wide = (PairLikelihood(width, 1.0, LOW, HIGH) for width in (8, 128))
    tau, similarity = TEMPERATURES, SIMILARITIES
    torch.testing.assert_close(
        narrow.exponent(similarity, tau) - wide.exponent(similarity, tau), 60 * tau.log(), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"beta": -1.0}, "argument `beta`"),
        ({"low": 0.0}, "argument `low`"),
        ({"low": 1.0, "high": 1.0}, "argument `high`"),
        ({"heads": 0}, "argument `heads`: expected an integer >= 1"),
        ({"features": 0}, "argument `features`: expected an integer >= 1"),
        ({"kappa": 0}, "argument `kappa`: expected an integer >= 1"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        objective(**arguments)


def test_rows_of_another_width_and_bare_scores_are_refused() -> None:
    rows, items = views(heads=2)
    with pytest.raises(ValueError, match=r"argument `embeddings`: expected 33 columns, 3 x \(8 \+ 3\), got"):
        objective(heads=3, features=3)(rows, items)
    with pytest.raises(ValueError, match="argument `scores`: expected 2 channels, so call it on embeddings, got 1"):
        objective().on_scores(torch.eye(18), items)
    silent = rows.detach().clone()
    silent[3, WIDTH + 3 : 2 * WIDTH + 3] = 0  # the second head's vector alone
    with pytest.raises(ValueError, match="argument `embeddings`: expected vectors of non-zero norm on every head"):
        objective(heads=2, features=3)(silent, items)


def test_the_representation_states_the_constants() -> None:
    assert "kappa=2, heads=1, beta=0.1, low=0.05, high=1.05, with_positive=False" in repr(objective(kappa=2))
