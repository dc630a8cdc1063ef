"""The model and its optimiser made ready for the device and the processes that train it."""

import os

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from mira.distributed import Ranks
from mira.model import Mira
from mira.model.sync_batchnorm import synchronise_batch_norm
from mira.training.checkpoint import Checkpoint
from mira.training.optimiser import create_optimiser
from mira.training.recipe import Recipe
from mira.training.state import TrainState

_WIDE_ENOUGH = 16
"""Input channels from which no crash has been seen, in 200 shapes."""


def prepare(
    model: Mira, recipe: Recipe, device: torch.device, ranks: Ranks, *, checkpoint: Checkpoint | None
) -> TrainState:
    """Bring a model to its device and into its form for training; every rank ends with the same values.

    Names in the state dict stay as they are, compiled or not, on one process or many.

    Args:
        model: new; on ranks other than 0, and where there is a checkpoint, its values do not matter.
        recipe: resolved.
        device: of this process.
        ranks: all that train together.
        checkpoint: to go on from.

    Raises:
        ValueError: the backbone cannot compute its activations again.
    """
    layout = torch.channels_last if recipe.training.channels_last else torch.contiguous_format
    model = model.to(device).to(memory_format=layout)  # type: ignore[call-overload]
    if device.type == "cpu" and recipe.training.channels_last:
        _keep_layout_off_narrow_convolutions(model)
    if ranks.world > 1:
        synchronise_batch_norm(model, ranks.sum)
    scaler = GradScaler(device.type, enabled=recipe.training.precision == "float16")
    label_state = recipe.assignment.initial_state(recipe.model.prototypes.count, device)
    state = TrainState(model, create_optimiser(model, recipe.optimiser), scaler, label_state)
    if checkpoint is not None:
        try:
            state.load(checkpoint)
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
            reason = " ".join(str(error).split())[:300]
            raise ValueError(
                f"the checkpoint of step {checkpoint.step} does not fit its own recipe ({reason}): it was written by "
                "another version of mira-ssl, timm or torch, or is no checkpoint of a run"
            ) from error
    else:
        ranks.share(model.state_dict().values())
    if recipe.training.checkpoint_activations:
        _checkpoint_activations(model, recipe.model.backbone.name)
    if recipe.training.compile:
        for network in (model.student, model.teacher):
            network.backbone.compile()  # in place: no wrapper, no other names
    return state


def _keep_layout_off_narrow_convolutions(model: nn.Module) -> None:
    """Let strided 1 x 1 convolutions of few channels compute in the usual layout: with channels last PyTorch crashes.

    docs/upstream.md has where and how. Everything else keeps its layout.
    """
    for module in model.modules():
        if _crashes(module):
            module.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
            module.register_forward_pre_hook(_contiguous_input)


def _crashes(module: nn.Module) -> bool:
    if not isinstance(module, nn.Conv2d) or module.kernel_size != (1, 1) or module.stride == (1, 1):
        return False
    return module.in_channels < _WIDE_ENOUGH


def _contiguous_input(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(tensor.contiguous() for tensor in inputs)


def make_deterministic(recipe: Recipe) -> None:
    """Let PyTorch compute the same bits every time, where the recipe asks for it; before anything is computed."""
    if recipe.training.deterministic:
        # cuBLAS asks for this before its first use.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)


def _checkpoint_activations(model: Mira, name: str) -> None:
    try:
        model.student.backbone.set_grad_checkpointing(True)  # type: ignore[operator]
    except (AttributeError, AssertionError, TypeError):
        raise ValueError(
            f"training.checkpoint_activations: '{name}' cannot compute its activations again. Set it to false and, "
            "where memory is short, raise training.accumulate"
        ) from None
