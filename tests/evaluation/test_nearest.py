"""The search for neighbours: exact, ties in bank order, within the memory that it states."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mira.evaluation.nearest import nearest, peak_bytes


def expected(similarities: np.ndarray, k: int) -> np.ndarray:
    return np.argsort(-similarities, axis=1, kind="stable")[:, :k]


@settings(max_examples=150, deadline=None)
@given(
    count=st.integers(1, 300),
    queries=st.integers(0, 7),
    k=st.integers(1, 40),
    chunk=st.integers(1, 900),
    seed=st.integers(0, 1000),
)
@example(count=300, queries=7, k=1, chunk=64, seed=0)
def test_exact_whatever_the_chunk_and_ties_go_to_the_earlier(count, queries, k, chunk, seed) -> None:
    k = min(k, count)
    generator = torch.Generator().manual_seed(seed)
    # Axis vectors: cosine similarities are exactly -1, 0 or 1 whatever the order of summation, so nearly all tie.
    axes = torch.cat([torch.eye(3), -torch.eye(3)])
    bank = axes[torch.randint(6, (count,), generator=generator)] * 4
    asked = axes[torch.randint(6, (queries,), generator=generator)] * 2
    found = nearest(bank, asked, k, chunk=chunk)
    similarities = (asked / 2 @ (bank / 4).T).numpy()
    order = expected(similarities, k)
    np.testing.assert_array_equal(found.indices.numpy(), order)
    np.testing.assert_array_equal(found.similarities.numpy(), np.take_along_axis(similarities, order, axis=1))


def steps(order: str, count: int) -> torch.Tensor:
    """Directions in the plane whose similarity to (1, 0) takes 200 values, in an order that suits or harms a search."""
    angles = torch.arange(count, dtype=torch.float64) // (count // 200) / 200
    angles = {"falling": angles, "rising": angles.flip(0), "mixed": angles[torch.randperm(count)]}[order]
    return torch.stack([angles.cos(), angles.sin()], dim=1)


@pytest.mark.parametrize("order", ["falling", "rising", "mixed"])
@pytest.mark.parametrize("k", [1, 13, 100])
def test_the_order_of_the_bank_does_not_matter(order: str, k: int) -> None:
    torch.manual_seed(0)
    bank = steps(order, 4000)
    asked = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.1]], dtype=torch.float64)
    found = nearest(bank, asked, k, chunk=3 * 256)
    # Bank rows of one angle are equal to the bit, so their similarities tie exactly.
    similarities = torch.nn.functional.normalize(asked, dim=1) @ torch.nn.functional.normalize(bank, dim=1).T
    np.testing.assert_array_equal(found.indices.numpy(), expected(similarities.numpy(), k))


def test_few_similarities_are_sorted(monkeypatch: pytest.MonkeyPatch) -> None:
    bank, queries = torch.randn(50_000, 8), torch.randn(64, 8)
    numbers = []
    for name in ("sort", "topk"):
        original = getattr(torch.Tensor, name)

        def counting(self, *args, original=original, **more):
            numbers.append(self.numel())
            return original(self, *args, **more)

        monkeypatch.setattr(torch.Tensor, name, counting)
    nearest(bank, queries, 20, chunk=1 << 20)
    assert sum(numbers) < len(bank) * len(queries) / 4


def test_similarities_held_at_a_time_stay_below_the_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    product = torch.mm
    monkeypatch.setattr(torch, "mm", lambda a, b, **more: sizes.append(len(a) * b.shape[1]) or product(a, b, **more))
    nearest(torch.randn(5000, 4), torch.randn(1500, 4), 10, chunk=100_000)
    assert sum(sizes) == 5000 * 1500
    assert max(sizes) <= 100_000


MEMORY = """
import sys
from pathlib import Path
import torch
from mira.evaluation.nearest import nearest, peak_bytes


def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


Q, D, K, CHUNK = 4_000, 256, 100, 1 << 20
nearest(torch.randn(3000, D), torch.randn(200, D), 10, chunk=CHUNK)  # what libraries allocate once
bank, queries = torch.randn(40_000, D), torch.randn(Q, D)
if sys.argv[1] == "rising":
    bank[:, 0] += torch.linspace(-30, 30, len(bank))
    queries[:, 0] += 30
Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
before = peak()
nearest(bank, queries, K, chunk=CHUNK)
print(peak() - before, peak_bytes(Q, D, K, chunk=CHUNK))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
@pytest.mark.parametrize("order", ["mixed", "rising"])
def test_memory_above_the_inputs_is_what_the_formula_says(order: str) -> None:
    done = subprocess.run([sys.executable, "-c", MEMORY, order], capture_output=True, text=True, check=True)
    used, stated = map(int, done.stdout.split())
    assert stated / 4 < used <= stated
    assert stated < 40_000 * 4_000 * 4 / 5  # far below all similarities


def test_the_stated_memory_of_imagenet() -> None:
    # 50,000 queries of width 2048, k 200, whatever the size of the bank.
    assert peak_bytes(50_000, 2048, 200) < 1.5e9
