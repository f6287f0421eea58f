"""The method in PyTorch, as one would write it there: measured beside ours, used for nothing.

Written from method.md, for the arm `prolora`, at three levels of care. Everything that depends on
the base models alone is prepared ahead of time and is not part of what is measured:

* `PaperLayer`: the formulas as the paper has them. The update is made dense, four projections are
  applied to it, and all eight bases, the complements too, are there before the clock starts. Each
  projection is `U ((U^T X) V) V^T`, never a product with a dim x dim projector.
* `ThinLayer`: the update stays factored, and the overlaps of the bases are cached: one module of
  one adapter at a time.
* `WideLayers`: many modules of one shape and many adapters at once; per side the cheaper of thin
  bases and dense composites; ranks cut through two batched eigenvalue problems.

The factors are those of torch's LoRA: `up (out, rank)`, `down (rank, in)`, scale folded in.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from prolora_jax.errors import Refusal, UsageError

if TYPE_CHECKING:
    from torch import Tensor
else:
    Tensor = Any

DENSE_WINS = 0.37
"""Dense composites are cheaper than thin bases when min(k, dim - k) > this * dim."""


class Spans(NamedTuple):
    """Leading singular vectors of a source and a target weight, as NumPy has them."""

    u_source: np.ndarray
    v_source: np.ndarray
    u_target: np.ndarray
    v_target: np.ndarray


def library() -> Any:
    """PyTorch, kept to one thread like everything that is measured beside it.

    Raises:
        UsageError: it is not installed.
    """
    try:
        import torch
    except ImportError:
        raise UsageError(
            "The baselines of the benchmarks need PyTorch, which is not installed. "
            'Install the extra `test`: pip install "prolora_jax[test]"',
            code=Refusal.MISSING_LIBRARY,
        ) from None
    torch.set_num_threads(1)
    return torch


# --- as the paper has it ----------------------------------------------------------------------


class PaperLayer:
    """One module: dense update, four explicit projections, explicit complements."""

    def __init__(self, spans: Spans):
        self._left = [_with_complement(u) for u in (spans.u_source, spans.u_target)]
        self._right = [_with_complement(v) for v in (spans.v_source, spans.v_target)]

    def project(self, up: Tensor, down: Tensor) -> Tensor:
        """The dense update on the target."""
        delta = up @ down
        parts = []
        for half in (0, 1):  # inside the spans, then inside their complements
            part = delta
            for left, right in zip(self._left, self._right, strict=True):  # source, then target
                part = left[half] @ (left[half].T @ part @ right[half]) @ right[half].T
            parts.append(part)
        return parts[0] + parts[1]

    def migrate(self, up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
        """`project`, then `torch.linalg.svd` back to factors of the rank that came in."""
        rank = down.shape[0]
        u, s, vh = library().linalg.svd(self.project(up, down), full_matrices=False)
        return u[:, :rank] * s[:rank], vh[:rank]


def _with_complement(basis: np.ndarray) -> tuple[Tensor, Tensor]:
    span = library().from_numpy(basis)
    return span.float().contiguous(), _complement(basis).float().contiguous()


def _complement(basis: np.ndarray) -> Tensor:
    """Orthonormal columns of what a span leaves of the full space, float64."""
    torch = library()
    columns = torch.from_numpy(np.asarray(basis, np.float64))
    return torch.linalg.qr(columns, mode="complete").Q[:, columns.shape[1] :]


# --- factored, one module of one adapter at a time --------------------------------------------


class ThinSide(NamedTuple):
    """One axis of one module, or of several of one shape, stacked: both bases, their overlap.

    Attributes:
        source: columns of the source span.
        target: columns of the target span.
        overlap: `target^T source`.
        swapped: whether these are the complements of the spans: what is inside is then outside.
    """

    source: Tensor
    target: Tensor
    overlap: Tensor
    swapped: bool

    def split(self, block: Tensor) -> tuple[Tensor, Tensor]:
        """`P_t P_s B` and `(I - P_t)(I - P_s) B` for columns B."""
        in_source = self.source.mT @ block
        carried = self.overlap @ in_source  # U_t^T P_s B
        inside = self.target @ carried
        in_target = self.target.mT @ block - carried
        outside = block - self.source @ in_source - self.target @ in_target
        return (outside, inside) if self.swapped else (inside, outside)


def thin_side(source: np.ndarray, target: np.ndarray) -> ThinSide:
    """Prepare one axis of one module; spans above half of the space give way to complements."""
    torch = library()
    dim, k = source.shape
    swapped = 2 * k > dim and target.shape[1] == k
    prepare = _complement if swapped else torch.from_numpy
    u_source, u_target = (prepare(basis).float().contiguous() for basis in (source, target))
    return ThinSide(u_source, u_target, u_target.T @ u_source, swapped)


class ThinLayer:
    """One module on factors: bases and their overlaps cached."""

    def __init__(self, spans: Spans):
        self._left = thin_side(spans.u_source, spans.u_target)
        self._right = thin_side(spans.v_source, spans.v_target)

    def project(self, up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
        """Factors of twice the rank, exactly the update on the target."""
        torch = library()
        lefts, rights = self._left.split(up), self._right.split(down.T)
        return torch.cat(lefts, dim=1), torch.cat(rights, dim=1).T

    def migrate(self, up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
        """`project`, then QR and a small SVD back to the rank that came in."""
        return cut_by_qr(*self.project(up, down), rank=down.shape[0])


def cut_by_qr(up: Tensor, down: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The best factors of a rank, by QR of both sides and the SVD of what is between; batched.

    Args:
        up: `(..., out, columns)`.
        down: `(..., columns, in)`.
        rank: columns to keep.
    """
    torch = library()
    q_left, r_left = torch.linalg.qr(up)
    q_right, r_right = torch.linalg.qr(down.mT)
    u, s, vh = torch.linalg.svd(r_left @ r_right.mT)
    return (
        q_left @ (u[..., :rank] * s[..., None, :rank]),
        vh[..., :rank, :] @ q_right.mT,
    )


# --- many modules of one shape, many adapters ---------------------------------------------------


class WideSide:
    """One axis of many modules of one shape and one k, stacked."""

    def __init__(self, sources: Sequence[np.ndarray], targets: Sequence[np.ndarray]):
        torch = library()
        sides = [thin_side(s, t) for s, t in zip(sources, targets, strict=True)]
        dim, k = sides[0].source.shape  # at most half of dim
        self._dim = dim
        self._composites: Tensor | None = None
        if k > DENSE_WINS * dim:
            # Both composites, one below the other: one product then gives both parts.
            identity = torch.eye(dim)
            self._composites = torch.stack([torch.cat(side.split(identity)) for side in sides])
            return
        self._thin = ThinSide(
            source=torch.stack([side.source for side in sides]),
            target=torch.stack([side.target for side in sides]),
            overlap=torch.stack([side.overlap for side in sides]),
            swapped=sides[0].swapped,
        )

    def split(self, block: Tensor) -> tuple[Tensor, Tensor]:
        """Both parts of `(modules, dim, columns)`."""
        if self._composites is None:
            return self._thin.split(block)
        both = self._composites @ block
        return both[:, : self._dim], both[:, self._dim :]


class WideLayers:
    """Many modules of one shape, many adapters of one rank."""

    def __init__(self, spans: Sequence[Spans]):
        self._left = WideSide([s.u_source for s in spans], [s.u_target for s in spans])
        self._right = WideSide([s.v_source for s in spans], [s.v_target for s in spans])

    def project(self, up: Tensor, down: Tensor) -> tuple[tuple[Tensor, Tensor], ...]:
        """The two parts of every update, each of the rank that came in.

        Args:
            up: `(modules, adapters, out, rank)`.
            down: `(modules, adapters, rank, in)`.

        Returns:
            Inside and outside the spans, each `(up, down)` in the shapes that came in.
        """
        rank = down.shape[2]
        lefts = self._left.split(_side_by_side(up))
        rights = self._right.split(_side_by_side(down.mT))
        return tuple(
            (_one_by_one(left, rank), _one_by_one(right, rank).mT)
            for left, right in zip(lefts, rights, strict=True)
        )

    def migrate(self, up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
        """`project`, then back to the rank that came in.

        The two parts have orthogonal ranges on both sides, so the singular values of their sum
        are those of the one and those of the other.
        """
        torch = library()
        rank = down.shape[2]
        forms = [_singular_form(*part) for part in self.project(up, down)]
        sigmas, lefts, rights = zip(*forms, strict=True)
        sigma = torch.cat(sigmas, dim=2)
        kept = torch.topk(sigma, rank, dim=2).indices[:, :, None, :]
        return (
            torch.take_along_dim(torch.cat(lefts, dim=3), kept, dim=3),
            torch.take_along_dim(torch.cat(rights, dim=2), kept.mT, dim=2),
        )


def _side_by_side(blocks: Tensor) -> Tensor:
    """`(modules, adapters, dim, rank)` to `(modules, dim, adapters * rank)`."""
    return blocks.transpose(1, 2).flatten(2)


def _one_by_one(columns: Tensor, rank: int) -> Tensor:
    """The way back of `_side_by_side`."""
    return columns.unflatten(2, (-1, rank)).transpose(1, 2)


def _singular_form(up: Tensor, down: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Singular values, `B` with orthonormal columns and `A` with `up down = B A`, batched.

    From the Gram matrices of the factors, in float64: squaring then costs nothing that float32
    holds. Directions that a factor does not have get no column of weight.

    Returns:
        sigma `(..., rank)`, B `(..., dim, rank)`, A `(..., rank, dim)`.
    """
    torch = library()
    up64, down64 = up.double(), down.double()
    eigenvalues, e = torch.linalg.eigh(up64.mT @ up64)
    tiny = eigenvalues[..., -1:] * torch.finfo(torch.float64).eps * eigenvalues.shape[-1]
    there = eigenvalues > tiny
    root = torch.where(there, eigenvalues, 0.0).sqrt()
    inverse = torch.where(there, 1.0 / root.clamp_min(torch.finfo(torch.float64).tiny), 0.0)
    scaled = e * root[..., None, :]
    squares, z = torch.linalg.eigh(scaled.mT @ (down64 @ down64.mT) @ scaled)
    left = up @ ((e * inverse[..., None, :]) @ z).float()
    right = (scaled @ z).mT.float() @ down
    # Sums of an even power of float64 rounding: a zero may come out below it.
    return squares.clamp_min(0.0).sqrt().float(), left, right
