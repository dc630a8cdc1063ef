"""Whether a model's weights fit into this machine's memory, told before they take it."""

import os

from torch import nn


def refuse_beyond_memory(module: nn.Module, what: str) -> None:
    """Refuse a module, built without memory on the device "meta", whose weights alone are larger than the memory.

    Systems grant more memory than there is and end the process when it is used: then nobody says a word.

    Args:
        module: whose parameters and buffers are counted.
        what: it is, for the sentence.

    Raises:
        ValueError: it does not fit.
    """
    needed = sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())
    if hasattr(os, "sysconf") and needed > (there := os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")):
        raise ValueError(
            f"{what} takes {needed / 2**30:,.0f} GB for its weights alone, and this machine has {there / 2**30:,.0f}: "
            "choose a smaller one"
        )
