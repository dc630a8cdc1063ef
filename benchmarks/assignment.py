"""Time and memory of `mira.assignment.assign` beside torch.softmax and its peers, and iterations to a certified gap.

`python -m benchmarks.assignment`. Every time is the median over rounds in which all candidates take turns, and stands
beside its ratio to softmax in the same rounds. On a CUDA device logits are bfloat16, otherwise float32.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from mira.assignment import assign, sinkhorn

TEMPERATURE = 0.225
BETA = 2 / 3
GAP = 1e-6
VIEWS = 2
SHAPES = ((256, 300), (512, 3000), (4096, 3000), (4096, 65536))
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPE = torch.bfloat16 if DEVICE.type == "cuda" else torch.float32


def random_cosines(views: int, pictures: int, prototypes: int, width: int = 64) -> Tensor:
    """Cosine logits of directions without structure: the start of a training."""
    generator = torch.Generator().manual_seed(0)
    features = torch.nn.functional.normalize(torch.randn(views, pictures, width, generator=generator), dim=-1)
    directions = torch.nn.functional.normalize(torch.randn(prototypes, width, generator=generator), dim=-1)
    return (features.to(DEVICE) @ directions.T.to(DEVICE)).to(DTYPE)


def clustered_cosines(views: int, pictures: int, prototypes: int, width: int = 64, clusters: int = 100) -> Tensor:
    """Cosine logits of pictures and prototypes around common centres, some of them rare: a trained network."""
    generator = torch.Generator().manual_seed(0)

    def around(centres: Tensor, spread: float = 0.08) -> Tensor:
        noise = spread * torch.randn(centres.shape, generator=generator)
        return torch.nn.functional.normalize(centres + noise, dim=-1)

    centres = around(torch.zeros(clusters, width))
    sizes = torch.softmax(torch.randn(clusters, generator=generator), 0)
    which = torch.multinomial(sizes, views * pictures, True, generator=generator).view(views, pictures)
    near = torch.randint(clusters, (prototypes,), generator=generator)
    return (around(centres[which]).to(DEVICE) @ around(centres[near]).T.to(DEVICE)).to(DTYPE)


def thirty_elementwise(logits: Tensor) -> Tensor:
    """The published number of iterations, written as passes over the matrix."""
    scaled = logits.float() / (TEMPERATURE * (1 - BETA))
    log_u = torch.zeros_like(scaled[..., :1, :])
    for _ in range(31):
        labels = torch.softmax(scaled - BETA / (1 - BETA) * log_u, -1)
        log_u = BETA * log_u + (1 - BETA) * labels.mean(-2, keepdim=True).log()
    return torch.softmax(scaled - BETA / (1 - BETA) * log_u, -1)


def candidates(logits: Tensor) -> dict[str, Callable[[], object]]:
    """What is compared: each makes new labels in float32 from the same logits."""
    problem = {"beta": BETA, "temperature": TEMPERATURE}
    # As good as what a loop has: the marginal of the batch before, here that of half of this one.
    marginal = assign(logits[:, ::2], **problem, tolerance=GAP).log_marginal
    cold, warm = {**problem, "tolerance": GAP}, {**problem, "tolerance": GAP, "initial_log_marginal": marginal}
    found: dict[str, Callable[[], object]] = {
        "softmax": lambda: torch.softmax(logits, -1, dtype=torch.float32),
        "30 elementwise": lambda: thirty_elementwise(logits),
        "Sinkhorn, 3": lambda: sinkhorn(logits, temperature=TEMPERATURE, max_iterations=3),
        "assign, cold": lambda: assign(logits, **cold),
        "assign, warm": lambda: assign(logits, **warm),
    }
    if DEVICE.type == "cuda":
        # As a training step would: so many iterations as reach the gap, nothing read by the host.
        fixed = {**problem, "tolerance": None, "check": False, "max_iterations": assign(logits, **cold).iterations}
        found["assign, fixed"] = lambda: assign(logits, **fixed)
        found["assign, CUDA graph"] = captured(lambda: assign(logits, **fixed).probs)
    return found


def captured(run: Callable[[], object]) -> Callable[[], object]:
    """The same work as one CUDA graph."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def median_times(runs: dict[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    """Median milliseconds of each; they take turns, so that a disturbance hits them alike."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    start_of_all = time.perf_counter()
    rounds = 0
    while rounds < 4 or (rounds < 30 and time.perf_counter() - start_of_all < seconds):
        for name, run in runs.items():
            synchronise()
            start = time.perf_counter()
            run()
            synchronise()
            if rounds:  # the first is a warm-up
                times[name].append(1e3 * (time.perf_counter() - start))
        rounds += 1
    return {name: statistics.median(samples) for name, samples in times.items()}


def synchronise() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def peak_memory(run: Callable[[], object]) -> int | None:
    """Bytes above what was there before at the worst moment, the result included; None where it cannot be read."""
    if DEVICE.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew (Linux)
        before = resident("VmRSS")
        run()
        return resident("VmHWM") - before
    except OSError:
        return None


def resident(field: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return 1024 * int(line.split()[1])


def free_memory() -> int:
    if DEVICE.type == "cuda":
        return int(torch.cuda.mem_get_info()[0])
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1])
    except OSError:
        return 8 << 30


def print_times(shapes: Sequence[tuple[int, int]]) -> None:
    where = torch.cuda.get_device_name() if DEVICE.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(
        f"assign: beta 2/3, temperature {TEMPERATURE}, gap <= {GAP:g}; {where}, {DTYPE} in, PyTorch {torch.__version__}"
    )
    print("ms (ratio to softmax in the same rounds); peak memory in matrices of float32, the result included")
    for pictures, prototypes in shapes:
        matrix = 4 * VIEWS * pictures * prototypes
        for name, make in (("random", random_cosines), ("clustered", clustered_cosines)):
            if matrix * 7 > free_memory():
                print(f"\n{VIEWS} x {pictures} x {prototypes}: not measured, {7 * matrix / 2**30:.0f} GiB are not free")
                break
            logits = make(VIEWS, pictures, prototypes)
            solved = assign(logits, beta=BETA, temperature=TEMPERATURE, tolerance=GAP)
            print(f"\n{VIEWS} x {pictures} x {prototypes}, {name}: {solved.iterations} iterations", end="")
            print(f", gap {float(solved.gap.max()):.0e}")
            del solved
            runs = candidates(logits)
            # The 30 iterations leave the allocator in another state than the rest finds it in: they have rounds of
            # their own, beside a softmax of their own.
            slow = {key: runs[key] for key in ("softmax", "30 elementwise")}
            times = median_times({key: run for key, run in runs.items() if key != "30 elementwise"}, seconds=4)
            base = dict.fromkeys(times, times["softmax"])
            if name == "clustered" and matrix < 1 << 30:  # beyond, they take minutes
                slow_times = median_times(slow, seconds=2)
                times["30 elementwise"] = slow_times["30 elementwise"]
                base["30 elementwise"] = slow_times["softmax"]
            for key, milliseconds in times.items():
                peak = peak_memory(runs[key]) if "graph" not in key else None
                memory = "not measured" if peak is None else f"{peak / matrix:5.2f}"
                print(f"  {key:<20} {milliseconds:10.2f} ({milliseconds / base[key]:5.1f})   memory {memory}")


def print_iterations() -> None:
    print(f"\nIterations to a gap of {GAP:g}, plain / accelerated (1 x 512 x 300)")
    betas = (0.5, 2 / 3, 0.75, 0.9, 0.97)
    print(f"{'logits':>10} {'temperature':>12}  " + "  ".join(f"{f'beta {beta:.2f}':>10}" for beta in betas))
    for name, make in (("random", random_cosines), ("clustered", clustered_cosines)):
        logits = make(1, 512, 300).float()
        for temperature in (0.225, 0.1):
            cells = []
            for beta in betas:
                arguments = {"beta": beta, "temperature": temperature, "tolerance": GAP, "max_iterations": 5000}
                plain = assign(logits, **arguments, accelerate=False).iterations
                cells.append(f"{f'{plain} / {assign(logits, **arguments).iterations}':>10}")
            print(f"{name:>10} {temperature:12}  " + "  ".join(cells))


def main(shapes: Sequence[tuple[int, int]] = SHAPES) -> None:
    print_times(shapes)
    print_iterations()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="leave out the largest matrix, which takes minutes")
    main(SHAPES[:-1] if parser.parse_args().small else SHAPES)
