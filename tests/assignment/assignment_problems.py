"""Problems for the tests of the assignment: random ones, and ones made to be awkward."""

import torch
from hypothesis import strategies as st
from torch import Tensor

FAMILIES = ("cosine", "clustered", "sharp", "uneven columns", "ties", "duplicated columns", "collapsed")


def make_logits(family: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """Logits [.., N, K] in float64 of one family."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    def unit(x: Tensor) -> Tensor:
        return x / x.norm(dim=-1, keepdim=True)

    prototypes = shape[-1]
    match family:
        case "cosine":
            return unit(normal(*shape[:-1], 16)) @ unit(normal(prototypes, 16)).T / 0.225
        case "clustered":
            centres = unit(normal(5, 16))
            which = torch.multinomial(torch.softmax(normal(5), 0), shape[:-1].numel(), True, generator=generator)
            pictures = unit(centres[which].view(*shape[:-1], 16) + 0.15 * normal(*shape[:-1], 16))
            near = centres[torch.randint(5, (prototypes,), generator=generator)]
            return pictures @ unit(near + 0.15 * normal(prototypes, 16)).T / 0.225
        case "sharp":
            return 6 * normal(*shape)
        case "uneven columns":
            return normal(*shape) + 6 * normal(prototypes)
        case "ties":
            return 3 * torch.randint(0, 3, shape, generator=generator).double()
        case "duplicated columns":
            return (2 * normal(*shape))[..., torch.arange(prototypes) // 2]
        case "collapsed":
            return 0.3 * normal(*shape) + 5 * (torch.arange(prototypes) == 0)
    raise AssertionError(family)


@st.composite
def problems(draw: st.DrawFn, *, views: bool = False, betas: st.SearchStrategy[float] | None = None) -> dict:
    """Arguments of `assign`: logits [N, K] (or [V, N, K]) in float64, beta, temperature."""
    shape = [draw(st.integers(1, 24)), draw(st.integers(1, 16))]
    if views:
        shape = [draw(st.integers(1, 3)), *shape]
    family = draw(st.sampled_from(FAMILIES))
    return {
        "logits": make_logits(family, torch.Size(shape), draw(st.integers(0, 2**31))),
        "beta": draw(st.sampled_from([0.0, 0.3, 0.5, 2 / 3, 0.75, 0.9]) if betas is None else betas),
        "temperature": draw(st.sampled_from([0.5, 1.0, 2.0])),
    }
