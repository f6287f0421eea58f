"""Hand-made migrated adapters with their reports, right by the dense reference."""

from dataclasses import dataclass, replace

import ml_dtypes
import numpy as np
import reference

from prolora_jax.adapters.adapter import Adapter, LoraModule
from prolora_jax.architectures.spec import BaseModelSpec, ModuleSpec
from prolora_jax.plans.options import MigrationOptions
from prolora_jax.plans.plan import Action, Skip, SkippedModule
from prolora_jax.plans.report import MigrationReport, ModuleReport, Party
from prolora_jax.verification.adapter import verify_adapter


def weight(rng, shape, like=None, distance=0.15):
    """A random weight with a spread spectrum, or a relative of another one."""
    noise = rng.standard_normal(shape) * np.linspace(2.0, 0.5, shape[1])
    return noise if like is None else like + distance * noise


@dataclass(frozen=True)
class Base:
    """A base model in memory."""

    spec: BaseModelSpec
    weights: dict[str, np.ndarray]

    def matrix(self, path: str) -> np.ndarray:
        return self.weights[path].reshape(self.weights[path].shape[0], -1).astype(np.float32)


@dataclass(frozen=True)
class Files:
    """Everything that `verify_adapter` wants."""

    output: Adapter
    source_lora: Adapter
    source: Base
    target: Base
    report: MigrationReport

    def verify(self):
        report = self.report.to_dict()
        return verify_adapter(self.output, self.source_lora, self.source, self.target, report)

    def with_module(self, index: int, **changes) -> "Files":
        modules = list(self.output.modules)
        modules[index] = replace(modules[index], **changes)
        return replace(self, output=replace(self.output, modules=tuple(modules)))

    def with_record(self, index: int, **changes) -> "Files":
        records = list(self.report.modules)
        records[index] = replace(records[index], **changes)
        return replace(self, report=replace(self.report, modules=tuple(records)))


# a and b have one shape, so that they can be taken for each other; `stranger` is unrelated.
SHAPES = {
    "a": (12, 12),
    "b": (12, 12),
    "wide": (8, 20),
    "conv": (10, 3, 3, 3),
    "stranger": (30, 40),
}
DTYPES = [np.float32, np.float16, ml_dtypes.bfloat16]


def base(weights: dict[str, np.ndarray]) -> Base:
    specs = {f"unet.{n}": ModuleSpec(f"unet.{n}", w.shape) for n, w in weights.items()}
    return Base(BaseModelSpec("toy", specs), {f"unet.{n}": w for n, w in weights.items()})


def stored(path: str, update: np.ndarray, shape: tuple[int, ...], dtype, rank: int) -> LoraModule:
    """An update as the factors of a file, by its SVD."""
    u, s, vt = np.linalg.svd(update, full_matrices=False)
    u, s, vt = u[:, :rank], s[:rank], vt[:rank]
    down = (np.sqrt(s)[:, None] * vt).reshape(len(s), *shape[1:]).astype(dtype)
    up = (u * np.sqrt(s)).reshape(-1, len(s), *[1] * (len(shape) - 2)).astype(dtype)
    return LoraModule(path, down, up, alpha=None)


def right_update(update, delta, options: MigrationOptions) -> tuple[np.ndarray, int]:
    """An arm's update cut to the rank asked for, then rescaled; and that rank (at most 6)."""
    ranks = {"exact": 6, "source": 3, "2": 2}
    rank = ranks[options.rank] if options.rank in ranks else energy_rank(update, options.rank)
    cut = reference.truncate(update, rank)
    norms = np.linalg.norm(delta), np.linalg.norm(cut)
    factor = norms[0] / norms[1] if options.rescale == "norm" else 1.0
    return options.scale * factor * cut, rank


def energy_rank(update, text: str) -> int:
    s = np.linalg.svd(update, compute_uv=False)
    return reference.rank_of(s, ("energy", float(text.removeprefix("energy="))))


def make_files(dtype=np.float32, **options) -> Files:
    """A right output for modules of rank 3; the gate stops `stranger` unless it is negative."""
    chosen = MigrationOptions(**({"basis_rank": "fraction=0.5", "min_similarity": 0.7} | options))
    rng = np.random.default_rng(0)
    source_weights = {n: weight(rng, (s[0], int(np.prod(s[1:])))) for n, s in SHAPES.items()}
    target_weights = {n: weight(rng, w.shape, w) for n, w in source_weights.items()}
    target_weights["stranger"] = weight(rng, (30, 40))
    # float32, as a checkpoint has them
    source = base({n: w.astype(np.float32).reshape(SHAPES[n]) for n, w in source_weights.items()})
    target = base({n: w.astype(np.float32).reshape(SHAPES[n]) for n, w in target_weights.items()})
    before, after, records, skipped = [], [], [], []
    for path, spec in source.spec.modules.items():
        out, width = spec.matrix_shape
        down = rng.standard_normal((3, *spec.shape[1:])).astype(np.float32)
        up = rng.standard_normal((out, 3, *[1] * (len(spec.shape) - 2))).astype(np.float32)
        before.append(LoraModule(path, down, up, alpha=1.5))
        delta = 0.5 * up.reshape(out, 3).astype(np.float64) @ down.reshape(3, width)
        k = round(min(out, width) / 2)
        pair = reference.pair_of_weights(source.matrix(path), target.matrix(path), k, k)
        phi = reference.phi(pair.u_s, pair.u_t), reference.phi(pair.v_s, pair.v_t)
        stopped = path == "unet.stranger" and chosen.min_similarity > 0
        if stopped and chosen.method != "copy" and chosen.below == "skip":
            skipped.append(SkippedModule(Skip.BELOW_THRESHOLD, path, path))
            continue
        copied = chosen.method == "copy" or stopped
        update = delta if copied else reference.project(chosen.method, pair, delta)
        cut, rank = right_update(update, delta, chosen)
        after.append(stored(path, cut, spec.shape, dtype, rank))
        records.append(
            ModuleReport(
                path=path,
                source_path=path,
                action=Action.COPY if copied else Action.PROJECT,
                phi_left=None if chosen.method == "copy" else phi[0],
                phi_right=None if chosen.method == "copy" else phi[1],
                phi_hat_left=None,
                phi_hat_right=None,
                k_source=None if chosen.method == "copy" else k,
                k_target=None if chosen.method == "copy" else k,
                rank_in=3,
                rank_out=after[-1].rank,
                norm_in=1.0,
                norm_out=1.0,
                kept=1.0,
            )
        )
    extras = {"text_encoder.x": np.arange(3.0)}
    report = MigrationReport(
        "0",
        chosen,
        Party("s", ""),
        Party("t", ""),
        Party("i", ""),
        tuple(records),
        tuple(skipped),
        (),
        ("text_encoder.x",),
    )
    return Files(
        Adapter(tuple(after), "peft", extras, origin="out"),
        Adapter(tuple(before), "peft", extras, origin="in"),
        source,
        target,
        report,
    )
