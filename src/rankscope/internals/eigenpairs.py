"""The largest eigenpairs of a symmetric matrix: of a diagonal and a product of few columns, or of one written out.

Vectors are rows here, and the thin factor of a product stands on the left: the other way round some layouts take up to
thirty times as long.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from scipy.linalg import eigh
from torch import Tensor

# The relative residual that a small problem is laid out for, by a bound that is far too careful, and the largest that
# is accepted of it; what was reached is in `Triplets.error`.
_PLANNED, _ACCEPTED = 1e-5, 1e-7
# From this part of the whole on, the whole problem is solved instead of the small one.
_WORTH_IT = 0.75
# Energy below this share of a block's largest is not a direction of its own.
_DEPENDENT = 1e-12
# Up to this size a direct solver is used for a matrix that is written out; above, an iteration that stops at TOLERANCE.
_DIRECT_SIZE = 2048
TOLERANCE = 1e-6
_MAX_ROUNDS = 60

# Values, largest first; vectors as rows; the largest residual of a pair, relative to the largest value.
Eigen = tuple[Float[Tensor, " num_pairs"], Float[Tensor, "num_pairs size"], float]


def largest_of_sum(
    D: Float[Tensor, " size"], P: Float[Tensor, "rank size"], H: Float[Tensor, "rank size"], k: int
) -> Eigen:
    """The k largest eigenpairs of `diag(D) + P'H + H'P`, D falling.

    An eigenvector is `(lambda - D)^-1 (P'H + H'P) v`. On coordinates with D well below lambda that factor is close to a
    polynomial of D, so the first p coordinates together with the block Krylov space of `D`, P and H on the rest hold
    the eigenvector up to an error that falls geometrically with the number of blocks. Where such a block would be wider
    than what is sought, P alone is the first one, and each of the next is the residuals of the k.
    """
    is_narrow = 2 * len(P) <= k
    block = torch.cat([P, H]) if is_narrow else P
    kept, blocks = _cheapest(D, k, len(P))
    if blocks:
        space = _Space(D, P, H, kept)
        space.add(torch.linalg.qr(block[:, kept:].T).Q.T, num_powers=blocks - 1 if is_narrow else 0)
        while space.size < _WORTH_IT * len(D):
            values, vectors, residuals = space.solve(k)
            error = float(torch.linalg.vector_norm(residuals, dim=1).max() / values[0])
            if error <= _ACCEPTED:
                return values, vectors, error
            space.add(_orthogonal(residuals, space.basis), num_powers=blocks // 2 if is_narrow else 0)
    whole = _both_ways(P.T, H.T)
    whole.diagonal().add_(D)
    return direct(whole, k)


def largest(gram: Float[Tensor, "size size"], k: int) -> Eigen:
    """The k largest eigenpairs of a matrix that is written out; above a size of 2,048 by iteration from coordinates."""
    return direct(gram, k) if len(gram) <= _DIRECT_SIZE else _iterated(gram, k)


def direct(gram: Float[Tensor, "size size"], k: int) -> Eigen:
    """The k largest eigenpairs of a matrix that is written out, of any size, by a direct solver."""
    size, error = len(gram), torch.finfo(gram.dtype).eps * len(gram)
    if 4 * k <= size:  # a few of many: LAPACK's solver for a part is about twice as fast, and torch has none
        found = eigh(gram.numpy(), subset_by_index=[size - k, size - 1], driver="evr", check_finite=False)
        values, vectors = (torch.from_numpy(part) for part in found)
    else:
        values, vectors = torch.linalg.eigh(gram)
    return values.flip(0)[:k], vectors.T.flip(0)[:k], error


class _Space:
    """The first coordinates beside an orthonormal basis on the rest, and what the matrix is within them.

    Attributes:
        basis: Rows on the rest of the coordinates.
        size: How many directions there are, coordinates and basis.
    """

    def __init__(self, D: Tensor, P: Tensor, H: Tensor, kept: int) -> None:
        self._kept, self._D, self._P, self._H = kept, D, P[:, kept:].contiguous(), H[:, kept:].contiguous()
        self.basis = P.new_zeros(0, len(D) - kept)
        # Within the space; each block that is added adds to them what is its own.
        self._inner_D, self._inner_P, self._inner_H = torch.diag(D[:kept]), P[:, :kept].T, H[:, :kept].T

    @property
    def size(self) -> int:
        return self._kept + len(self.basis)

    def add(self, block: Tensor, num_powers: int = 0) -> None:
        """Take in orthonormal rows, then what the diagonal makes of them, of that again, and so on."""
        self._take_in(block)
        for _ in range(num_powers):
            block = _orthogonal(block * self._D[self._kept :], self.basis)
            self._take_in(block)

    def solve(self, k: int) -> tuple[Tensor, Tensor, Tensor]:
        """The k largest eigenpairs within the space, and their residuals: what the whole adds on the rest."""
        values, inner, _ = direct(self._inner_D + _both_ways(self._inner_P, self._inner_H), k)
        rest = inner[:, self._kept :] @ self.basis
        image = rest * self._D[self._kept :] + (inner @ self._inner_H) @ self._P + (inner @ self._inner_P) @ self._H
        return values, torch.cat([inner[:, : self._kept], rest], 1), image - values.unsqueeze(1) * rest

    def _take_in(self, block: Tensor) -> None:
        image = block * self._D[self._kept :]
        side = torch.cat([torch.zeros(len(block), self._kept, dtype=image.dtype), image @ self.basis.T], 1)
        self._inner_D = torch.cat([torch.cat([self._inner_D, side.T], 1), torch.cat([side, image @ block.T], 1)])
        self._inner_P = torch.cat([self._inner_P, block @ self._P.T])
        self._inner_H = torch.cat([self._inner_H, block @ self._H.T])
        self.basis = torch.cat([self.basis, block])


def _both_ways(P: Tensor, H: Tensor) -> Tensor:
    half = P @ H.T
    return half + half.T


def _cheapest(D: Tensor, k: int, rank: int) -> tuple[int, int]:
    """How many coordinates to keep and how many blocks to add, for the least work that is expected to do.

    No block at all where that is nearly as much work as the whole.
    """
    kept = torch.arange(k, len(D), max(1, k // 8))
    z = 2.0 * D[k - 1] / D[kept].clamp_min(torch.finfo(D.dtype).tiny) - 1.0
    kept, z = kept[z > 1.0 + 1e-6], z[z > 1.0 + 1e-6]
    if not len(kept):
        return len(D), 0
    rates = torch.where(z > 1e8, z.log(), z.acosh())
    blocks = (-math.log(_PLANNED) / rates).ceil().clamp_min(1.0)
    if 2 * rank <= k:  # all blocks, then one solution
        work = (kept + 2 * rank * blocks) ** 3
    else:  # a solution after each, and making a block costs about twice as much
        work = 3.0 * blocks * (kept + rank + k * (blocks - 1.0)) ** 3
    best = int(work.argmin())
    return (int(kept[best]), int(blocks[best])) if float(work[best]) < (_WORTH_IT * len(D)) ** 3 else (len(D), 0)


def _orthogonal(block: Tensor, basis: Tensor) -> Tensor:
    """Orthonormal rows of what a block adds to a basis; twice, because once leaves rounding behind.

    What adds nothing is dropped: a factorisation would make directions of its rounding.
    """
    for _ in range(2):
        block = block - (block @ basis.T) @ basis
        energy, turn = torch.linalg.eigh(block @ block.T)
        counts = energy > _DEPENDENT * energy[-1] if len(energy) else energy > 0.0
        block = (turn[:, counts] / energy[counts].sqrt()).T @ block
    return block


def _iterated(gram: Float[Tensor, "size size"], k: int) -> Eigen:
    """The k largest eigenpairs by block iteration, from the first coordinates: the base's own vectors.

    Each round solves the problem within the vectors so far, their residuals and the step before (LOBPCG's space).
    """
    width = k + max(16, k // 4)
    if 3 * width >= len(gram):
        return direct(gram, k)
    vectors = torch.eye(width, len(gram), dtype=gram.dtype)
    step = vectors[:0]
    values = gram.diagonal()[:width]
    error = math.inf
    for _ in range(_MAX_ROUNDS):
        residual = vectors @ gram - values.unsqueeze(1) * vectors
        error = float(torch.linalg.vector_norm(residual[:k], dim=1).max() / values[0])
        if error <= TOLERANCE:
            break
        added = _orthogonal(torch.cat([residual, step]), vectors)
        space = torch.cat([vectors, added])
        values, inner, _ = direct(space @ gram @ space.T, width)
        step = inner[:, width:] @ added
        vectors = inner @ space
    return values[:k], vectors[:k], error
