"""The Mann-Whitney loss: values by closed form, both evaluations, its gradient, ranks, and what it is a bound of."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from tests.ranks import run_ranks
from torch import Tensor

from scorecraft.core import Cosine, Dot, InfoNCELoss, Pairs, across_ranks, citation, score_gradients, tiled
from scorecraft.relevance.mw import MannWhitneyLoss, mann_whitney_loss, pooled_aoc, pooled_auc
from scorecraft.relevance.mw.loss import Method

METHODS = ("exact", "chebyshev")
MATRIX = [[2.0, 1.0, 0.0], [0.0, 1.0, -1.0], [1.0, 0.0, 3.0]]


def numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def two_samples(positives: Tensor, negatives: Tensor) -> tuple[Tensor, Tensor]:
    scores = torch.cat([positives, negatives]).requires_grad_()
    return scores, torch.arange(len(scores)) < len(positives)


def gaussian(
    p: int = 200, n: int = 1500, *, spread: float = 2.0, shift: float = 1.0, seed: int = 0
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    draws = [spread * torch.randn(k, generator=generator, dtype=torch.float64) for k in (p, n)]
    return two_samples(draws[0] + shift, draws[1])


def value_and_gradient(function: Callable[..., Tensor], *args: Any, **options: Any) -> tuple[Tensor, Tensor]:
    loss = function(*args, **options)
    return loss.detach(), torch.autograd.grad(loss, args[0])[0]


def by_definition(scores: Tensor, relevance: Tensor, weights: Tensor | None = None) -> Tensor:
    gap = scores[~relevance] - scores[relevance][:, None]
    losses = torch.logaddexp(gap, torch.zeros_like(gap))
    if weights is None:
        return losses.mean()
    pairs = weights[relevance][:, None] * weights[~relevance]
    return (losses * pairs).sum() / pairs.sum()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "positives, negatives, temperature, loss, gradient",
    [
        ((1, 0), (0.5, -1), 1.0, 0.4720859167, (-0.1241858977, -0.2228501881, 0.25, 0.0970360858)),
        ((1, 1), (1, 0), 1.0, 0.5032044340, (None, None, 0.25, 0.1344707107)),
        ((0.8, 0.3), (0.5, 0.1, -0.2), 0.05, 0.6731369622, (-0.0082448558, -3.3334846596, None, None, None)),
        ((-400,), (400,), 1.0, 800.0, (-1.0, 1.0)),
    ],
    ids=["1", "2 ties", "3 temperature", "5 linear tail"],
)
def test_check_values(method: Method, positives: tuple[float, ...], negatives: tuple[float, ...], temperature: float,
                      loss: float, gradient: tuple[float | None, ...]) -> None:  # fmt: skip
    scores, relevance = two_samples(numbers(*positives), numbers(*negatives))
    found, pull = value_and_gradient(lambda s: mann_whitney_loss(s / temperature, relevance, method=method), scores)
    assert found.item() == pytest.approx(loss, abs=1e-9)
    for mine, expected in zip(pull.tolist(), gradient, strict=True):
        assert expected is None or mine == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_check_values_of_a_matrix(method: Method) -> None:
    scores = torch.tensor(MATRIX, dtype=torch.float64, requires_grad=True)
    own = torch.eye(3, dtype=torch.bool)
    loss, pull = value_and_gradient(lambda s: mann_whitney_loss(s, own, method=method), scores)
    assert loss.item() == pytest.approx(0.2181483444, abs=1e-9)
    assert pull.diagonal().tolist() == pytest.approx([-0.0523843046, -0.1070015103, -0.0221483152], abs=1e-9)
    off_diagonal = [0.0493413524, 0.0241983454, 0.0241983454, 0.0102563892, 0.0493413524, 0.0241983454]
    assert pull[~own].tolist() == pytest.approx(off_diagonal, abs=1e-9)
    shifted = scores + numbers(0, 10, 20)[:, None]
    assert mann_whitney_loss(shifted, own, method=method).item() == pytest.approx(4.0031875360, abs=1e-9)
    for matrix in (scores, shifted):
        assert InfoNCELoss()(matrix, own.double()).item() == pytest.approx(0.3283526495, abs=1e-9)
    assert pooled_auc(scores, own).item() == pytest.approx(0.9444444444, abs=1e-9)
    assert pooled_auc(shifted, own).item() == pytest.approx(0.6666666667, abs=1e-9)


@pytest.mark.parametrize("spread", [1.0, 10.0, 100.0])
@pytest.mark.parametrize(
    "nodes, of_loss, of_gradient",
    [(4, 1e-6, 1e-5), (6, 1e-10, 1e-8), (8, 1e-12, 1e-11), (12, 1e-13, 1e-13), (16, 1e-13, 1e-13)],
)
def test_linear_time_equals_all_pairs(spread: float, nodes: int, of_loss: float, of_gradient: float) -> None:
    scores, relevance = gaussian(spread=spread)
    exact, pull = value_and_gradient(mann_whitney_loss, scores, relevance, method="exact")
    found, slope = value_and_gradient(mann_whitney_loss, scores, relevance, method="chebyshev", nodes=nodes)
    assert abs(found - exact) <= of_loss * exact
    assert (slope - pull).abs().max() <= of_gradient * pull.abs().max()


@pytest.mark.parametrize("method", METHODS)
def test_equals_the_definition_with_weights(method: Method) -> None:
    scores, relevance = gaussian(30, 80)
    weights = torch.rand(110, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for given in (None, weights, weights * (weights > 0.5)):
        found, pull = value_and_gradient(mann_whitney_loss, scores, relevance, weights=given, method=method)
        expected, slope = value_and_gradient(by_definition, scores, relevance, given)
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=0)
        torch.testing.assert_close(pull, slope, rtol=0, atol=1e-13)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("far", [25.0, 39.0, 41.0, 45.0, 1000.0])
def test_far_panels_are_linear(method: Method, far: float) -> None:
    """The seam of the table: beyond it only counts and sums are left."""
    scores, relevance = two_samples(numbers(0.1, -far, far + 0.3), numbers(-0.2, far - 0.05, -far + 0.6))
    found, pull = value_and_gradient(mann_whitney_loss, scores, relevance, method=method)
    expected, slope = value_and_gradient(by_definition, scores, relevance)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(pull, slope, rtol=0, atol=1e-12)


def test_small_losses_keep_their_digits() -> None:
    scores, relevance = gaussian(spread=1.0, shift=25.0)
    exact = mann_whitney_loss(scores, relevance, method="exact")
    assert exact < 1e-9
    torch.testing.assert_close(mann_whitney_loss(scores, relevance, method="chebyshev"), exact, rtol=1e-8, atol=0)


def test_scores_on_the_ends_of_panels() -> None:
    steps = torch.arange(-8, 9, dtype=torch.float64) / 2
    scores, relevance = two_samples(
        torch.cat([steps, torch.nextafter(steps, steps - 1)]), torch.cat([steps + 0.5, steps])
    )
    for dtype in (torch.float64, torch.float32):
        leaf = scores.detach().to(dtype).requires_grad_()
        found, pull = value_and_gradient(mann_whitney_loss, leaf, relevance, method="chebyshev")
        expected, slope = value_and_gradient(by_definition, leaf, relevance)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(pull, slope)


@pytest.mark.parametrize("method", METHODS)
def test_properties(method: Method) -> None:
    scores, relevance = gaussian(100, 300)

    def loss(s: Tensor, r: Tensor = relevance) -> Tensor:
        return mann_whitney_loss(s, r, method=method)

    value, pull = value_and_gradient(loss, scores)
    torch.testing.assert_close(loss(scores + 3.217), value, rtol=1e-10, atol=0)  # one constant changes nothing
    assert pull.sum().abs() < 1e-12
    assert (pull[relevance] < 0).all()
    assert (pull[~relevance] > 0).all()
    assert pooled_aoc(scores, relevance) <= value / math.log(2)
    repeated = torch.cat([scores, scores[relevance].repeat(2)])
    torch.testing.assert_close(loss(repeated, torch.cat([relevance, relevance.new_ones(200)])), value)
    mean_gap = scores[relevance].mean() - scores[~relevance].mean()
    torch.testing.assert_close(loss(scores / 1e4), math.log(2) - mean_gap / 2e4, rtol=0, atol=1e-6)


@pytest.mark.parametrize("queries", [2, 10, 100])
def test_what_a_softmax_cannot_see(queries: int) -> None:
    """Each query perfectly separated, all of them shifted apart: no InfoNCE to speak of, and an AUC near one half."""
    separated = 60.0 * torch.eye(queries, dtype=torch.float64)
    scores = separated + 200.0 * torch.arange(queries, dtype=torch.float64)[:, None]
    own = torch.eye(queries, dtype=torch.bool)
    assert InfoNCELoss()(scores, own.double()) < 1e-20
    assert pooled_auc(scores, own).item() == pytest.approx((queries + 1) / (2 * queries), abs=1e-12)
    assert pooled_aoc(scores, own) <= mann_whitney_loss(scores, own) / math.log(2)
    assert pooled_auc(separated, own) == 1


def test_within_and_across_queries() -> None:
    """`L = L_within / B + (B - 1) / B L_cross`."""
    scores = 2 * torch.randn(9, 14, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    own = torch.eye(9, 14, dtype=torch.bool)
    gap = scores[None] - scores[own][:, None, None]  # [positive, row, column]
    losses = torch.logaddexp(gap, torch.zeros_like(gap))
    negatives = (~own)[None].expand(9, -1, -1)
    same_row = torch.eye(9, dtype=torch.bool)[:, :, None] & negatives
    within, cross = losses[same_row].mean(), losses[negatives & ~same_row].mean()
    torch.testing.assert_close(mann_whitney_loss(scores, own), within / 9 + 8 / 9 * cross)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("relevance", [[1, 1, 1], [0, 0, 0]], ids=["no negative", "no positive"])
def test_one_class_is_zero_with_zero_gradient(method: Method, relevance: list[int]) -> None:
    scores = numbers(1, 2, 3).requires_grad_()
    loss = mann_whitney_loss(scores, torch.tensor(relevance), method=method)
    assert loss.item() == 0
    assert torch.equal(torch.autograd.grad(loss, scores)[0], torch.zeros(3).double())
    nothing = mann_whitney_loss(scores, torch.tensor([1, 0, 1]), torch.zeros(3, dtype=torch.bool), method=method)
    assert torch.autograd.grad(nothing, scores)[0].abs().sum() == nothing == 0


@pytest.mark.parametrize("method", METHODS)
def test_what_is_left_out_takes_no_part(method: Method) -> None:
    scores, relevance = gaussian(20, 60)
    value, pull = value_and_gradient(mann_whitney_loss, scores, relevance, method=method)
    spoilt = torch.cat([scores.detach(), numbers(-math.inf, math.nan, 1e30, 7.0)]).requires_grad_()
    labels = torch.cat([relevance, torch.tensor([True, False, True, False])])
    where = torch.ones(84, dtype=torch.bool)
    where[81:] = False
    found, slope = value_and_gradient(mann_whitney_loss, spoilt, labels, where, method=method)
    torch.testing.assert_close(found, value, rtol=1e-13, atol=0)
    torch.testing.assert_close(slope, torch.cat([pull, torch.zeros(4).double()]), rtol=0, atol=1e-14)


@pytest.mark.parametrize("method", METHODS)
def test_gradient_is_the_derivative(method: Method) -> None:
    scores, relevance = gaussian(4, 7)
    assert torch.autograd.gradcheck(lambda s: mann_whitney_loss(s, relevance, method=method), (scores,), atol=1e-8)
    loss = mann_whitney_loss(scores, relevance, method=method)
    with pytest.raises(RuntimeError, match="differentiable once"):
        torch.autograd.grad(loss, scores, create_graph=True)
    with torch.no_grad():
        assert not mann_whitney_loss(scores, relevance, method=method).requires_grad


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("method", METHODS)
def test_lower_precisions(method: Method, dtype: torch.dtype) -> None:
    scores, relevance = gaussian(100, 900)
    rounded = scores.detach().to(dtype).requires_grad_()
    found, pull = value_and_gradient(mann_whitney_loss, rounded, relevance, method=method)
    expected, slope = value_and_gradient(by_definition, rounded.detach().double().requires_grad_(), relevance)
    assert found.dtype == torch.float32
    assert pull.dtype == dtype
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=0)
    atol = {torch.float16: 5e-6, torch.bfloat16: 5e-5, torch.float32: 1e-8}[dtype]  # of rounding the gradient
    torch.testing.assert_close(pull.double(), slope, rtol=0, atol=atol)


@pytest.mark.parametrize("method", ["auto", *METHODS])
def test_compiles_in_one_graph(method: Method) -> None:
    scores, relevance = gaussian(20, 60)
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda s: 2 * mann_whitney_loss(s, relevance, method=method), fullgraph=True, backend="aot_eager"
    )
    found, pull = value_and_gradient(compiled, scores)
    expected, slope = value_and_gradient(lambda s: 2 * mann_whitney_loss(s, relevance, method=method), scores)
    assert torch.equal(found, expected)
    assert torch.equal(pull, slope)


def test_auto_takes_the_quick_way_and_looks_at_pairs_where_it_cannot() -> None:
    few, many = gaussian(20, 60), gaussian(200, 3000)
    for (scores, relevance), method in ((few, "exact"), (many, "chebyshev")):
        assert torch.equal(mann_whitney_loss(scores, relevance), mann_whitney_loss(scores, relevance, method=method))
    scores, relevance = many[0] * 1e6, many[1]
    assert torch.equal(mann_whitney_loss(scores, relevance), mann_whitney_loss(scores, relevance, method="exact"))
    with pytest.raises(ValueError, match="argument `scores`: expected finite scores that range over less than"):
        mann_whitney_loss(scores, relevance, method="chebyshev")


REFUSED = {
    "scores": [({"scores": torch.arange(4)}, "floating-point"),
               ({"scores": numbers(0, 1, math.nan, 2)}, "finite values"),
               ({"scores": numbers(0, 1, math.inf, 2)}, "finite values")],
    "relevance": [({"relevance": torch.zeros(3)}, "one label per score"),
                  ({"relevance": numbers(0, 1, 2, 0)}, "0 or 1"),
                  ({"relevance": torch.tensor([0, 1, -1, 0])}, "0 or 1")],
    "where": [({"where": torch.ones(4)}, "bool tensor")],
    "weights": [({"weights": torch.ones(3)}, "floating-point weights"), ({"weights": -torch.ones(4)}, ">= 0")],
    "method": [({"method": "fast"}, "one of")],
    "nodes": [({"nodes": 1}, r"in \[2, 16\]"), ({"nodes": 17}, r"in \[2, 16\]"), ({"nodes": 8.0}, "integer")],
}  # fmt: skip


@pytest.mark.parametrize("argument, case", [(name, case) for name, cases in REFUSED.items() for case in cases])
def test_bad_input_is_refused_in_one_line(argument: str, case: tuple[dict[str, Any], str]) -> None:
    call = {"scores": numbers(0, 1, 2, 3), "relevance": torch.tensor([0, 1, 0, 1])} | case[0]
    with pytest.raises(ValueError, match=f"argument `{argument}`: expected .*{case[1]}.*, got .+") as caught:
        mann_whitney_loss(**call)
    assert "\n" not in str(caught.value)


def queries_and_passages(n: int = 40, m: int = 60, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    queries = torch.randn(n, 6, generator=generator, dtype=torch.float64).requires_grad_()
    passages = torch.randn(m, 6, generator=generator, dtype=torch.float64).requires_grad_()
    return queries, passages, torch.randperm(m, generator=generator)[:n]


@pytest.mark.parametrize("score", [20 * Cosine(), Dot()], ids=repr)
def test_queries_against_passages(score: Any) -> None:
    queries, passages, own = queries_and_passages()
    identities = torch.arange(60)
    identities[own[0]] = identities[own[1]]  # one passage twice: what is relevant to a query is no negative of it
    pairs = Pairs.of_queries(own, passages=identities)
    loss = MannWhitneyLoss(score=score)
    scores = score.scores(score.prepare(queries), score.prepare(passages))[0]
    positives, negatives = pairs.masks()
    assert (positives | negatives).sum() == 40 * 60 - 2
    expected = by_definition(scores[positives | negatives], positives[positives | negatives])
    slopes = torch.autograd.grad(expected, (queries, passages), retain_graph=True)
    for way in (loss, tiled(loss, block=16), 0.5 * loss + 0.5 * tiled(loss)):
        found = way(queries, reference=passages, pairs=pairs)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)
        for mine, slope in zip(torch.autograd.grad(found, (queries, passages)), slopes, strict=True):
            torch.testing.assert_close(mine, slope, rtol=1e-8, atol=1e-11)
    pull = score_gradients(loss, queries, reference=passages, pairs=pairs)
    torch.testing.assert_close(pull, torch.autograd.grad(expected, scores)[0], rtol=1e-8, atol=1e-12)


def test_tiled_refuses_what_no_table_can_hold() -> None:
    queries, passages, own = queries_and_passages()
    pairs = Pairs.of_queries(own, passages=60)
    loss = tiled(MannWhitneyLoss(score=1e6 * Dot()))
    with pytest.raises(ValueError, match="argument `scores`: expected finite scores that range over less than 524"):
        loss(queries, reference=passages, pairs=pairs)


def test_what_it_prints_and_cites() -> None:
    assert "nodes=6" in repr(MannWhitneyLoss(nodes=6))
    assert "2510.00137" in citation(MannWhitneyLoss())
    with pytest.raises(ValueError, match="argument `nodes`"):
        MannWhitneyLoss(nodes=0)


def share_pairs(rank: int, folder: str, sizes: tuple[int, int]) -> None:
    scores, relevance = gaussian(50, 150)
    order = torch.randperm(200, generator=torch.Generator().manual_seed(3))
    part = order[: sizes[0]] if rank == 0 else order[sizes[0] :]
    found, pull = value_and_gradient(
        lambda s: mann_whitney_loss(s, relevance[part], group=dist.group.WORLD), scores.detach()[part].requires_grad_()
    )
    expected, slope = value_and_gradient(mann_whitney_loss, scores, relevance, method="exact")
    errors = {"loss": abs(float(found - expected)), "gradient": float((pull / 2 - slope[part]).abs().max())}

    queries, passages, _ = queries_and_passages(40, 40)
    mine = slice(0, sizes[0] // 5) if rank == 0 else slice(sizes[0] // 5, 40)
    loss = MannWhitneyLoss(score=20 * Cosine())
    plain = loss(queries, reference=passages, pairs=Pairs.of_queries(torch.arange(40), passages=40))
    slopes = torch.autograd.grad(plain, (queries, passages))
    own = (queries.detach()[mine].requires_grad_(), passages.detach()[mine].requires_grad_())
    pairs = Pairs.of_queries(torch.arange(len(own[0])), passages=torch.arange(40)[mine])
    value = across_ranks(tiled(loss, block=16))(own[0], reference=own[1], pairs=pairs)
    pulls = torch.autograd.grad(value, own)
    errors["in batch"] = max(
        abs(float((value - plain).detach())),
        *(float((a / 2 - b[mine]).abs().max()) for a, b in zip(pulls, slopes, strict=True)),
    )
    Path(folder, f"{rank}.json").write_text(json.dumps(errors))


@pytest.mark.parametrize("sizes", [(100, 100), (30, 170)], ids=["even", "uneven"])
def test_ranks_share_all_pairs_through_moments(sizes: tuple[int, int], tmp_path: Path) -> None:
    run_ranks(share_pairs, str(tmp_path), sizes)
    for rank in range(2):
        for what, error in json.loads((tmp_path / f"{rank}.json").read_text()).items():
            assert error < 1e-11, what
