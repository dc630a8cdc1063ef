"""Arrays, lists, None, sparse, nested and meta tensors, words for numbers: one sentence that says what to write."""

import inspect
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from mira.assignment import (
    assign,
    centre_and_sharpen,
    label_cross_entropy,
    sinkhorn,
    softmax_labels,
    solve_marginal,
    swapped_cross_entropy,
    update_centre,
)

LOGITS = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0))
NUMBERS = {"beta": 0.5, "temperature": 0.2, "student_temperature": 0.1}
CALLS = {
    name: inspect.unwrap(function)
    for name, function in {
        "assign": assign,
        "solve_marginal": solve_marginal,
        "sinkhorn": sinkhorn,
        "softmax_labels": softmax_labels,
        "centre_and_sharpen": centre_and_sharpen,
        "update_centre": update_centre,
        "swapped_cross_entropy": swapped_cross_entropy,
        "label_cross_entropy": label_cross_entropy,
    }.items()
}


@pytest.fixture(autouse=True)
def without_type_checks(request: pytest.FixtureRequest) -> None:
    """The sentences are ours; where types are checked while tests run, the checker speaks first."""
    checked = bool(request.config.getoption("--jaxtyping-packages", None))
    if checked == (request.function.__name__ != "test_all_of_this_file_without_type_checks"):
        pytest.skip("runs without type checks")


@pytest.mark.slow
def test_all_of_this_file_without_type_checks() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-x", __file__, "-m", "not slow"]
    done = subprocess.run(command, env=os.environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


VALUES = {
    "logits": LOGITS,
    "student": LOGITS,
    "teacher": LOGITS,
    "centre": torch.zeros(4),
    "log_marginal": torch.zeros(2, 4),
    "row_weights": torch.ones(6),
    "prior": torch.ones(4),
    "initial_log_marginal": torch.zeros(2, 4),
    "log_prior": torch.zeros(4),
} | NUMBERS


def arguments(call) -> dict:
    found = {name: VALUES[name] for name in inspect.signature(call).parameters if name in VALUES}
    if call is CALLS["label_cross_entropy"]:
        found |= {"student": LOGITS[0], "teacher": LOGITS[1], "log_marginal": torch.zeros(4)}
    return found


ODD = {
    "array": lambda x: x.numpy(),
    "list": lambda x: x.tolist(),
    "None for what must be there": lambda x: None,
    "word": lambda x: "x",
    "meta": lambda x: x.to("meta"),
    "sparse": lambda x: x.to_sparse(),
    "nested": lambda x: torch.nested.nested_tensor([x, x]),
    "mkldnn": lambda x: x.to_mkldnn(),
    "complex": lambda x: x.to(torch.complex64),
    "integer": lambda x: x.long(),
    "boolean": lambda x: x.bool(),
    "float8": lambda x: x.to(torch.float8_e4m3fn),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("name", CALLS)
def test_what_is_no_plain_tensor_is_named(name: str, kind: str) -> None:
    call = CALLS[name]
    good = arguments(call)
    call(**good)
    optional = {"row_weights", "prior", "initial_log_marginal", "log_prior"}
    for argument, value in good.items():
        if argument in NUMBERS or (argument in optional and kind.startswith("None")):
            continue
        try:
            odd = ODD[kind](value)
        except RuntimeError:
            continue  # PyTorch has none of this shape
        with pytest.raises(ValueError, match=argument):
            call(**good | {argument: odd})


@pytest.mark.parametrize("odd", ["x", None, [1.0], True, 1j, float("nan"), torch.tensor(0.5), np.ones(2)])
@pytest.mark.parametrize("name", CALLS)
def test_what_is_no_number_is_named(name: str, odd: object) -> None:
    call = CALLS[name]
    for argument in NUMBERS.keys() & arguments(call).keys():
        with pytest.raises(ValueError, match=argument):
            call(**arguments(call) | {argument: odd})


def test_numbers_of_numpy_are_numbers() -> None:
    plain = assign(LOGITS, beta=0.5, temperature=0.25)
    given = CALLS["assign"](LOGITS, beta=np.float32(0.5), temperature=np.float64(0.25))
    assert torch.equal(plain.probs, given.probs)


def test_the_sentence_says_what_to_write() -> None:
    with pytest.raises(ValueError, match=r"logits must be a torch tensor, not numpy.ndarray: write torch.as_tensor"):
        CALLS["assign"](LOGITS.numpy(), beta=0.5)
    with pytest.raises(ValueError, match=r"logits must be dense, not sparse_coo: write logits.to_dense\(\)"):
        CALLS["assign"](LOGITS.to_sparse(), beta=0.5)


def test_vmap_gets_a_sentence() -> None:
    with pytest.raises(ValueError, match=r"under torch.vmap.*\[V, N, K\]"):
        torch.vmap(lambda logits: assign(logits, beta=0.5).probs)(LOGITS)


@pytest.mark.parametrize(
    ("weights", "words"),
    [([0.0] * 6, "all 0"), ([1.0, -1.0, 1, 1, 1, 1], "0 or more"), ([float("nan")] * 6, "must be finite")],
)
def test_row_weights_of_the_cross_entropy_are_looked_at(weights: list[float], words: str) -> None:
    for name in ("swapped_cross_entropy", "label_cross_entropy"):
        call = CALLS[name]
        with pytest.raises(ValueError, match=words):
            call(**arguments(call) | {"row_weights": torch.tensor(weights)})


@pytest.mark.slow
def test_a_compiled_step_with_default_arguments_is_one_graph() -> None:
    def step(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        found = assign(logits, beta=2 / 3, temperature=0.225)
        marginal = solve_marginal(logits, beta=2 / 3, temperature=0.225)
        return found.probs * 1.0, found.gap + marginal.gap

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    probs, gap = compiled(LOGITS[0])
    eager = assign(LOGITS[0], beta=2 / 3, temperature=0.225)
    assert torch.equal(probs, eager.probs)
    assert torch.equal(gap, 2 * eager.gap)
    with pytest.raises(ValueError, match="logits must be finite"):
        compiled(torch.full((6, 4), torch.nan))
    peers = torch.compile(
        lambda z: sinkhorn(z, tolerance=1e-3).probs + softmax_labels(z).probs, fullgraph=True, backend="eager"
    )
    assert peers(LOGITS[0]).shape == (6, 4)
