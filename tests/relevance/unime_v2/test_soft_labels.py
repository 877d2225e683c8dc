"""The check values and properties of the soft-label loss."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from scorecraft.core import Cosine, InfoNCELoss, Pairs, in_batch, list_score_gradients
from scorecraft.relevance.unime_v2 import SoftLabelAlignmentLoss, soft_label_weights

U = [[0.8, 0.6, 0.3], [0.5, 0.55, 0.1]]
S = [[0.9, 0.4, 0.1], [0.7, 0.65, 0.2]]


def tensor(values: list[list[float]]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def lists(count: int = 5, candidates: int = 9, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    u = 2 * torch.rand(count, candidates, generator=generator, dtype=torch.float64) - 1
    return u.requires_grad_(), torch.rand(count, candidates, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(
    "temperature, form, value, gradient",
    [
        (0.1, "exact", 0.1492596672, [[-1.1103706399, 1.0577103427, 0.0526602972],
                                      [-1.1981840508, 1.1850196714, 0.0131643794]]),
        (0.1, "released", 0.1492595564, None),
        (0.02, "exact", 1.0605247920, [[-0.0090791899, 0.0090791871, 0.0000000028],
                                       [-14.9850277829, 14.9850277804, 0.0000000025]]),
        (0.02, "released", 1.0604500378, [[-0.0053449797, 0.0053449807, -0.0000000010]]),
    ],
)  # fmt: skip
def test_check_values(temperature: float, form: str, value: float, gradient: list[list[float]] | None) -> None:
    loss = SoftLabelAlignmentLoss(temperature=temperature, form=form)  # type: ignore[arg-type]
    assert loss(tensor(U), tensor(S)).item() == pytest.approx(value, abs=1e-10)
    if gradient is not None:
        pull = list_score_gradients(loss, tensor(U), tensor(S))
        torch.testing.assert_close(pull[: len(gradient)], tensor(gradient), rtol=0, atol=1e-10)


def test_check_value_of_a_list_upside_down() -> None:
    u, s = tensor([[1, -1, -1, -1]]), tensor([[0, 0, 0, 1]])
    assert SoftLabelAlignmentLoss()(u, s).item() == pytest.approx(75.0, abs=1e-9)
    assert SoftLabelAlignmentLoss(form="released")(u, s).item() == pytest.approx(18.4206807440, abs=1e-10)


def test_the_released_form_is_the_formula_of_the_code() -> None:
    u, s = lists()
    p, q = (u / 0.05).softmax(1), (s / 0.05).softmax(1)
    expected = ((q * (q.log() - (p + 1e-8).log())).sum(1) + (p * (p.log() - (q + 1e-8).log())).sum(1)).mean() / 2
    found = SoftLabelAlignmentLoss(temperature=0.05, form="released")(u, s)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, u)[0], torch.autograd.grad(expected, u)[0])


def test_half_the_sum_of_both_divergences() -> None:
    u, s = lists()
    log_p, log_q = (u / 0.1).log_softmax(1), (s / 0.1).log_softmax(1)
    both = [F.kl_div(a, b, reduction="batchmean", log_target=True) for a, b in ((log_p, log_q), (log_q, log_p))]
    torch.testing.assert_close(SoftLabelAlignmentLoss(temperature=0.1)(u, s), (both[0] + both[1]) / 2)


@pytest.mark.parametrize("temperature", [0.02, 0.1, 1.0])
def test_the_closed_form_weights_are_the_derivative(temperature: float) -> None:
    u, s = lists()
    where = torch.rand(u.shape, generator=torch.Generator().manual_seed(1)) < 0.7
    loss = SoftLabelAlignmentLoss(temperature=temperature, reduction="sum")
    (gradient,) = torch.autograd.grad(loss(u, s, where), u)
    weights = soft_label_weights(u.detach(), s, where, temperature=temperature)
    torch.testing.assert_close(weights, gradient, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(weights.sum(1), torch.zeros(5, dtype=torch.float64), rtol=0, atol=1e-9)
    assert not weights[~where].any()


@pytest.mark.parametrize("form", ["exact", "released"])
def test_gradient_is_the_derivative(form: str) -> None:
    u, s = lists()
    loss = SoftLabelAlignmentLoss(temperature=0.3, form=form)  # type: ignore[arg-type]
    assert torch.autograd.gradcheck(lambda scores: loss(scores, s), (u,))
    assert torch.autograd.gradgradcheck(lambda scores: loss(scores, s), (u,))


def test_zero_exactly_where_the_difference_is_constant() -> None:
    _, s = lists()
    loss = SoftLabelAlignmentLoss(temperature=0.5, reduction="none")
    assert loss(s - 0.7, s).abs().max() < 1e-14
    spoilt = s.clone()
    spoilt[:, 3] += 0.01
    assert (loss(spoilt, s) > 1e-6).all()


def test_shifts_exchange_and_order_change_nothing() -> None:
    u, s = lists()
    loss = SoftLabelAlignmentLoss(temperature=0.1, reduction="none")
    expected = loss(u, s)
    assert (expected >= 0).all()
    torch.testing.assert_close(loss(u + 3, s), expected)
    torch.testing.assert_close(loss(u, s + 3), expected)
    torch.testing.assert_close(loss(s, u.detach() + 1), expected)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(loss(u[:, order], s[:, order]), expected)


def test_tied_soft_labels_stay_tied() -> None:
    u, s = torch.tensor([[0.4, 0.4, 0.1]]), torch.tensor([[0.2551316, 0.2551316, 0.4407560]])
    pull = list_score_gradients(SoftLabelAlignmentLoss(), u, s)[0]
    assert pull[0] == pull[1]


def test_one_hot_judges_leave_half_a_cross_entropy() -> None:
    """`KL(Q||P)` of a judge that is certain is the cross entropy of the positive; the other half diverges."""
    u, _ = lists()
    s = torch.zeros_like(u)
    s[:, 0] = 1
    temperature = 0.01
    log_p, log_q = (u / temperature).log_softmax(1), (s / temperature).log_softmax(1)
    half = F.kl_div(log_p, log_q, reduction="batchmean", log_target=True) / 2
    torch.testing.assert_close(half, F.cross_entropy(u / temperature, torch.zeros(5, dtype=torch.long)) / 2)
    losses = [SoftLabelAlignmentLoss(temperature=t)(u, s).item() for t in (0.1, 0.01, 0.001)]
    assert losses[1] / losses[0] == pytest.approx(10, rel=0.2)
    assert losses[2] / losses[1] == pytest.approx(10, rel=0.05)


def test_no_gradient_through_the_judge() -> None:
    u, s = lists()
    SoftLabelAlignmentLoss()(u, s.requires_grad_()).backward()
    assert s.grad is None or not s.grad.any()


def test_a_batch_is_the_mean_of_its_parts() -> None:
    """Each list is alone: local means over ranks or micro-batches have the value and the gradient of the batch."""
    u, s = lists(8)
    loss = SoftLabelAlignmentLoss()
    parts = (loss(u[:4], s[:4]) + loss(u[4:], s[4:])) / 2
    torch.testing.assert_close(parts, loss(u, s))
    torch.testing.assert_close(torch.autograd.grad(parts, u)[0], torch.autograd.grad(loss(u, s), u)[0])


def test_candidates_that_are_not_there() -> None:
    u, s = lists()
    where = torch.ones_like(u, dtype=torch.bool)
    where[:, 6:] = False
    loss = SoftLabelAlignmentLoss()
    torch.testing.assert_close(loss(u, s, where), loss(u[:, :6], s[:, :6]))
    padded = torch.where(where, u, -torch.inf)
    torch.testing.assert_close(loss(padded, torch.where(where, s, 0)), loss(u[:, :6], s[:, :6]))


@pytest.mark.parametrize("form", ["exact", "released"])
def test_a_list_without_a_choice_is_zero_with_zero_gradient(form: str) -> None:
    u, s = lists(3, 4)
    where = torch.zeros(3, 4, dtype=torch.bool)
    where[0, 0] = True  # only the positive
    where[1] = True
    loss = SoftLabelAlignmentLoss(form=form, reduction="none")(u, s, where)  # type: ignore[arg-type]
    assert loss[0].abs() < 1e-7
    assert loss[2] == 0
    (gradient,) = torch.autograd.grad(loss.sum(), u)
    assert gradient.isfinite().all()
    assert gradient[0].abs().max() < 1e-6
    assert not gradient[2].any()
    mean = SoftLabelAlignmentLoss()(u, s, where)
    torch.testing.assert_close(mean, SoftLabelAlignmentLoss(reduction="sum")(u, s, where) / 2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("form", ["exact", "released"])
def test_finite_where_probabilities_underflow(dtype: torch.dtype, form: str) -> None:
    u = torch.tensor([[-1.0, 1.0, 1.0], [60.0, -60.0, 0.0]], dtype=dtype, requires_grad=True)
    s = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]], dtype=dtype)
    loss = SoftLabelAlignmentLoss(form=form)(u, s)  # type: ignore[arg-type]
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    assert u.grad is not None
    assert u.grad.isfinite().all()
    assert form == "exact" or loss < 18.5


def test_an_in_batch_term_is_added_by_composition() -> None:
    generator = torch.Generator().manual_seed(3)
    queries = torch.randn(6, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    candidates = torch.randn(6, 3, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    judged = torch.rand(6, 3, generator=generator, dtype=torch.float64)
    scores = torch.einsum("bd,bcd->bc", F.normalize(queries, dim=1), F.normalize(candidates, dim=2))
    pairs = Pairs.of_queries(torch.arange(6), passages=6)
    term = in_batch(InfoNCELoss(), score=20 * Cosine())(queries, reference=candidates[:, 0], pairs=pairs)
    loss = SoftLabelAlignmentLoss()(scores, judged) + 0.1 * term
    gradients = torch.autograd.grad(loss, (queries, candidates))
    assert all(gradient.isfinite().all() and gradient.any() for gradient in gradients)


def test_it_compiles_in_one_graph() -> None:
    u, s = lists()
    for loss in (SoftLabelAlignmentLoss(), SoftLabelAlignmentLoss(form="released")):
        compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(u, s), loss(u, s))


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"temperature": math.nan}, {"form": "js"}])
def test_hyper_parameters_are_refused(options: dict[str, object]) -> None:
    (name,) = options
    with pytest.raises(ValueError, match=f"argument `{name}`: expected "):
        SoftLabelAlignmentLoss(**options)  # type: ignore[arg-type]


def test_bad_input_is_refused_in_one_line() -> None:
    loss = SoftLabelAlignmentLoss()
    for call, message in (
        ((tensor(U), tensor(S)[:1]), "`relevance`: expected one per candidate"),
        ((tensor(U), torch.full((2, 3), math.nan)), "`relevance`: expected finite values >= 0, got nan"),
        ((torch.full((2, 3), math.nan), tensor(S)), "`scores`: expected finite values"),
        ((torch.zeros(2, 0), torch.zeros(2, 0)), "`scores`: expected floating-point scores"),
    ):
        with pytest.raises(ValueError, match="argument " + message) as caught:
            loss(*call)
        assert "\n" not in str(caught.value)


def test_what_it_prints() -> None:
    assert repr(SoftLabelAlignmentLoss()) == "SoftLabelAlignmentLoss(temperature=0.02, reduction='mean')"
    assert "form='released'" in repr(SoftLabelAlignmentLoss(form="released"))
