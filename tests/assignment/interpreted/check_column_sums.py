"""Run by test_kernels_interpreted.py: column sums and labels in Triton's interpreter."""

import pytest
import torch
from kernel_oracles import HALVES, log_labels, relative_error, sums_of_labels

from mira.assignment.kernels import FusedLabels, column_sums, write_labels
from mira.assignment.kernels.rows import base_2_scale

# Programs of several tiles, as at real sizes.
WHOLE_ROWS = {"tile": 256, "programs": 4}
TWO_PASSES = {"widest_row": 16, "block": 32, "tile": 128, "programs": 8}
SCALE = 3.0


def problem(views: int, rows: int, width: int, points: int, spread: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(rows)
    logits = spread * torch.randn(views, rows, width, generator=generator, dtype=torch.float64)
    return logits, spread * torch.randn(views, points, width, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("way", [WHOLE_ROWS, TWO_PASSES])
@pytest.mark.parametrize("dtype", [*HALVES, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(1, 1, 17, 1), (2, 19, 53, 2), (1, 10, 150, 1), (2, 5, 64, 2)])
def check_sums_are_those_of_the_definition(shape, dtype, way):
    logits, log_weights = problem(*shape)
    logits = logits.to(dtype)
    weights = torch.rand(*shape[:2], dtype=torch.float64).sqrt()
    tolerance = 1e-12 if dtype == torch.float64 else 3e-6
    scale = base_2_scale(SCALE, logits)
    for row_weights in (None, weights):
        found = column_sums(logits, scale, log_weights, row_weights, **way)
        assert relative_error(found, sums_of_labels(logits, SCALE, log_weights, row_weights)) < tolerance


@pytest.mark.parametrize("way", [WHOLE_ROWS, TWO_PASSES])
def check_the_same_bits_again(way):
    logits, log_weights = problem(2, 19, 53, 2)
    found, again = (column_sums(logits.float(), base_2_scale(SCALE, logits), log_weights, **way) for _ in range(2))
    assert torch.equal(found, again)


@pytest.mark.parametrize("way", [WHOLE_ROWS, TWO_PASSES])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-3), (torch.float64, 1e-11)])
def check_sums_far_below_single_precision(dtype, tolerance, way):
    """Columns of a few hundred nats less than others, one of none; rows of hardly any weight and of no weight."""
    logits, log_weights = problem(2, 33, 40, 2, spread=40.0)
    logits, log_weights = logits.to(dtype), log_weights - torch.linspace(0, 200, 40)
    log_weights[0, 0, 7] = -1e4
    weights = torch.rand(2, 33, dtype=torch.float64) ** 40
    weights[:, :5] = 0
    found = column_sums(logits, base_2_scale(SCALE, logits), log_weights, weights, **way)
    wanted = sums_of_labels(logits, SCALE, log_weights, weights)
    assert wanted[wanted > 1e-290].min() < 1e-100
    assert relative_error(found, wanted) < tolerance


@pytest.mark.parametrize("way", [WHOLE_ROWS, TWO_PASSES])
@pytest.mark.parametrize(
    ("size", "dtype"), [(1e4, torch.float32), (3.4e38, torch.float32), (6e4, torch.float16), (3e38, torch.bfloat16)]
)
def check_extreme_logits(size, dtype, way):
    pattern, log_weights = problem(3, 9, 40, 1)
    pattern = pattern.clamp(-1, 1)
    pattern[1, :, 3] = -1.0  # a prototype that no picture wants
    pattern[2] = pattern[2].sign()  # ties at the extremes
    logits = (pattern * size).to(dtype)
    for scale in (1e-3, 1.0, 3.4e38):
        found = column_sums(logits, base_2_scale(scale, logits), log_weights, **way)
        assert found.isfinite().all()
        assert torch.allclose(found.sum(-1), torch.full((3, 1), 9.0, dtype=torch.float64), rtol=1e-5)
        labels = write_labels(logits, base_2_scale(scale, logits), log_weights[:, 0], torch.float32)
        assert torch.allclose(labels.sum(-1), torch.ones(3, 9), rtol=1e-5)
        assert torch.allclose(labels.double().sum(1), found[:, 0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("way", [WHOLE_ROWS, TWO_PASSES])
def check_a_large_common_offset_costs_no_digits(way):
    logits, log_weights = problem(1, 30, 50, 1)
    shifted = (logits.float() * 1024).round() / 1024 + 4096
    found = column_sums(shifted, base_2_scale(SCALE, shifted), log_weights, **way)
    assert relative_error(found, sums_of_labels(shifted.double() - 4096, SCALE, log_weights)) < 1e-5


@pytest.mark.parametrize("way", [WHOLE_ROWS, TWO_PASSES])
def check_strided_logits_are_read_as_they_are(way):
    logits, log_weights = problem(4, 24, 48, 2)
    logits = logits.half()
    cases = [
        (logits[::2, 1::3], log_weights[::2]),
        (logits.transpose(0, 1)[:2, :, 3:43], log_weights[:2, :, 3:43]),
        (logits.mT[..., ::2], log_weights[:, :, :12]),  # no unit stride: copied
    ]
    for part, weights in cases:
        before = part.clone()
        found = column_sums(part, base_2_scale(SCALE, part), weights, **way)
        assert relative_error(found, sums_of_labels(part, SCALE, weights)) < 3e-6
        labels = write_labels(part, base_2_scale(SCALE, part), weights[:, 0], torch.float32, block=16)
        assert torch.allclose(labels.double(), log_labels(part, SCALE, weights[:, :1]).exp()[:, 0], atol=2e-7)
        assert torch.equal(part, before)


@pytest.mark.parametrize("dtype", [*HALVES, torch.float32, torch.float64])
def check_labels_are_those_of_the_definition(dtype):
    logits, log_weights = problem(2, 19, 77, 1)
    logits = logits.to(dtype)
    wanted = log_labels(logits, SCALE, log_weights).exp()[:, 0]
    out, tolerance = (torch.float64, 1e-14) if dtype == torch.float64 else (torch.float32, 3e-7)
    for block in (16, 128):
        found = write_labels(logits, base_2_scale(SCALE, logits), log_weights[:, 0], out, block=block)
        assert found.dtype == out
        assert torch.allclose(found.double(), wanted, rtol=0, atol=tolerance)


def check_more_points_than_a_program_takes():
    logits, log_weights = problem(2, 12, 20, 5)
    found = FusedLabels(logits, SCALE, torch.float64).column_sums(log_weights)
    assert relative_error(found, sums_of_labels(logits, SCALE, log_weights)) < 1e-12


def check_a_rank_without_rows():
    logits, log_weights = torch.empty(2, 0, 8), torch.zeros(2, 1, 8, dtype=torch.float64)
    labels = FusedLabels(logits, 1.0, torch.float32, torch.empty(2, 0, dtype=torch.float64))
    assert torch.equal(labels.column_sums(log_weights), torch.zeros(2, 1, 8, dtype=torch.float64))
    assert labels.labels(log_weights[:, 0]).shape == (2, 0, 8)


@pytest.mark.parametrize("size", [1e-300, 1.0, 1e300])
def check_row_weights_of_any_size(size):
    logits, log_weights = problem(2, 12, 20, 2)
    weights = torch.rand(2, 12, dtype=torch.float64)
    labels = FusedLabels(logits.float(), SCALE, torch.float32, weights * size)
    found = labels.column_sums(log_weights) / size
    assert relative_error(found, sums_of_labels(logits.float(), SCALE, log_weights, weights)) < 3e-6
