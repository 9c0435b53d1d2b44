"""An adapter's spectrum and intruders on one large matrix, without writing it out, against dense decompositions.

    python benchmarks/spectra.py --width 1024

What both sides work out, rank by rank: all singular values of the update, and of the tuned matrix the ten largest
singular vectors with their cosines to all of the base's (`intruders`); and `all`, every measure of `spectra` and
`subspaces` on both sides. The base's decomposition is there for both, since all runs of a study share it. One thread,
processor time, in turn; the median of a few. The dense side is float32, as people use it; `all` is float64 on both.
"""

from __future__ import annotations

import argparse
import json
import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch comes

import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from work import HERE

from rankscope.internals.spectra import dense_singular_values, lora_singular_values, update_measures
from rankscope.internals.subspaces import (
    INTRUDERS_AMONG,
    Triplets,
    full_rho,
    in_base,
    intruder_dimensions,
    lora_rho,
    lora_triplets,
    num_triplets,
    subspace_measures,
)
from rankscope.models.decompositions import Decomposition, decompose

RANKS = (2, 4, 8, 16, 32, 64, 128)
Factors = tuple[torch.Tensor, torch.Tensor]


def base_matrix(width: int) -> torch.Tensor:
    """Falling singular values, as trained matrices have them, between random bases."""
    generator = torch.Generator().manual_seed(0)
    U, V = (torch.linalg.qr(torch.randn(width, width, generator=generator)).Q for _ in range(2))
    return U * torch.arange(1, width + 1).pow(-0.5) @ V.T


def adapter(width: int, rank: int) -> Factors:
    """A product that is large enough to bring intruders in."""
    generator = torch.Generator().manual_seed(rank)
    A, B = torch.randn(rank, width, generator=generator), torch.randn(width, rank, generator=generator)
    return A / width**0.5, 0.5 * B / width**0.5


def ours(base: Decomposition, factors: Factors) -> tuple[torch.Tensor, int]:
    """Singular values of the update, and how many intruders."""
    A, B = factors
    triplets = lora_triplets(base, in_base(base, A, B, 1.0), INTRUDERS_AMONG)
    return lora_singular_values(A, B, 1.0), intruder_dimensions(triplets.left)


def dense(U0: torch.Tensor, W0: torch.Tensor, factors: Factors) -> tuple[torch.Tensor, int]:
    """The same by torch.linalg."""
    A, B = factors
    delta_W = B @ A
    values = torch.linalg.svdvals(delta_W)
    U = torch.linalg.svd(W0 + delta_W, full_matrices=False).U[:, :INTRUDERS_AMONG]
    return values, int(((U0.T @ U).abs().amax(0) < 0.5).sum())


def ours_all(base: Decomposition, factors: Factors) -> dict[str, float]:
    """Every measure, from the factors."""
    A, B = factors
    S = lora_singular_values(A, B, 1.0)
    update = in_base(base, A, B, 1.0)
    triplets = lora_triplets(base, update, num_triplets(base))
    spectra = update_measures(S, rank=len(A), base_norm=1.0, base_spectral_norm=1.0)
    return spectra | subspace_measures(base, triplets, partial(lora_rho, update))


def dense_all(base: Decomposition, W0: torch.Tensor, factors: Factors) -> dict[str, float]:
    """Every measure, from decompositions of the update and of the tuned matrix."""
    A, B = factors
    delta_W = B.double() @ A.double()
    S = dense_singular_values(delta_W)[: len(A)]
    k = num_triplets(base)
    U, values, Vh = torch.linalg.svd(W0.double() + delta_W, full_matrices=False)
    left, right = base.U.double().T @ U[:, :k], base.Vh.double() @ Vh[:k].T
    spectra = update_measures(S, rank=len(A), base_norm=1.0, base_spectral_norm=1.0)
    triplets = Triplets(values[:k], left, right, 0.0)
    return spectra | subspace_measures(base, triplets, partial(full_rho, base, delta_W))


def seconds(work: Callable[[], object]) -> float:
    """Processor time of a call."""
    started = time.process_time()
    work()
    return time.process_time() - started


def compare(width: int, rank: int, base: Decomposition, W0: torch.Tensor, repeats: int) -> dict[str, float]:
    """Seconds of both sides in both parts, in turn, and how far their numbers are apart."""
    factors, U0 = adapter(width, rank), base.U.float()
    works = {
        "intruders_rankscope": lambda: ours(base, factors),
        "intruders_dense": lambda: dense(U0, W0, factors),
        "all_rankscope": lambda: ours_all(base, factors),
        "all_dense": lambda: dense_all(base, W0, factors),
    }
    taken = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            taken[name].append(seconds(work))
    found: dict[str, float] = {name: statistics.median(values) for name, values in taken.items()}
    (values, count), (theirs, their_count) = ours(base, factors), dense(U0, W0, factors)
    found["largest_difference_of_values"] = float((values - theirs[:rank].double()).abs().max())
    found |= {"intruders": count, "intruders_by_dense": their_count}
    mine, wide = ours_all(base, factors), dense_all(base, W0, factors)
    found["largest_difference_of_measures"] = max(abs(mine[key] - wide[key]) for key in wide)
    for part in ("intruders", "all"):
        found[f"{part}_ratio"] = found[f"{part}_dense"] / found[f"{part}_rankscope"]
    return found


def main() -> None:
    """Measure, and write the numbers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=HERE / "spectra.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    W0 = base_matrix(arguments.width)
    found = decompose(W0)
    # As stages read it from the cache.
    base = Decomposition(found.U.float().contiguous(), found.S, found.Vh.float().contiguous())
    ranks = {}
    for rank in RANKS:
        ranks[str(rank)] = found = compare(arguments.width, rank, base, W0, arguments.repeats)
        print(rank, {key: round(value, 9 if "difference" in key else 4) for key, value in found.items()}, flush=True)
    document = {"width": arguments.width, "load_average": os.getloadavg()[0], "ranks": ranks}
    arguments.out.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
