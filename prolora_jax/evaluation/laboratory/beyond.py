"""Ways to move an adapter that the paper does not have, all of them without training.

Each starts from what `copy` puts beside the target and changes it, module by module, by what the
two base models' weights say, or by what a few forward passes of both on made-up inputs say. They
work on dense updates: the laboratory's matrices are small, and what is asked here is only whether
something is won.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from prolora_jax.architectures.unet.stacks import split_block
from prolora_jax.evaluation.laboratory.activations import Activations, recorded_inputs
from prolora_jax.evaluation.laboratory.adapters import TrainedFactors
from prolora_jax.evaluation.laboratory.trials import Contest
from prolora_jax.plans.options import MigrationOptions

Deltas = dict[str, np.ndarray]
"""Updates `(out, in)` in float64 by target path."""

FORWARD_PICTURES = 64


@dataclass(frozen=True)
class Move:
    """An adapter on its way: what `copy` makes of it, and what it may look at.

    Attributes:
        contest: the adapter and the pair.
    """

    contest: Contest

    @cached_property
    def copied(self) -> Deltas:
        """The updates as `copy` puts them beside the target."""
        return deltas(self._moved(MigrationOptions(method="copy")))

    @cached_property
    def projected(self) -> Deltas:
        """The same by `prolora-full`, without gate."""
        return deltas(self._moved(MigrationOptions(method="prolora-full", min_similarity=-1.0)))

    @cached_property
    def given(self) -> Deltas:
        """The updates on the source, by source path."""
        pair = self.contest.pair
        return deltas(pair.workshop.factors(pair.source, self.contest.adapter, self.contest.seed))

    @cached_property
    def sources(self) -> Mapping[str, str]:
        """Source path of each target module."""
        return self.contest.pair.bases.matching().pairs

    def weights(self, path: str) -> tuple[np.ndarray, np.ndarray]:
        """Source's and target's weight of a target module, `(out, in)` in float64."""
        bases = self.contest.pair.bases
        source, target = bases.source.matrix(self.sources[path]), bases.target.matrix(path)
        return source.astype(np.float64), target.astype(np.float64)

    def similarity(self, path: str) -> float:
        """Phi of the smaller side at half the rank."""
        options = MigrationOptions(basis_rank="fraction=0.5", identical="project")
        measure = self.contest.pair.bases.measure({path: self.sources[path]}, options)[path]
        if measure.similarity is None:  # nothing to compare: as close as can be
            return 1.0
        return min(measure.similarity.phi_left, measure.similarity.phi_right)

    def inputs(self, of: str) -> tuple[Activations, Activations]:
        """Inputs of every linear module of source and target, the same pictures shown to both.

        Args:
            of: `noise`, or `samples` for the target's own pictures at all noise levels.
        """
        pair = self.contest.pair
        return recorded_inputs(pair.workshop, pair.source, pair.target, of, FORWARD_PICTURES)

    def _moved(self, options: MigrationOptions) -> dict[str, TrainedFactors]:
        contest = self.contest
        return contest.pair.moved(contest.adapter, contest.seed, options)[0]


def deltas(factors: Mapping[str, TrainedFactors]) -> Deltas:
    """Dense updates."""
    return {
        path: np.asarray(up, np.float64) @ np.asarray(down, np.float64)
        for path, (down, up) in factors.items()
    }


def as_factors(updates: Deltas) -> dict[str, TrainedFactors]:
    """Factors whose products are the updates; as many columns as those have."""
    return {
        path: TrainedFactors(np.eye(delta.shape[1], dtype=np.float32), delta.astype(np.float32))
        for path, delta in updates.items()
    }


def drift_removed(move: Move, strength: float) -> Deltas:
    """Take away what the target's own drift `W_t - W_s` has already done.

    In the source weight's singular basis, entry by entry: where drift and update point the same
    way, the update loses as much as the drift has gone, times `strength`, and never turns round.
    (The idea of CASA, from its description.)
    """
    found = {}
    for path, delta in move.copied.items():
        source, target = move.weights(path)
        left, _, right = np.linalg.svd(source)
        wanted, drift = (left.T @ x @ right.T for x in (delta, target - source))
        done = np.where(wanted * drift > 0, np.minimum(np.abs(wanted), strength * np.abs(drift)), 0)
        found[path] = left @ (wanted - np.sign(wanted) * done) @ right
    return found


def drift_projected_out(move: Move, strength: float) -> Deltas:
    """Take away the part of the update along the drift, when it points the same way."""
    found = {}
    for path, delta in move.copied.items():
        source, target = move.weights(path)
        drift = target - source
        along = max(0.0, float(np.sum(delta * drift)) / max(float(np.sum(drift**2)), 1e-30))
        found[path] = delta - strength * along * drift
    return found


def norm_matched(move: Move, strength: float) -> Deltas:
    """Keep `|dW| / |W|`: each module's update times `(|W_t| / |W_s|) ** strength`."""
    found = {}
    for path, delta in move.copied.items():
        source, target = (np.linalg.norm(weight) for weight in move.weights(path))
        found[path] = float(target / source) ** strength * delta
    return found


def pair_scaled(move: Move, strength: float) -> Deltas:
    """One scale for the pair, `1 + strength * (1 - mean Phi)`: farther targets get more."""
    scale = 1 + strength * (1 - move.contest.pair.phi_half)
    return {path: scale * delta for path, delta in move.copied.items()}


def damped(move: Move, strength: float) -> Deltas:
    """Each module's update times its `Phi ** strength`: turned modules get less."""
    return {p: move.similarity(p) ** strength * delta for p, delta in move.copied.items()}


def chosen(move: Move, strength: float) -> Deltas:
    """By module: `copy` from a Phi of `strength` on, `prolora-full` below."""
    return {
        path: delta if move.similarity(path) >= strength else move.projected[path]
        for path, delta in move.copied.items()
    }


def _ridge(move: Move, strength: float, of: str) -> Deltas:
    source, target = move.inputs(of)
    found = {}
    for path, delta in move.copied.items():
        x_s, x_t = source[move.sources[path]], target[path]
        ridge = strength * float(np.sum(x_t**2)) / x_t.shape[1]
        square = x_t.T @ x_t + ridge * np.eye(x_t.shape[1])
        found[path] = np.linalg.solve(square, x_t.T @ (x_s @ delta.T) + ridge * delta.T).T
    return found


def ridge_on_noise(move: Move, strength: float) -> Deltas:
    """`argmin |dW_t X_t - dW_s X_s|^2 + lambda |dW_t - dW_s|^2` on noise shown to both models.

    `X` are the module's inputs; lambda is `strength` times the mean square of the columns of `X_t`
    (the closed form is `(dW_s X_s X_t^T + lambda dW_s) (X_t X_t^T + lambda I)^-1`).
    """
    return _ridge(move, strength, "noise")


def ridge_on_samples(move: Move, strength: float) -> Deltas:
    """The same on noisy pictures that the target makes of itself."""
    return _ridge(move, strength, "samples")


def folded(move: Move, strength: float) -> Deltas:
    """Add `strength` times the update of every removed block to the kept block before it.

    Only where the slot is still there, and the kept module has the same role.
    """
    found = {path: delta.copy() for path, delta in move.copied.items()}
    kept = {move.sources[path]: path for path in found}
    for source_path, delta in move.given.items():
        split = split_block(source_path)
        if source_path in kept or split is None:
            continue
        slot, index, role = split
        earlier = [kept.get(f"{slot}.transformer_blocks.{i}.{role}") for i in range(index)]
        places = [place for place in earlier if place is not None]
        if places:
            found[places[-1]] += strength * delta
    return found


BEYOND: Mapping[str, Callable[[Move, float], Deltas]] = {
    "drift-removed": drift_removed,
    "drift-projected-out": drift_projected_out,
    "norm-matched": norm_matched,
    "pair-scaled": pair_scaled,
    "damped": damped,
    "chosen": chosen,
    "ridge-on-noise": ridge_on_noise,
    "ridge-on-samples": ridge_on_samples,
    "folded": folded,
}
"""By the name that a sweep's `control` has for it; `fraction` is its strength."""
