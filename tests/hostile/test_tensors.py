"""Random assignment problems of extreme shapes and values: labels that are labels, or one sentence."""

import numpy as np
import pytest
import torch
from campaign import sentence_or_nothing, tries

from mira.assignment import assign, centre_and_sharpen, sinkhorn, softmax_labels, swapped_cross_entropy

pytestmark = pytest.mark.slow

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
ODD = [
    None,
    "x",
    [[1.0]],
    np.zeros((2, 2)),
    torch.zeros(2, 2).to_sparse(),
    torch.zeros(2, 2, device="meta"),
    torch.ones(2),
    3,
]


def logits_of(rng: np.random.Generator) -> torch.Tensor:
    shape = [int(2 ** rng.uniform(0, 6)) for _ in range(2)]
    if rng.random() < 0.3:
        shape = [int(rng.integers(1, 4)), *shape]
    size = 10.0 ** rng.uniform(-42, 30)
    values = torch.from_numpy(rng.standard_normal(shape)) * size
    kind = int(rng.integers(6))
    if kind == 0:
        values = torch.ones_like(values)
    elif kind == 1:
        values = values.round()
    elif kind == 2:
        values = values + 1e6 * size
    elif kind == 3 and rng.random() < 0.5:
        values.view(-1)[0] = float(rng.choice([np.nan, np.inf, -np.inf]))
    values = values.to(DTYPES[int(rng.integers(4))])
    return values.transpose(-1, -2) if rng.random() < 0.2 else values


def test_assignment_problems_of_every_kind() -> None:
    for _, rng in tries("assignment problems", 700):
        logits = logits_of(rng)
        given = {
            "temperature": float(10.0 ** rng.uniform(-6, 6)),
            "max_iterations": int(rng.integers(0, 12)),
            "tolerance": None if rng.random() < 0.5 else float(10.0 ** rng.uniform(-9, 0)),
        }
        if rng.random() < 0.3:
            given["prior"] = torch.from_numpy(10.0 ** rng.uniform(-300, 300, logits.shape[-1]))
        if rng.random() < 0.3:
            given["row_weights"] = torch.from_numpy(rng.uniform(-0.05, 1, logits.shape[-2]))
        beta = float(rng.choice([0.0, 0.5, 2 / 3, 0.9, 0.999, 1 - 1e-6]))
        calls = [
            lambda: assign(logits, beta=beta, **given),
            lambda: sinkhorn(logits, **given),
        ]
        for call in calls:
            found = sentence_or_nothing(call, (logits, beta, given), ValueError)
            if found is None:
                continue
            assert logits.isfinite().all()
            torch.testing.assert_close(
                found.probs.double().sum(-1), torch.ones(logits.shape[:-1]).double(), atol=1e-4, rtol=0
            )
            assert (found.probs >= 0).all()
            assert found.gap.isfinite().all()
            assert (found.gap >= 0).all()


def test_what_is_no_tensor_or_number(request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--jaxtyping-packages", None):
        pytest.skip("the checker of types speaks first; `make hostile` runs without it")
    good = torch.zeros(2, 4, 3)
    for _, rng in tries("arguments of no use", 300):
        odd = [ODD[int(rng.integers(len(ODD)))] for _ in range(2)]
        logits = odd[0] if rng.random() < 0.5 else good
        number = odd[1] if rng.random() < 0.5 else 0.5
        for call in (
            lambda: assign(logits, beta=number, row_weights=odd[0]),
            lambda: sinkhorn(logits, temperature=number),
            lambda: softmax_labels(logits, temperature=number),
            lambda: centre_and_sharpen(logits, centre=odd[1], temperature=0.5),
            lambda: swapped_cross_entropy(
                good,
                logits,
                odd[0],
                beta=number,
                temperature=0.2,
                student_temperature=0.1,
            ),
        ):
            sentence_or_nothing(call, (logits, number, odd), ValueError)
