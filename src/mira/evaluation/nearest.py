"""Exact nearest neighbours by cosine similarity, at the cost of the matrix product.

Of all similarities only the k highest of each query matter. Once k candidates are known, a block of new
similarities is only looked at where one exceeds the k-th: first the maxima of short groups (one reading of the
block), then the members of the few groups that do. What is found waits until there is enough of it to be worth
sorting.

The bank is normalised block by block, so memory above the inputs does not depend on its size: see `peak_bytes`.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn.functional import normalize

CHUNK = 1 << 22
"""Similarities held at a time: 16 MiB in float32, which stay in the processor's cache until they are looked at."""

_QUERIES = 1024  # rows of a block: enough for the matrix product to be fast, few enough for a wide block
_GROUP = 32  # neighbouring similarities whose maximum is compared first
_MANY = 1 / 2  # share of groups with a hit above which it is cheaper to take the block's own k highest


class Neighbours(NamedTuple):
    """The nearest bank pictures of each query, nearest first."""

    similarities: Float[Tensor, "Q k"]
    indices: Int64[Tensor, "Q k"]


def nearest(bank: Float[Tensor, "N _"], queries: Float[Tensor, "Q _"], k: int, *, chunk: int = CHUNK) -> Neighbours:
    """The k bank rows of highest cosine similarity for every query; exact, ties in bank order.

    Args:
        bank, queries: features, normalised here; computed in their own type (float32 or float64).
        chunk: similarities held at a time.

    Raises:
        ValueError: no bank, unequal widths, non-finite features, or k outside 1..N.
    """
    _check(bank, queries)
    if not 1 <= k <= len(bank):
        raise ValueError(f"k is {k} and the bank has {len(bank)} pictures: choose k from 1 to {len(bank)}.")
    queries = normalize(queries, dim=1)
    rows, columns = _block(k, chunk)
    parts = torch.split(queries, rows) if len(queries) else ()
    lists = [_Candidates(len(part), k, like=queries) for part in parts]
    buffer = queries.new_empty(min(rows, len(queries)) * _whole_groups(min(columns, len(bank))))
    for offset in range(0, len(bank), columns):
        # The bank is the outer loop, so that each of its blocks is normalised once.
        block = normalize(bank[offset : offset + columns], dim=1)
        for part, candidates in zip(parts, lists, strict=True):
            width = _whole_groups(len(block))
            similarities = buffer[: len(part) * width].view(len(part), width)
            torch.mm(part, block.T, out=similarities[:, : len(block)])
            similarities[:, len(block) :] = -torch.inf
            candidates.add(similarities, offset)
    found = [candidates.merged() for candidates in lists]
    if not found:
        return Neighbours(queries.new_empty(0, k), torch.empty(0, k, dtype=torch.int64, device=queries.device))
    return Neighbours(torch.cat([one.similarities for one in found]), torch.cat([one.indices for one in found]))


def peak_bytes(queries: int, width: int, k: int, *, chunk: int = CHUNK) -> int:
    """Memory that `nearest` takes at most above its inputs in float32, result included.

    The queries once more (normalised); what is nearest so far, what waits and the result; a few copies of a block of
    similarities, which only unlucky orders of the bank need; two copies of a block of the bank.
    """
    _, columns = _block(k, chunk)
    return 4 * queries * width + 3 * 12 * queries * k + 80 * chunk + 8 * columns * width


class _Candidates:
    """The k nearest so far of some queries, and what may replace them.

    Every list is in bank order where similarities are equal, and later lists are of later bank rows: a stable
    sort of all of them keeps ties in bank order.
    """

    def __init__(self, queries: int, k: int, *, like: Tensor) -> None:
        self._k = k
        self._best = Neighbours(
            like.new_empty(queries, 0), torch.empty(queries, 0, dtype=torch.int64, device=like.device)
        )
        self._waiting: list[Neighbours] = []
        self._width = 0

    def add(self, similarities: Float[Tensor, "Q M"], offset: int) -> None:
        """Take in similarities with the bank rows from `offset` on; -inf is none."""
        found = self._promising(similarities)
        if found is None:
            return
        self._waiting.append(Neighbours(found.similarities, found.indices + offset))
        self._width += found.indices.shape[1]
        if self._width >= self._k or self._best.indices.shape[1] < self._k:
            self._best, self._waiting, self._width = self.merged(), [], 0

    def merged(self) -> Neighbours:
        """The k nearest of all that was taken in."""
        if not self._waiting:
            return self._best
        joined = torch.cat([self._best.similarities, *(one.similarities for one in self._waiting)], dim=1)
        numbers = torch.cat([self._best.indices, *(one.indices for one in self._waiting)], dim=1)
        values, order = joined.sort(dim=1, descending=True, stable=True)
        # Contiguous copies: a slice would keep the whole of what was sorted in memory.
        return Neighbours(values[:, : self._k].contiguous(), numbers.gather(1, order[:, : self._k]))

    def _promising(self, similarities: Float[Tensor, "Q M"]) -> Neighbours | None:
        """A list that holds every similarity above the k-th so far; None where there is none."""
        if self._best.indices.shape[1] < self._k:
            return _top(similarities, self._k)
        # An equal similarity of a later row never replaces an earlier one.
        bar = self._best.similarities[:, -1:]
        groups = similarities.view(len(similarities), -1, _GROUP)
        row, group = (groups.amax(dim=2) > bar).nonzero(as_tuple=True)
        if len(row) > _MANY * similarities.numel() / _GROUP:
            return _top(similarities, self._k)
        members = groups[row, group]
        hit, member = (members > bar[row]).nonzero(as_tuple=True)
        return _padded(members[hit, member], row[hit], group[hit] * _GROUP + member, len(similarities))


def _padded(
    values: Float[Tensor, " H"], rows: Int64[Tensor, " H"], columns: Int64[Tensor, " H"], count: int
) -> Neighbours | None:
    """Hits in row-major order as one list per row, filled up with -inf."""
    if len(rows) == 0:
        return None
    lengths = torch.bincount(rows, minlength=count)
    place = torch.arange(len(rows), device=rows.device) - (lengths.cumsum(0) - lengths)[rows]
    shape = (count, int(lengths.max()))
    similarities, indices = values.new_full(shape, -torch.inf), columns.new_zeros(shape)
    similarities[rows, place], indices[rows, place] = values, columns
    return Neighbours(similarities, indices)


def _top(similarities: Float[Tensor, "Q M"], k: int) -> Neighbours:
    """The k highest of each row (all when there are fewer), highest first, equal ones by position."""
    if similarities.shape[1] <= k:
        return Neighbours(*similarities.sort(dim=1, descending=True, stable=True))
    values, indices = similarities.topk(k + 1, dim=1)
    # topk may take any of the values that equal the k-th; one value more shows whether there was a choice.
    tied = (values[:, k - 1] == values[:, k]).nonzero().flatten()
    values, indices = values[:, :k], indices[:, :k]
    if len(tied):
        full, order = similarities[tied].sort(dim=1, descending=True, stable=True)
        values[tied], indices[tied] = full[:, :k], order[:, :k]
    indices, order = indices.sort(dim=1)
    values, order = values.gather(1, order).sort(dim=1, descending=True, stable=True)
    return Neighbours(values, indices.gather(1, order))


def _block(k: int, chunk: int) -> tuple[int, int]:
    """Queries and bank rows that are compared at a time."""
    rows = min(_QUERIES, max(1, chunk // k))
    return rows, max(k, chunk // rows)


def _whole_groups(columns: int) -> int:
    return -(-columns // _GROUP) * _GROUP


def _check(bank: Float[Tensor, "N _"], queries: Float[Tensor, "Q _"]) -> None:
    if len(bank) == 0:
        raise ValueError("the bank is empty: k-NN needs labelled pictures to compare with.")
    if bank.shape[1] != queries.shape[1]:
        raise ValueError(
            f"bank features are {bank.shape[1]} wide and query features {queries.shape[1]}: "
            "both must come from the same backbone."
        )
    for name, features in (("bank", bank), ("query", queries)):
        if not all(part.isfinite().all() for part in torch.split(features, 8192)):
            raise ValueError(f"the {name} features hold NaN or infinity: the backbone's weights are damaged.")
