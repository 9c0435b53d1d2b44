"""The work in one pass through a model: multiplications, bytes that are moved, and operations that are started."""

from __future__ import annotations

from dataclasses import dataclass

from rankscope.cost.model_shapes import ModelShape

# Values read or written for one token in one layer beside the matrix products: norms and residuals (of d_model),
# rotations and the copies around attention (of the heads), the activation (of d_mlp). Counted on Llama's layer in eager
# torch, where each operation reads and writes all of its values.
_PER_D_MODEL, _PER_HEAD, _PER_MLP = 20, 14, 7
# Operations started in one layer, forward: matrix products, norms, rotations, views; an adapted matrix adds two,
# since its products are fused.
_OPERATIONS, _OPERATIONS_ADAPTED = 45, 2


@dataclass(frozen=True)
class Work:
    """What a device has to do.

    Attributes:
        arithmetic: Floating-point operations in matrix products.
        moved: Values read or written by everything else.
        operations: Kernels or calls that are started.
    """

    arithmetic: float = 0.0
    moved: float = 0.0
    operations: float = 0.0

    def __add__(self, other: Work) -> Work:
        """Both, one after the other."""
        return Work(self.arithmetic + other.arithmetic, self.moved + other.moved, self.operations + other.operations)

    def times(self, number: float) -> Work:
        """The same work so many times."""
        return Work(self.arithmetic * number, self.moved * number, self.operations * number)


@dataclass(frozen=True)
class Adapted:
    """What training adds to a model and keeps of it.

    Attributes:
        num_trainable: Parameters with a gradient and optimizer state.
        num_tensors: How many tensors they are in.
        num_matrices: Matrices with an adapter beside them; 0 where the model itself is trained.
        num_multiplied: Adapter parameters that every token is multiplied with.
        is_full: The model's own weights have gradients.
    """

    num_trainable: int
    num_tensors: int
    num_matrices: int
    num_multiplied: int
    is_full: bool


def forward(shape: ModelShape, num_tokens: float, length: float, num_scored: float, adapted: Adapted | None) -> Work:
    """One forward pass.

    Args:
        shape: The model's.
        num_tokens: Positions, padding included.
        length: Of a row: how many keys a query meets.
        num_scored: Positions whose logits are made.
        adapted: The adapters in it, if any.
    """
    inner = shape.num_heads * shape.d_head
    multiplied = shape.num_multiplied + (adapted.num_multiplied if adapted else 0)
    attention = 2 * 2 * num_tokens * length * inner * shape.num_layers
    head = 2 * num_scored * shape.d_model * shape.vocab_size
    per_layer = _PER_D_MODEL * shape.d_model + _PER_HEAD * (inner + 2 * shape.num_kv_heads * shape.d_head)
    per_layer += _PER_MLP * shape.d_mlp
    moved = num_tokens * per_layer * shape.num_layers + 3 * num_scored * shape.vocab_size
    operations = _OPERATIONS * shape.num_layers
    if adapted and adapted.num_matrices:
        # Its product is added to the matrix's own: two more passes over what comes out.
        moved += 2 * num_tokens * sum(d_out for d_out, _ in shape.matrices)
        operations += _OPERATIONS_ADAPTED * adapted.num_matrices
    return Work(2 * num_tokens * multiplied + attention + head, moved, operations)


def backward(shape: ModelShape, num_tokens: float, length: float, num_scored: float, adapted: Adapted) -> Work:
    """The backward pass of the same: frozen weights need no product for their own gradient."""
    ahead = forward(shape, num_tokens, length, num_scored, adapted)
    frozen = 0.0 if adapted.is_full else 2 * num_tokens * shape.num_multiplied
    frozen += 0.0 if adapted.is_full else 2 * num_scored * shape.d_model * shape.vocab_size
    return Work(2 * ahead.arithmetic - frozen, 2 * ahead.moved, 2 * ahead.operations)


def halving(shape: ModelShape) -> Work:
    """The copies of a pass's weights in bfloat16: each is read whole and written at half the width."""
    return Work(0.0, 1.5 * (shape.num_in_layers + shape.d_model * shape.vocab_size), len(shape.matrices))


def update(adapted: Adapted) -> Work:
    """One optimizer step: the norm of the gradients, their clipping, and AdamW."""
    return Work(6.0 * adapted.num_trainable, 11.0 * adapted.num_trainable, 6.0 * adapted.num_tensors)


def decoding_step(shape: ModelShape, num_rows: float, length: float, adapted: Adapted | None) -> Work:
    """One new token for each of some rows; every weight is read once, and the cache of keys and values."""
    ahead = forward(shape, num_rows, length, num_rows, adapted)
    cache = 2 * num_rows * length * shape.num_kv_heads * shape.d_head * shape.num_layers
    # The growing cache is copied at every step, beside being read.
    return ahead + Work(0.0, shape.num_multiplied + shape.d_model * shape.vocab_size + 3 * cache, 0.0)
