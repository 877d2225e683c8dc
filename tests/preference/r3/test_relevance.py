"""Pooling, dot products, calibration to an encoder, and embeddings that are kept."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from scorecraft.preference.r3 import CachedEncoder, Calibration, calibrate, contriever, cosine, mean_pool, row_relevance


def letters(texts: list[str]) -> Tensor:
    """Counts of the letters a to d."""
    return torch.tensor([[float(text.count(letter)) for letter in "abcd"] for text in texts])


def test_check_value_of_the_specification() -> None:
    hidden = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [9.0, 9.0]]], dtype=torch.float64)
    pooled = mean_pool(hidden, torch.tensor([[1, 1, 0]]))
    assert pooled.tolist() == [[2.0, 3.0]]
    assert row_relevance(pooled, torch.tensor([[1.0, -1.0]], dtype=torch.float64)).tolist() == [-1.0]
    assert mean_pool(hidden, torch.tensor([[True, True, False]])).tolist() == [[2.0, 3.0]]


def test_nothing_to_pool_is_zero() -> None:
    pooled = mean_pool(torch.full((2, 3, 4), 7.0), torch.tensor([[0, 0, 0], [0, 1, 0]]))
    assert pooled.tolist() == [[0.0] * 4, [7.0] * 4]


def test_half_precision_is_pooled_in_single() -> None:
    hidden = torch.tensor([[[1.0]] + [[2**-9]] * 512], dtype=torch.bfloat16)
    pooled = mean_pool(hidden, torch.ones(1, 513, dtype=torch.int64))
    assert pooled.dtype == torch.float32
    assert pooled.item() == pytest.approx(2 / 513, rel=1e-6)  # summed in bfloat16 the small ones would be lost
    first = torch.tensor([[1.0, 2**-9]], dtype=torch.bfloat16)
    assert row_relevance(first, torch.ones(1, 2, dtype=torch.bfloat16)).item() == 1 + 2**-9
    assert row_relevance(first.double(), torch.ones(1, 2, dtype=torch.float64)).dtype == torch.float64


def test_rows_are_the_diagonal() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 9, 5, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(row_relevance(first, second), (first @ second.T).diagonal(), rtol=1e-12, atol=1e-12)


def test_embeddings_are_refused() -> None:
    good = torch.ones(2, 3)
    with pytest.raises(ValueError, match=r"^argument `second`: expected embeddings of shape \(2, 3\), got float32"):
        row_relevance(good, torch.ones(3, 3))
    with pytest.raises(ValueError, match=r"^argument `first`: expected finite values only, got nan"):
        row_relevance(good * math.nan, good)
    with pytest.raises(ValueError, match=r"^argument `mask`: expected one entry per token, shape \(1, 4\)"):
        mean_pool(torch.ones(1, 4, 2), torch.ones(1, 3, dtype=torch.int64))


def test_calibration_is_the_line_of_the_code() -> None:
    paper = contriever()
    assert paper == Calibration()
    assert (paper.low, paper.high, paper.output_low, paper.output_high) == (0.0, 3.5, 0.0, 5.12)
    assert paper(2.1) == pytest.approx(2.1 / 3.5 * 5.12, abs=1e-14)
    assert paper(0.0) == 0.0
    assert paper(7.0) == pytest.approx(10.24)  # not clamped
    assert paper(-3.5) == pytest.approx(-5.12)
    torch.testing.assert_close(paper(torch.tensor([0.0, 3.5])), torch.tensor([0.0, 5.12]))
    shifted = Calibration(1.0, 3.0, 10.0, 20.0)
    assert [shifted(value) for value in (1.0, 2.0, 3.0)] == [10.0, 15.0, 20.0]
    assert contriever(128).output_high == 1.28
    assert (cosine().high, cosine(1024).output_high) == (1.0, 10.24)
    assert cosine()(1.0) == pytest.approx(3.5 * paper(1.0))  # what Contriever's range would lose of a cosine


@pytest.mark.parametrize(
    "values, name",
    [((1.0, 1.0), "high"), ((2.0, 1.0), "high"), ((0.0, 1.0, 5.0, 5.0), "output_high"), ((math.nan, 1.0), "low")],
)
def test_an_empty_range_is_refused(values: tuple[float, ...], name: str) -> None:
    with pytest.raises(ValueError, match=rf"^argument `{name}`: expected"):
        Calibration(*values)


def test_a_fitted_range_ends_at_the_percentile() -> None:
    responses = ["a" * count for count in range(1, 12)]  # relevance 2, 4, ..., 22 to "aa"
    found = calibrate(letters, responses, ["aa"] * 11, percentile=90.0, max_length=200)
    assert found == Calibration(0.0, 20.0, 0.0, 2.0)
    assert calibrate(letters, responses, ["aa"] * 11, percentile=95.0).high == pytest.approx(21.0)
    assert calibrate(letters, responses, ["aa"] * 11).high == pytest.approx(21.8)
    assert calibrate(letters, ["ab"], ["a"]).high == 1.0
    with pytest.raises(
        ValueError, match=r"^argument `references`: expected answers that the responses are relevant to"
    ):
        calibrate(letters, ["a", "b"], ["c", "d"])
    with pytest.raises(ValueError, match=r"^argument `references`: expected 2 texts, one per response, got 1"):
        calibrate(letters, ["a", "b"], ["c"])
    with pytest.raises(ValueError, match=r"^argument `references`: expected 1 texts, one per response, got 0"):
        calibrate(letters, [], [])
    with pytest.raises(ValueError, match=r"^argument `percentile`: expected a number in \(0, 100\]"):
        calibrate(letters, ["a"], ["a"], percentile=0)
    with pytest.raises(ValueError, match=r"^argument `max_length`"):
        calibrate(letters, ["a"], ["a"], max_length=0)


def test_a_text_is_embedded_once() -> None:
    asked: list[list[str]] = []

    def counting(texts: list[str]) -> Tensor:
        asked.append(texts)
        return letters(texts)

    kept = CachedEncoder(counting, limit=3)
    assert torch.equal(kept(["a", "b", "a"]), letters(["a", "b", "a"]))
    assert torch.equal(kept(["b", "ab"]), letters(["b", "ab"]))
    assert asked == [["a", "b"], ["ab"]]
    kept(["a"])
    kept(["c"])  # b has not been used for longest
    assert len(kept) == 3
    kept(["a", "ab", "c"])
    assert asked[2:] == [["c"]]
    kept(["b"])
    assert asked[3:] == [["b"]]
    assert torch.equal(kept(["a", "b", "c", "d", "a"]), letters(["a", "b", "c", "d", "a"]))  # more than are kept


def test_a_kept_row_does_not_hold_its_batch() -> None:
    kept = CachedEncoder(lambda texts: torch.ones(len(texts), 100))
    kept(["a", "b"])
    assert {row.untyped_storage().nbytes() for row in kept._kept.values()} == {400}


def test_encoders_run_without_gradient_and_are_looked_at() -> None:
    weight = torch.ones(4, 2, requires_grad=True)
    assert not CachedEncoder(lambda texts: letters(texts) @ weight)(["a"]).requires_grad
    assert CachedEncoder(lambda texts: letters(texts).bfloat16())(["a"]).dtype == torch.float32
    for broken, got in (
        (lambda texts: letters(texts)[:1], r"float32 tensor of shape \(1, 4\)"),
        (lambda texts: letters(texts)[0], r"float32 tensor of shape \(4,\)"),
        (lambda texts: letters(texts).long(), r"int64 tensor of shape \(2, 4\)"),
    ):
        with pytest.raises(
            ValueError, match=rf"^argument `encode`: expected embeddings \[2, d\], one per text, got {got}"
        ):
            CachedEncoder(broken)(["a", "b"])
    with pytest.raises(ValueError, match=r"^argument `encode`: expected finite embeddings, got nan at \[0, 0\]"):
        CachedEncoder(lambda texts: letters(texts) * math.nan)(["a", "b"])
    with pytest.raises(ValueError, match=r"^argument `limit`"):
        CachedEncoder(letters, limit=0)
    with pytest.raises(ValueError, match=r"^argument `texts`: expected at least one text"):
        CachedEncoder(letters)([])
