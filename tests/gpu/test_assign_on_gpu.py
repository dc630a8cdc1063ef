"""The assignment on a CUDA device: the labels of the CPU, without waiting, copies or luck."""

import pytest
import torch
from kernel_oracles import HALVES, log_labels, relative_error, sums_of_labels

from mira.assignment import assign

pytestmark = pytest.mark.gpu

SCALE = 3.0


def make_logits(*shape: int, dtype: torch.dtype, spread: float = 1.0) -> torch.Tensor:
    generator = torch.Generator(device="cuda").manual_seed(0)
    return (spread * torch.randn(*shape, generator=generator, device="cuda")).to(dtype)


def make_weights(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).cuda()


@pytest.mark.parametrize("dtype", [*HALVES, torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("views", "rows", "width", "points"),
    [(1, 1, 1, 1), (2, 257, 300, 2), (2, 1024, 3000, 2), (1, 100, 8192, 2), (1, 64, 65_536, 2), (1, 9, 131_072, 1)],
)
def test_sums_and_labels_are_those_of_the_definition(views, rows, width, points, dtype):
    from mira.assignment.kernels import FusedLabels

    logits, log_weights = make_logits(views, rows, width, dtype=dtype), make_weights(views, points, width)
    row_weights = torch.rand(views, rows, dtype=torch.float64, device="cuda")
    out, tolerance = (torch.float64, 1e-11) if dtype == torch.float64 else (torch.float32, 1e-5)
    for weights in (None, row_weights):
        labels = FusedLabels(logits, SCALE, out, weights)
        found = labels.column_sums(log_weights)
        assert relative_error(found, sums_of_labels(logits, SCALE, log_weights, weights)) < tolerance
        assert torch.equal(found, labels.column_sums(log_weights)), "the same bits again"
    wanted = log_labels(logits, SCALE, log_weights[:, :1]).exp()[:, 0]
    assert (labels.labels(log_weights[:, 0]).double() - wanted).abs().max() < tolerance


@pytest.mark.parametrize("width", [500, 10_000])
def test_sums_far_below_single_precision(width):
    from mira.assignment.kernels import FusedLabels

    logits = make_logits(2, 70, width, dtype=torch.float32, spread=30.0)
    log_weights = make_weights(2, 2, width) - torch.linspace(0, 300, width, device="cuda")
    wanted = sums_of_labels(logits, SCALE, log_weights)
    assert wanted[wanted > 1e-290].min() < 1e-100
    assert relative_error(FusedLabels(logits, SCALE, torch.float32).column_sums(log_weights), wanted) < 1e-3


def test_a_matrix_of_more_than_2_31_elements():
    from mira.assignment.kernels import FusedLabels

    rows, width = 17_000, 131_072
    logits = torch.zeros(1, rows, width, dtype=torch.bfloat16, device="cuda")
    logits[0, -1, -1] = 30.0  # its label is 1; everything else is even
    log_weights = torch.zeros(1, 1, width, dtype=torch.float64, device="cuda")
    found = FusedLabels(logits, 1.0, torch.float32).column_sums(log_weights)[0, 0]
    assert found[-1] == pytest.approx(1 + (rows - 1) / width, rel=1e-5)
    assert torch.allclose(found[:-1], found.new_tensor((rows - 1) / width), rtol=1e-5)


def test_a_step_is_that_of_separate_operations():
    from mira.assignment.kernels import FusedMarginals
    from mira.assignment.log_domain import LogDomainLabels
    from mira.assignment.marginals import Marginals

    for width in (45, 3000):
        logits = 3 * make_logits(2, 300, width, dtype=torch.float64)
        labels = LogDomainLabels(logits, 1 / (1 - 0.9), torch.float64)
        start = make_weights(2, width)
        for accelerate in (True, False):
            wanted = Marginals(start, beta=0.9, accelerate=accelerate)
            found = FusedMarginals(start, beta=0.9, accelerate=accelerate)
            for _ in range(12):
                sums = labels.column_sums(wanted.log_u * (-0.9 / (1 - 0.9)))
                for marginals in (wanted, found):
                    marginals.take(sums, 1e-9)
                torch.testing.assert_close(found.gap, wanted.gap, rtol=1e-7, atol=1e-15)
                torch.testing.assert_close(found.best, wanted.best, rtol=0, atol=1e-8)
                for marginals in (wanted, found):
                    marginals.advance()
                torch.testing.assert_close(found.log_u, wanted.log_u, rtol=0, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("beta", [2 / 3, 0.9])
def test_labels_are_those_of_the_cpu(beta, dtype):
    logits = make_logits(2, 512, 700, dtype=dtype)
    arguments = {"beta": beta, "temperature": 0.5, "max_iterations": 12, "tolerance": None}
    rest = {"prior": torch.rand(700) + 0.1, "row_weights": torch.rand(512)}
    wanted = assign(logits.cpu(), **arguments, **rest)
    found = assign(logits, **arguments, **{name: value.cuda() for name, value in rest.items()})
    atol = 1e-8 if dtype == torch.float64 else 5e-5
    torch.testing.assert_close(found.probs.cpu(), wanted.probs, rtol=0, atol=atol)
    torch.testing.assert_close(found.gap.cpu(), wanted.gap, rtol=1e-2, atol=1e-8)
    again = assign(logits, **arguments, **{name: value.cuda() for name, value in rest.items()})
    assert torch.equal(found.probs, again.probs)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_errors_are_those_of_the_cpu(bad):
    logits = make_logits(1, 20, 30, dtype=torch.float32)
    logits[0, 3, 4] = bad
    sentences = []
    for device in ("cpu", "cuda"):
        with pytest.raises(ValueError, match="logits must be finite") as error:
            assign(logits.to(device), beta=0.5)
        sentences.append(str(error.value))
    assert sentences[0] == sentences[1]


def solve(logits: torch.Tensor) -> torch.Tensor:
    return assign(logits, beta=0.7, temperature=0.2, tolerance=None, max_iterations=6, check=False).probs


def test_the_host_never_waits():
    logits = make_logits(2, 256, 3000, dtype=torch.bfloat16)
    wanted = solve(logits)  # compiled by now
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = solve(logits)
    finally:
        torch.cuda.set_sync_debug_mode(before)
    assert torch.equal(found, wanted)


def test_a_cuda_graph_solves_for_other_logits():
    logits = make_logits(2, 256, 3000, dtype=torch.bfloat16)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        solve(logits)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        labels = solve(logits)
    others = logits.flip(1)
    logits.copy_(others)
    graph.replay()
    assert torch.equal(labels, solve(others))


def test_torch_compile_makes_one_graph_of_it():
    logits = make_logits(2, 256, 300, dtype=torch.bfloat16)
    compiled = torch.compile(solve, fullgraph=True)
    torch.testing.assert_close(compiled(logits), solve(logits), rtol=0, atol=1e-6)


def test_there_is_no_matrix_but_the_labels():
    logits = make_logits(2, 4096, 3000, dtype=torch.bfloat16)
    solve(logits)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.max_memory_allocated()
    labels = solve(logits)
    peak = torch.cuda.max_memory_allocated() - before
    assert peak < 1.25 * labels.nbytes


def test_logits_on_another_device_than_the_current():
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    logits = make_logits(1, 64, 300, dtype=torch.bfloat16)
    torch.testing.assert_close(solve(logits.to("cuda:1")).to("cuda:0"), solve(logits))
