"""What `assign` and its kin refuse, and the sentences that they say so with."""

import math
from numbers import Real
from typing import Any

import torch
from torch import Tensor

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_tensors(*, optional: bool = False, with_values: bool = True, **given: object) -> None:
    """Refuse what is no plain tensor, by the argument's name; of `optional` ones None stands for one not given.

    Raises:
        ValueError: an array or a list, with what to write instead; a tensor that holds no values of its own (meta),
            not all of them (sparse) or not in rows (nested), or is one of many under `vmap`.
    """
    for name, value in given.items():
        if value is None and optional:
            continue
        if not isinstance(value, Tensor):
            if value is None:
                raise ValueError(f"{name} must be a torch tensor, not None")
            kind = f"{type(value).__module__.partition('.')[0]}.{type(value).__name__}".removeprefix("builtins.")
            raise ValueError(f"{name} must be a torch tensor, not {kind}: write torch.as_tensor({name})")
        if value.is_nested:
            raise ValueError(f"{name} must have rows of one length, not be nested: pad it, or call once for each part")
        if value.layout is not torch.strided:
            kind = str(value.layout).removeprefix("torch.").removeprefix("_")
            raise ValueError(f"{name} must be dense, not {kind}: write {name}.to_dense()")
        if value.is_meta and with_values:
            raise ValueError(f"{name} is on the device 'meta' and holds no values: make it on a real device")
        if value.is_quantized:
            raise ValueError(f"{name} must be floating point, not quantized: write {name}.dequantize()")
        if torch._C._functorch.is_batchedtensor(value):
            raise ValueError(
                f"{name} is one of many under torch.vmap, which cannot solve until each has converged: give them "
                "together as [V, N, K], which is as fast"
            )


def check_floats(**given: Tensor | None) -> None:
    """Refuse other than the four usual kinds of numbers; after `check_tensors`. Raises: ValueError."""
    for name, value in given.items():
        if value is not None and value.dtype not in _FLOATS:
            what = "floating point" if not value.is_floating_point() else "float16, bfloat16, float32 or float64"
            raise ValueError(f"{name} must be {what}, not {value.dtype}; convert {_them(name)} with .float()")


def check_number(name: str, value: object) -> None:
    """Refuse what is no number for a number. Raises: ValueError."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ValueError(f"{name} must be a number, not {str(value)[:60]} ({type(value).__name__})")


def _them(name: str) -> str:
    return "them" if name.endswith("s") else "it"


def check_arguments(
    logits: Tensor,
    *,
    beta: float,
    temperature: float,
    max_iterations: int,
    tolerance: float | None,
    initial_log_marginal: Tensor | None = None,
    prior: Tensor | None = None,
    row_weights: Tensor | None = None,
    rows_may_be_missing: bool = False,
) -> None:
    """Check everything that needs no value of a tensor. Raises: ValueError."""
    others: dict[str, Any] = {"initial_log_marginal": initial_log_marginal, "prior": prior, "row_weights": row_weights}
    check_tensors(logits=logits, with_values=False)
    check_tensors(optional=True, with_values=False, **others)
    check_floats(logits=logits)
    for name, number in {"beta": beta, "temperature": temperature, "tolerance": tolerance}.items():
        if number is not None or name != "tolerance":
            check_number(name, number)
    if logits.ndim not in (2, 3):
        raise ValueError(
            f"logits must have shape [N, K] or [V, N, K] (views, pictures, prototypes), not {list(logits.shape)}"
        )
    if 0 in logits.shape and not (rows_may_be_missing and 0 not in (*logits.shape[:-2], logits.shape[-1])):
        raise ValueError(
            f"logits are empty: shape {list(logits.shape)}; only a rank among several (reduce given) may have no rows"
        )
    if not 0 <= beta < 1:
        raise ValueError(f"beta must be at least 0 and below 1, not {beta}; the paper uses 2/3 to 3/4")
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"temperature must be positive and finite, not {temperature}")
    if isinstance(max_iterations, bool) or not isinstance(max_iterations, int) or max_iterations < 0:
        raise ValueError(f"max_iterations must be a whole number, 0 or more, not {max_iterations}")
    if tolerance is not None and not (math.isfinite(tolerance) and tolerance >= 0):
        raise ValueError(
            f"tolerance must be a finite number of nats, 0 or more, not {tolerance}; None asks for max_iterations"
        )
    views, (rows, prototypes) = list(logits.shape[:-2]), logits.shape[-2:]
    _check_shape(initial_log_marginal, "initial_log_marginal", [[*views, prototypes]], logits)
    _check_shape(prior, "prior", [[prototypes], [*views, prototypes]], logits)
    _check_shape(row_weights, "row_weights", [[rows], [*views, rows]], logits)


def check_values(
    logits: Tensor,
    initial_log_marginal: Tensor | None = None,
    prior: Tensor | None = None,
    row_weights: Tensor | None = None,
    *,
    rows_may_be_missing: bool = False,
) -> None:
    """Check what needs the tensors' values; on an accelerator the host waits for them. Raises: ValueError.

    Not while a graph is compiled, which has no values and would break in two here.
    """
    if torch.compiler.is_compiling():
        return
    others: dict[str, Any] = {"initial_log_marginal": initial_log_marginal, "prior": prior, "row_weights": row_weights}
    check_tensors(logits=logits)
    check_tensors(optional=True, **others)
    _check_finite(logits, "logits")
    if initial_log_marginal is not None:
        _check_finite(initial_log_marginal, "initial_log_marginal")
    if prior is not None:
        _check_finite(prior, "prior")
        if bool((prior <= 0).any()):
            raise ValueError(
                f"prior must be positive, but its smallest value is {float(prior.min())}: leave out prototypes that no "
                "picture may have, or give them a small share"
            )
    if row_weights is not None:
        check_row_weights(row_weights, rows_may_be_missing=rows_may_be_missing)


def check_row_weights(row_weights: Tensor, *, rows_may_be_missing: bool = False) -> None:
    """Refuse weights that are not finite, negative or all 0. Not while a graph is compiled. Raises: ValueError."""
    if torch.compiler.is_compiling():
        return
    _check_finite(row_weights, "row_weights")
    if bool((row_weights < 0).any()):
        raise ValueError(f"row_weights must be 0 or more, but the smallest is {float(row_weights.min())}")
    if not rows_may_be_missing and not bool((row_weights > 0).any(-1).all()):
        raise ValueError("row_weights are all 0: at least one picture of every view must count")


def _check_shape(tensor: Tensor | None, name: str, shapes: list[list[int]], logits: Tensor) -> None:
    if tensor is None:
        return
    if list(tensor.shape) not in shapes:
        wanted = " or ".join(dict.fromkeys(str(shape) for shape in shapes))
        raise ValueError(
            f"{name} must have shape {wanted} to go with logits of shape {list(logits.shape)}, not {list(tensor.shape)}"
        )
    check_floats(**{name: tensor})


def _check_finite(tensor: Tensor, name: str) -> None:
    # Row extremes carry NaN and both infinities, quicker than a mask of the matrix, which is made only to explain.
    if tensor.numel() == 0 or bool((tensor.amax(-1).isfinite() & tensor.amin(-1).isfinite()).all()):
        return
    kinds = {"NaN": tensor.isnan(), "+inf": tensor == torch.inf, "-inf": tensor == -torch.inf}
    counts = {kind: int(mask.sum()) for kind, mask in kinds.items()}
    found = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
    first = (~tensor.isfinite()).nonzero()[0].tolist()
    raise ValueError(
        f"{name} must be finite, but {sum(counts.values())} of {tensor.numel()} values are not ({found}); "
        f"the first is {float(tensor[tuple(first)])} at index {first}"
    )
