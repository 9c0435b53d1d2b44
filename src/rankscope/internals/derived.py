"""Updates changed after training: rewound towards the base, cut to a lower rank, freed of intruders.

Each function takes an update and returns what to add to the base instead. An adapter stays in factors whose product is
the whole update (a scaling of 1). Nothing here trains.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from rankscope.internals import truncation
from rankscope.internals.eigenpairs import direct
from rankscope.internals.subspaces import (
    INTRUDERS_AMONG,
    Triplets,
    full_triplets,
    in_base,
    intruders,
    lora_triplets,
    numerical_rank,
)
from rankscope.models.decompositions import Decomposition
from rankscope.models.updates import Factors


@dataclass(frozen=True)
class Product:
    """An update as a product, `B @ A`, in float64.

    Attributes:
        num_intruders: Of a mended one: how many directions were scaled, each of which adds one to the rank.
    """

    A: Float[Tensor, "rank d_in"]
    B: Float[Tensor, "d_out rank"]
    num_intruders: int = 0

    @property
    def rank(self) -> int:
        """The width of the factors."""
        return self.A.shape[0]


def rewound(A: Float[Tensor, "rank d_in"], B: Float[Tensor, "d_out rank"], scaling: float, share: float) -> Product:
    """An adapter's update times a share: 0 is the base, 1 the tuned model, more goes on beyond it."""
    return Product(A.double(), share * scaling * B.double())


def truncated(A: Float[Tensor, "rank d_in"], B: Float[Tensor, "d_out rank"], scaling: float, rank: int) -> Product:
    """The update of a rank that is closest to an adapter's: the first triplets of its singular value decomposition."""
    cut = truncation.truncated(Factors(A, B, scaling), rank)
    return Product(cut.A, cut.B)


def mended(
    base: Decomposition,
    A: Float[Tensor, "rank d_in"],
    B: Float[Tensor, "d_out rank"],
    scaling: float,
    share: float,
) -> Product:
    """An adapter's update with the intruder dimensions of the tuned matrix scaled: `W + (share - 1) s u v'`.

    1 leaves them, 0 takes them out. Exact, so the product is as much wider as there are intruders; PEFT's own reduction
    cuts it back to the old rank and loses what that takes. Shuttleworth et al., arXiv 2410.21228, section 6.
    """
    A, B = A.double(), scaling * B.double()
    k = min(INTRUDERS_AMONG, numerical_rank(base.S))
    found = lora_triplets(base, in_base(base, A, B, 1.0), k)
    U, V = _vectors(base, found, A, B)
    chosen = intruders(found.left)
    added = (share - 1.0) * found.S[chosen] * U[:, chosen]
    return Product(torch.cat([A, V[:, chosen].T]), torch.cat([B, added], 1), int(chosen.sum()))


def full_truncated(delta_W: Float[Tensor, "d_out d_in"], rank: int) -> Float[Tensor, "d_out d_in"]:
    """The update of a rank that is closest to a full update: what it is within its first directions of one side.

    They are eigenvectors of its Gram matrix, found in a fifth of a decomposition's time; directions below `1e-8` of the
    largest, which squares hide, are as good as none.
    """
    wide = delta_W.double()
    if wide.shape[0] < wide.shape[1]:
        return full_truncated(wide.T, rank).T
    _, rows, _ = direct(wide.T @ wide, min(rank, wide.shape[1]))
    return (wide @ rows.T) @ rows


def full_mended(
    base: Decomposition, W0: Float[Tensor, "d_out d_in"], delta_W: Float[Tensor, "d_out d_in"], share: float
) -> tuple[Float[Tensor, "d_out d_in"], int]:
    """A full update with the intruder dimensions of the tuned matrix scaled, and how many there were."""
    W = W0.double() + delta_W.double()
    found = full_triplets(base, W, min(INTRUDERS_AMONG, numerical_rank(base.S)))
    chosen = intruders(found.left)
    if base.U.shape[0] >= base.Vh.shape[1]:
        V = base.Vh.double().T @ found.right[:, chosen]
        U = W @ V / found.S[chosen]
    else:
        U = base.U.double() @ found.left[:, chosen]
        V = W.T @ U / found.S[chosen]
    return delta_W.double() + (share - 1.0) * (U * found.S[chosen]) @ V.T, int(chosen.sum())


def _vectors(base: Decomposition, found: Triplets, A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    """The singular vectors themselves: exact on the side that the base's span, and through `W` on the other."""
    U0, Vh0 = base.U.double(), base.Vh.double()
    if U0.shape[0] >= Vh0.shape[1]:
        V = Vh0.T @ found.right
        return (U0 @ (base.S.unsqueeze(1) * found.right) + B @ (A @ V)) / found.S, V
    U = U0 @ found.left
    return U, (Vh0.T @ (base.S.unsqueeze(1) * found.left) + A.T @ (B.T @ U)) / found.S
