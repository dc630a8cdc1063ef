"""Prototypes of published checkpoints, as a function of the features."""

from collections.abc import Mapping

from torch import Tensor, nn

from mira.model.foreign.layouts import Branch
from mira.model.head import PrototypeLogits


def prototype_logits(tensors: Mapping[str, Tensor], branch: Branch, *, temperature: float) -> PrototypeLogits | None:
    """What leads from features to a checkpoint's prototypes.

    Args:
        tensors: all of the file, as `mira.model.weights.read_weights` gives them.
        branch: whose projector and prototypes.
        temperature: of the method's softmax.

    Returns:
        On the CPU; None where the layout has no prototypes, or several sets of them, or a projector that is
        not a numbered sequence.
    """
    weight = tensors.get(branch.prototypes)
    layers = {
        name.removeprefix(branch.projector): tensor
        for name, tensor in tensors.items()
        if branch.projector and name.startswith(branch.projector)
    }
    if weight is None or not layers or not all(name.partition(".")[0].isdigit() for name in layers):
        return None
    projector = _perceptron(layers).eval().requires_grad_(False)
    return PrototypeLogits(projector, weight, temperature=temperature)


def _perceptron(tensors: Mapping[str, Tensor]) -> nn.Sequential:
    """The linear layers and BatchNorms whose state dict this is; ReLU, which has no tensors, in the gaps."""
    layers: list[nn.Module] = []
    for index in range(1 + max(int(name.partition(".")[0]) for name in tensors)):
        weight = tensors.get(f"{index}.weight")
        if weight is None:
            layers.append(nn.ReLU())
        elif weight.ndim == 2:
            layers.append(nn.Linear(weight.shape[1], weight.shape[0], bias=f"{index}.bias" in tensors))
        else:
            layers.append(nn.BatchNorm1d(weight.shape[0]))
    sequence = nn.Sequential(*layers)
    sequence.load_state_dict(dict(tensors))
    return sequence
