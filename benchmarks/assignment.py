"""Time, iterations and memory of `mira.assignment.assign` beside torch.softmax on the same matrix.

Every time is the median over rounds in which all candidates take turns, and stands beside its ratio to softmax in the
same rounds: `python -m benchmarks.assignment`.
"""

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from mira.assignment import assign

TEMPERATURE = 0.225
BETA = 2 / 3
SHAPES = ((2, 256, 300), (2, 512, 3000), (1, 4096, 3000))


def random_cosines(views: int, pictures: int, prototypes: int, width: int = 64) -> Tensor:
    """Cosine logits of directions without structure: the start of a training."""
    generator = torch.Generator().manual_seed(0)
    features = torch.nn.functional.normalize(torch.randn(views, pictures, width, generator=generator), dim=-1)
    directions = torch.nn.functional.normalize(torch.randn(prototypes, width, generator=generator), dim=-1)
    return features @ directions.T


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
    return around(centres[which]) @ around(centres[near]).T


def thirty_elementwise(logits: Tensor) -> Tensor:
    """The published number of iterations, written as passes over the matrix."""
    scaled = logits / (TEMPERATURE * (1 - BETA))
    log_u = torch.zeros_like(logits[..., :1, :])
    for _ in range(31):
        labels = torch.softmax(scaled - BETA / (1 - BETA) * log_u, -1)
        log_u = BETA * log_u + (1 - BETA) * labels.mean(-2, keepdim=True).log()
    return torch.softmax(scaled - BETA / (1 - BETA) * log_u, -1)


def median_times(candidates: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median milliseconds of each candidate; they take turns, so that a disturbance hits them alike."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for round_ in range(rounds + 1):
        for name, candidate in candidates.items():
            start = time.perf_counter()
            candidate()
            if round_:  # the first is a warm-up
                times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(samples) for name, samples in times.items()}


def print_times() -> None:
    print(
        f"Time in ms (ratio to softmax in the same rounds); beta 2/3, temperature {TEMPERATURE}, gap <= 1e-6, float32"
    )
    print(
        f"{'views x N x K':>15} {'logits':>10}  {'softmax':>8}  {'30 elementwise':>16}"
        f"  {'assign, cold':>19}  {'assign, warm':>19}"
    )
    for shape in SHAPES:
        for name, make in (("random", random_cosines), ("clustered", clustered_cosines)):
            logits = make(*shape)
            arguments = {"beta": BETA, "temperature": TEMPERATURE, "tolerance": 1e-6}
            solved = assign(logits, **arguments)
            # As good as what a loop has: the marginal of the batch before, here that of half of this one.
            start = assign(logits[:, ::2], **arguments).log_marginal
            warm = assign(logits, **arguments, initial_log_marginal=start)
            times = median_times(
                {
                    "softmax": lambda logits=logits: torch.softmax(logits, -1),
                    "cold": lambda logits=logits, arguments=arguments: assign(logits, **arguments),
                    "warm": lambda logits=logits, arguments=arguments, start=start: assign(
                        logits, **arguments, initial_log_marginal=start
                    ),
                },
                rounds=15,
            )
            slow = median_times(
                {
                    "softmax": lambda logits=logits: torch.softmax(logits, -1),
                    "elementwise": lambda logits=logits: thirty_elementwise(logits),
                },
                rounds=3,
            )
            base = times["softmax"]
            size = "x".join(str(n) for n in shape)
            elementwise = f"{slow['elementwise']:8.1f} ({slow['elementwise'] / slow['softmax']:4.1f})"
            cold = f"{times['cold']:6.2f} ({times['cold'] / base:4.1f}) {solved.iterations:2d}it"
            warmed = f"{times['warm']:6.2f} ({times['warm'] / base:4.1f}) {warm.iterations}it"
            print(f"{size:>15} {name:>10}  {base:8.3f}  {elementwise:>16}  {cold:>19}  {warmed:>14}")


def print_iterations() -> None:
    print("\nIterations to a gap of 1e-6, plain / accelerated (1 x 512 x 300)")
    betas = (0.5, 2 / 3, 0.75, 0.9, 0.97)
    print(f"{'logits':>10} {'temperature':>12}" + "".join(f"  beta {beta:<6.3g}" for beta in betas))
    for name, make in (("random", random_cosines), ("clustered", clustered_cosines)):
        for temperature in (TEMPERATURE, 0.1):
            row = f"{name:>10} {temperature:12g}"
            for beta in betas:
                counts = [
                    assign(
                        make(1, 512, 300), beta=beta, temperature=temperature, max_iterations=3000, accelerate=fast
                    ).iterations
                    for fast in (False, True)
                ]
                row += f"  {counts[0]:4d} / {counts[1]:<4d}"
            print(row)


def main() -> None:
    print_times()
    print_iterations()


if __name__ == "__main__":
    main()
