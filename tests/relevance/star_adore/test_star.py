"""StarLoss: the check values, two kinds of negatives, masks by full relevance, and the same in every execution."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from tests.ranks import run_ranks
from torch import Tensor
from torch.nn import functional as F

from scorecraft.core import Cosine, Pairs, across_ranks, score_gradients, tiled
from scorecraft.relevance.star_adore import StarLoss

Q = torch.tensor([[1, 0], [0, 2]], dtype=torch.float64)
P = torch.tensor([[1, 1], [0.5, 1.5]], dtype=torch.float64)
G = torch.tensor([[2, 0], [-1, 1]], dtype=torch.float64)
OWN = torch.arange(2)


def batch(queries: int = 7, hard: int = 9, seed: int = 0) -> tuple[Tensor, Tensor, Pairs]:
    """Passages with duplicates, and queries to which more than their own positive is relevant."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(queries, 5, generator=generator, dtype=torch.float64).requires_grad_()
    passages = torch.randn(queries + hard, 5, generator=generator, dtype=torch.float64).requires_grad_()
    ids = torch.randint(0, 12, (queries + hard,), generator=generator)
    relevant = torch.randint(-1, 12, (queries, 3), generator=generator)
    return x, passages, Pairs.of_queries(torch.arange(queries), passages=ids, relevant=relevant)


def by_definition(x: Tensor, passages: Tensor, pairs: Pairs, alpha: float | None) -> Tensor:
    """Pair by pair; what stands behind the positives is hard."""
    _, negatives = pairs.masks()
    scores = x @ passages.T
    losses: dict[bool, list[Tensor]] = {False: [], True: []}
    for i in range(len(x)):
        for j in range(len(passages)):
            if negatives[i, j]:
                losses[j >= len(x)].append(F.softplus(scores[i, j] - scores[i, i], threshold=100))
    if alpha is None:
        return torch.stack(losses[False] + losses[True]).mean()
    return alpha * torch.stack(losses[False]).mean() + torch.stack(losses[True]).mean()


def test_check_values() -> None:
    loss, both = StarLoss(), torch.cat([P, G])

    def value(reference: Tensor, pairs: Pairs) -> float:
        return loss(Q, reference=reference, pairs=pairs).item()

    assert value(P, Pairs.of_queries(OWN, passages=2)) == pytest.approx(0.3936693358, abs=1e-10)
    assert value(both, Pairs.of_queries(OWN, passages=4)) == pytest.approx(0.4315629016, abs=1e-10)
    masked = Pairs.of_queries(OWN, passages=4, relevant=torch.tensor([[3], [-1]]))
    assert value(both, masked) == pytest.approx(0.4924898797, abs=1e-10)
    own_hard = torch.tensor([[0, 0, 1, 0], [0, 0, 0, 1]]).bool()
    own = Pairs.from_masks(torch.eye(2, 4).bool(), own_hard)
    assert value(both, own) == pytest.approx(0.8132616875, abs=1e-10)


@pytest.mark.parametrize("alpha", [None, 0.0, 0.3, 1.0])
def test_equal_to_the_definition(alpha: float | None) -> None:
    x, passages, pairs = batch()
    expected = by_definition(x, passages, pairs, alpha)
    gradients = torch.autograd.grad(expected, (x, passages))
    for loss in (StarLoss(alpha=alpha), tiled(StarLoss(alpha=alpha), block=4)):
        found = loss(x, reference=passages, pairs=pairs)
        torch.testing.assert_close(found, expected)
        for mine, theirs in zip(torch.autograd.grad(found, (x, passages)), gradients, strict=True):
            torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("alpha", [None, 0.3])
def test_gradcheck(alpha: float | None) -> None:
    x, passages, pairs = batch(4, 3)
    for loss in (StarLoss(alpha=alpha), tiled(StarLoss(alpha=alpha), block=3)):
        assert torch.autograd.gradcheck(lambda q, p, f=loss: f(q, reference=p, pairs=pairs), (x, passages))


def test_without_hard_documents_it_is_the_in_batch_loss() -> None:
    x, passages, _ = batch(6, 0)
    scores = x @ passages.T
    off = ~torch.eye(6, dtype=torch.bool)
    expected = F.softplus(scores - scores.diagonal()[:, None])[off].mean()
    pairs = Pairs.of_queries(torch.arange(6), passages=6)
    torch.testing.assert_close(StarLoss()(x, reference=passages, pairs=pairs), expected)
    torch.testing.assert_close(StarLoss(alpha=0.4)(x, reference=passages, pairs=pairs), 0.4 * expected)


def test_alpha_zero_is_the_extra_documents_alone() -> None:
    x, passages, _ = batch()
    pairs = Pairs.of_queries(torch.arange(7), passages=16)
    pull = score_gradients(StarLoss(alpha=0.0), x, reference=passages, pairs=pairs)
    off = ~torch.eye(7, dtype=torch.bool)
    assert (pull[:, :7][off] == 0).all()
    assert (pull[:, 7:] > 0).all()
    torch.testing.assert_close(pull.sum(dim=1), torch.zeros(7, dtype=torch.float64))


def test_a_hard_document_that_is_relevant_to_another_query_is_no_negative_of_it() -> None:
    x, passages, _ = batch(2, 1)
    ids = torch.tensor([10, 11, 12])
    pairs = Pairs.of_queries(OWN, passages=ids, relevant=torch.tensor([[10, -1], [11, 12]]))
    pull = score_gradients(StarLoss(), x, reference=passages, pairs=pairs)
    assert pull[0, 2] > 0
    assert pull[1, 2] == 0


def test_the_same_passage_twice_is_masked() -> None:
    x, passages, _ = batch(3, 1)
    pairs = Pairs.of_queries(torch.arange(3), passages=torch.tensor([5, 5, 6, 6]))
    pull = score_gradients(StarLoss(), x, reference=passages, pairs=pairs)
    assert pull[0, 1] == pull[1, 0] == pull[2, 3] == 0
    assert (pull[:2, 2:] > 0).all()


def test_one_constant_vector_added_to_all_documents_changes_nothing() -> None:
    x, passages, pairs = batch()
    moved = passages + torch.randn(5, dtype=torch.float64)
    loss = StarLoss(alpha=0.5)
    torch.testing.assert_close(loss(x, reference=moved, pairs=pairs), loss(x, reference=passages, pairs=pairs))


@pytest.mark.parametrize("alpha", [None, 0.5])
@pytest.mark.parametrize("wrapper", [lambda loss: loss, lambda loss: tiled(loss, block=1)], ids=["dense", "tiled"])
def test_no_pair_is_zero_with_zero_gradient(alpha: float | None, wrapper: object) -> None:
    x, passages, _ = batch(1, 0)
    value = wrapper(StarLoss(alpha=alpha))(x, reference=passages, pairs=Pairs.of_queries(OWN[:1], passages=1))
    assert value.item() == 0
    for gradient in torch.autograd.grad(value, (x, passages)):
        assert (gradient == 0).all()


def test_a_query_far_ahead_contributes_nothing_and_one_far_behind_is_finite() -> None:
    scores = torch.tensor([[500.0, -500.0], [500.0, -500.0]]).requires_grad_()
    pairs = Pairs.of_queries(OWN, passages=2)
    value = StarLoss().on_scores(scores, pairs=pairs)
    assert value.item() == 500
    (pull,) = torch.autograd.grad(value, scores)
    assert pull.tolist() == [[0, 0], [0.5, -0.5]]


def test_the_dense_form_compiles_in_one_graph() -> None:
    x, passages, pairs = batch()
    loss = StarLoss(alpha=0.5)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, reference=passages, pairs=pairs), loss(x, reference=passages, pairs=pairs))


def compare(rank: int, folder: str) -> None:
    """Two ranks with passages of their own, one with more hard documents, against one process with all of them."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(5, 4, generator=generator, dtype=torch.float64)
    positives = torch.randn(5, 4, generator=generator, dtype=torch.float64)
    hard = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    ids, hard_ids = torch.tensor([0, 1, 2, 1, 4]), torch.tensor([5, 2, 0, 7, 8, 5])
    relevant = torch.tensor([[0, 7], [1, -1], [2, 8], [1, -1], [4, 5]])
    rows, extra = (slice(0, 2), slice(0, 4)) if rank == 0 else (slice(2, 5), slice(4, 6))
    errors = {}
    for alpha in (None, 0.3):
        leaf = x.clone().requires_grad_()
        whole = Pairs.of_queries(torch.arange(5), passages=torch.cat([ids, hard_ids]), relevant=relevant)
        expected = StarLoss(alpha=alpha)(leaf, reference=torch.cat([positives, hard]), pairs=whole)
        (gradient,) = torch.autograd.grad(expected, leaf)
        for name, plain in (("dense", StarLoss(alpha=alpha)), ("tiled", tiled(StarLoss(alpha=alpha), block=2))):
            own = x[rows].clone().requires_grad_()
            passages = torch.cat([positives[rows], hard[extra]])
            pairs = Pairs.of_queries(
                torch.arange(len(own)), passages=torch.cat([ids[rows], hard_ids[extra]]), relevant=relevant[rows]
            )
            value = across_ranks(plain)(own, reference=passages, pairs=pairs)
            value.backward()
            mean = value.detach().clone()
            dist.all_reduce(mean)
            errors[f"{name} {alpha}"] = [
                float((mean / 2 - expected).abs()), float((own.grad / 2 - gradient[rows]).abs().max())
            ]  # fmt: skip
    Path(folder, f"{rank}.json").write_text(json.dumps(errors))


def test_hard_documents_stay_hard_across_ranks(tmp_path: Path) -> None:
    run_ranks(compare, str(tmp_path))
    for rank in (0, 1):
        errors = json.loads((tmp_path / f"{rank}.json").read_text())
        assert len(errors) == 4
        assert all(error < 1e-12 for both in errors.values() for error in both), errors


def test_hyper_parameters_and_what_it_prints() -> None:
    with pytest.raises(ValueError, match="argument `alpha`: expected a finite number >= 0, got -1"):
        StarLoss(alpha=-1)
    assert repr(StarLoss()) == "StarLoss(alpha=None)"
    assert repr(StarLoss(alpha=0.5, score=20 * Cosine())) == "StarLoss(alpha=0.5, score=20 * Cosine())"
