"""DINO's centring and sharpening, plain softmax, and what all the peers of `assign` share."""

import inspect

import pytest
import torch
from assignment_problems import make_logits, problems
from hypothesis import given, settings
from hypothesis import strategies as st
from thread_ranks import on_threads

from mira.assignment import assign, centre_and_sharpen, sinkhorn, softmax_labels, update_centre

FEW = settings(max_examples=40, deadline=None)
PEERS = (sinkhorn, centre_and_sharpen, softmax_labels)


def random_centre(count: int, seed: int) -> torch.Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@FEW
@given(problems(views=True), st.integers(0, 1000))
def test_labels_are_the_published_formula(problem, seed):
    logits, temperature = problem["logits"], problem["temperature"]
    centre = random_centre(logits.shape[-1], seed)
    solved = centre_and_sharpen(logits, centre=centre, temperature=temperature)
    assert torch.allclose(solved.probs, torch.softmax((logits - centre) / temperature, -1), atol=1e-13)
    assert torch.allclose(solved.log_marginal.exp(), solved.probs.mean(1), atol=1e-13)
    assert (solved.gap == 0).all()
    assert solved.iterations == 0


@FEW
@given(problems(views=True))
def test_zero_centre_and_zero_beta_are_softmax(problem):
    logits, temperature = problem["logits"], problem["temperature"]
    plain = softmax_labels(logits, temperature=temperature)
    assert torch.allclose(plain.probs, torch.softmax(logits / temperature, -1), atol=1e-14)
    no_information = assign(logits, beta=0.0, temperature=temperature)
    centred = centre_and_sharpen(logits, centre=torch.zeros(logits.shape[-1]), temperature=temperature)
    for other in (no_information, centred):
        assert torch.allclose(plain.probs, other.probs, atol=1e-13)
        assert torch.equal(plain.gap, other.gap)


@FEW
@given(problems(), st.integers(0, 1000))
def test_what_is_added_to_logits_and_centre_alike_changes_nothing(problem, seed):
    logits = problem["logits"]
    centre, offset = random_centre(logits.shape[1], seed), 50 * random_centre(logits.shape[1], seed + 1)
    solved = centre_and_sharpen(logits, centre=centre)
    shifted = centre_and_sharpen(logits + offset, centre=centre + offset)
    assert torch.allclose(shifted.probs, solved.probs, atol=1e-11)
    moved = update_centre(centre, logits)
    assert torch.allclose(update_centre(centre + offset, logits + offset), moved + offset, atol=1e-11)


@FEW
@given(problems(views=True), st.integers(0, 1000), st.floats(0, 1))
def test_the_centre_is_a_running_mean_over_views_and_pictures(problem, seed, momentum):
    logits = problem["logits"]
    centre = random_centre(logits.shape[-1], seed)
    before = centre.clone()
    moved = update_centre(centre, logits, momentum=momentum)
    assert torch.allclose(moved, momentum * centre + (1 - momentum) * logits.mean((0, 1)), atol=1e-12)
    assert torch.equal(centre, before)
    counts = torch.randint(0, 3, logits.shape[1:2], generator=torch.Generator().manual_seed(seed))
    counts[0] = 1
    weighted = update_centre(centre, logits, momentum=momentum, row_weights=counts.double())
    repeated = update_centre(centre, logits.repeat_interleave(counts, 1), momentum=momentum)
    assert torch.allclose(weighted, repeated, atol=1e-12)


def test_a_steady_batch_draws_the_centre_to_its_mean_and_the_labels_off_it():
    """A prototype that all pictures prefer is preferred by none in particular once the centre has caught up."""
    logits = make_logits("collapsed", torch.Size((200, 8)), seed=0)
    centre = torch.zeros(8)
    assert softmax_labels(logits).probs.mean(0).amax() > 0.9
    for _ in range(60):
        centre = update_centre(centre, logits)
    assert torch.allclose(centre, logits.mean(0).float(), atol=0.02)
    assert centre_and_sharpen(logits, centre=centre).probs.mean(0).amax() < 0.2


@pytest.mark.parametrize("sizes", [(30, 30), (37, 0, 23)])
def test_shards_together_are_the_whole(sizes):
    logits = make_logits("clustered", torch.Size((2, 60, 25)), seed=2)
    weights, centre = random_centre(60, 0).exp(), random_centre(25, 1)
    parts = {"row_weights": weights.split(sizes)}
    whole = centre_and_sharpen(logits, centre=centre, row_weights=weights)
    labels, calls = on_threads(centre_and_sharpen, logits.split(sizes, 1), centre=centre, **parts)
    assert calls == [1] * len(sizes)
    assert torch.allclose(torch.cat([part.probs for part in labels], 1), whole.probs, atol=1e-14)
    for part in labels:
        assert torch.allclose(part.log_marginal, whole.log_marginal, atol=1e-12)
    moved, calls = on_threads(
        lambda shard, **rest: update_centre(centre, shard, **rest), logits.split(sizes, 1), **parts
    )
    assert calls == [1] * len(sizes)
    assert all(torch.equal(one, moved[0]) for one in moved)
    assert torch.allclose(moved[0], update_centre(centre, logits, row_weights=weights), atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_single(dtype):
    logits = make_logits("cosine", torch.Size((2, 700, 30)), seed=0).to(dtype)
    centre = logits.double().mean((0, 1)).float()
    moved = update_centre(torch.zeros(30), logits, momentum=0.0)
    assert torch.allclose(moved, centre, atol=1e-6)
    solved = centre_and_sharpen(logits, centre=centre, temperature=0.05)
    exact = torch.softmax((logits.double() - centre.double()) / 0.05, -1)
    assert solved.probs.dtype == torch.float32
    assert torch.allclose(solved.probs.double(), exact, atol=2e-5)


@FEW
@given(problems(views=True), st.sampled_from([1e-45, 1e-3, 1e30]), st.sampled_from([torch.float32, torch.float64]))
def test_extreme_logits_and_temperatures(problem, temperature, dtype):
    logits = (1e4 * problem["logits"]).to(dtype)
    for solved in (
        softmax_labels(logits, temperature=temperature),
        centre_and_sharpen(logits, centre=logits[0, 0], temperature=temperature),
    ):
        assert torch.allclose(solved.probs.sum(-1), torch.ones((), dtype=dtype), atol=4e-6)
        assert solved.log_marginal.isfinite().all()


def test_the_peers_share_their_arguments_and_their_order():
    order = list(inspect.signature(assign).parameters)
    for peer in PEERS:
        shared = [name for name in inspect.signature(peer).parameters if name != "centre"]
        assert shared == [name for name in order if name in shared]
        assert {"logits", "temperature", "reduce", "row_weights", "check"} <= set(shared)


@pytest.mark.parametrize("peer", [softmax_labels, lambda *a, **k: centre_and_sharpen(*a, centre=torch.zeros(3), **k)])
def test_bad_arguments_are_named(peer):
    logits = torch.zeros(4, 3)
    for arguments, message in (
        ({"temperature": -1.0}, "temperature must be positive"),
        ({"row_weights": torch.zeros(4)}, "row_weights are all 0"),
    ):
        with pytest.raises(ValueError, match=message):
            peer(logits, **arguments)
    with pytest.raises(ValueError, match="logits must be finite"):
        peer(logits / 0)
    with pytest.raises(ValueError, match="logits are empty"):
        peer(logits[:0])
    with pytest.raises(ValueError, match="logits must have shape"):
        peer(logits[0])


def test_a_bad_centre_is_named():
    logits = torch.zeros(2, 4, 3)
    with pytest.raises(ValueError, match=r"centre must have shape \[3\] to go with logits of shape \[2, 4, 3\]"):
        centre_and_sharpen(logits, centre=torch.zeros(2, 3))
    with pytest.raises(ValueError, match="centre must be finite"):
        centre_and_sharpen(logits, centre=torch.tensor([0.0, torch.nan, 0.0]))
    with pytest.raises(ValueError, match=r"centre must have shape \[3\]"):
        update_centre(torch.zeros(4), logits)
    with pytest.raises(ValueError, match=r"momentum must be at least 0 and at most 1, not 1\.5"):
        update_centre(torch.zeros(3), logits, momentum=1.5)
