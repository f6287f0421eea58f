"""Hand-made migrated adapters with their reports, right by the dense reference."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any

import ml_dtypes
import msgspec
import numpy as np
import reference

from prolora_jax.adapters.adapter import Adapter, LoraModule
from prolora_jax.adapters.adapter import delta as adapter_delta
from prolora_jax.architectures.spec import BaseModelSpec, ModuleSpec
from prolora_jax.plans.options import MigrationOptions
from prolora_jax.plans.plan import Action, ModuleSimilarity, PlanStep, Skip, SkippedModule
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

    def weight(self, path: str) -> np.ndarray:
        return self.weights[path]

    def fingerprint(self, path: str) -> str:
        return sha256(self.weights[path].tobytes()).hexdigest()[:32]

    def matrix(self, path: str) -> np.ndarray:
        return self.weights[path].reshape(self.weights[path].shape[0], -1).astype(np.float32)


@dataclass(frozen=True)
class Exact(Base):
    """The same with weights that are not rounded: equal singular values stay equal."""

    def matrix(self, path: str) -> np.ndarray:
        return self.weights[path].reshape(self.weights[path].shape[0], -1)


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

    def delta(self, path: str) -> np.ndarray:
        """The input's update, dense."""
        return adapter_delta(self.source_lora, path)

    def with_header(self, **changes) -> "Files":
        """With the header's entry `prolora` as the report has it, but for changes."""
        told = self.report
        facts = {
            "version": told.prolora_version,
            "options": told.options.changed() | {"method": told.options.method},
            "input": told.input.fingerprint,
            "source": told.source.fingerprint,
            "target": told.target.fingerprint,
            "architecture": None,
            "counts": told.counts,
        }
        text = msgspec.json.encode(facts | changes).decode()
        metadata = {**self.output.metadata, "prolora": text}
        return replace(self, output=replace(self.output, metadata=metadata))

    def with_target(self, **weights: np.ndarray) -> "Files":
        """With other weights in the target, and fingerprints and header of these."""
        target = Base(self.target.spec, self.target.weights | weights)
        party = made_of(target, list(self.report.modules), "path")
        return replace(self, target=target).with_report(target=party)

    def counted(self) -> "Files":
        """With counts, fingerprints and a header of the records that are in the report now."""
        told = self.report
        kinds = [str(r.action) for r in told.modules] + [str(s.reason) for s in told.skipped]
        return self.with_report(
            counts=dict(Counter(kinds)),
            source=made_of(self.source, list(told.modules), "source_path"),
            target=made_of(self.target, list(told.modules), "path"),
        )

    def with_report(self, **changes) -> "Files":
        """With other fields in the report, and a header that agrees with it."""
        return replace(self, report=replace(self.report, **changes)).with_header()

    def with_options(self, **changes) -> "Files":
        """With other options, in report and header alike."""
        return self.with_report(options=replace(self.report.options, **changes))

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


def right_update(update, delta, options: MigrationOptions) -> tuple[np.ndarray, int, float]:
    """An arm's update cut to the rank asked for, then rescaled; that rank; and the share kept."""
    exact = 6 if options.method == "prolora" else 3
    ranks = {"exact": exact, "source": 3, "2": 2}
    rank = ranks[options.rank] if options.rank in ranks else energy_rank(update, options.rank)
    cut = reference.truncate(update, rank)
    norms = np.linalg.norm(delta), np.linalg.norm(cut)
    factor = norms[0] / norms[1] if options.rescale == "norm" else 1.0
    kept = float((norms[1] / np.linalg.norm(update)) ** 2)
    return options.scale * factor * cut, rank, kept


def energy_rank(update, text: str) -> int:
    s = np.linalg.svd(update, compute_uv=False)
    return reference.rank_of(s, ("energy", float(text.removeprefix("energy="))))


def similarity_of(pair: reference.Pair, k: int, shape: tuple[int, int]) -> ModuleSimilarity:
    """Both sides' similarity, and the same corrected for chance."""
    phis = reference.phi(pair.u_s, pair.u_t), reference.phi(pair.v_s, pair.v_t)
    left, right = (
        reference.corrected(phi, reference.chance(k, k, dim))
        for phi, dim in zip(phis, shape, strict=True)
    )
    return ModuleSimilarity(phis[0], phis[1], left, right, k, k)


def flags_of(similarity: ModuleSimilarity, weights: tuple, k: int, copied: bool) -> tuple[str, ...]:
    """What docs/method.md 3 calls a module."""
    hats = similarity.phi_hat_left, similarity.phi_hat_right
    clustered = max(reference.rounding_angle(weight, k) for weight in weights) > 0.1
    flags = ["clustered-cut"] if clustered else []
    if copied:
        return (*flags, "below-threshold")
    flags += ["uninformative"] if None in hats else []
    return (*flags, *(["weak-similarity"] if any(h is not None and h < 0.5 for h in hats) else []))


def still_of(source: reference.Split, target: reference.Split, options: MigrationOptions) -> int:
    cosines = reference.principal_vectors(source, target)[1]
    return int(np.sum(cosines < options.rotation_min_cos))


def made_of(base: Base, records: list[ModuleReport], side: str) -> Party:
    """A base model by the weights that were used: a hash over their hashes, by path."""
    digests = {path: base.fingerprint(path) for path in sorted(getattr(r, side) for r in records)}
    return Party(base.spec.name, sha256(msgspec.json.encode(digests)).hexdigest())


def retained_by(text: str, weights: tuple, shape: tuple[int, int]) -> int:
    """One common rank for two weights by a rule."""
    kind, _, value = text.partition("=")
    rule = ("optimal", *sorted(shape)) if kind == "optimal" else (kind, float(value or 0.0))
    source, target = (reference.svd(weight)[1] for weight in weights)
    return max(reference.pair_ranks(source, target, rule))


def make_files(dtype=np.float32, own: Mapping[str, dict[str, Any]] = {}, **options) -> Files:  # noqa: B006
    """A right output for modules of rank 3; the gate stops `stranger` unless it is negative.

    `own` are options of some modules by their paths, which rules among the options should say, too.
    """
    defaults: dict[str, Any] = {"basis_rank": "fraction=0.5", "min_similarity": 0.7}
    every = MigrationOptions(**{"dtype": np.dtype(dtype).name, **defaults, **options})
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
        chosen = replace(every, rules=(), **own.get(path, {}))
        weights = source.matrix(path), target.matrix(path)
        k = retained_by(chosen.basis_rank, weights, (out, width))
        pair = reference.pair_of_weights(*weights, k, k)
        similarity = similarity_of(pair, k, spec.matrix_shape)
        stopped = path == "unet.stranger" and chosen.min_similarity > 0
        if stopped and chosen.method != "copy" and chosen.below == "skip":
            skipped.append(SkippedModule(Skip.BELOW_THRESHOLD, path, path, similarity))
            continue
        ungated = chosen.method == "copy"
        copied = ungated or stopped
        update = delta if copied else reference.project(chosen.method, pair, delta)
        cut, rank, kept = right_update(update, delta, chosen)
        after.append(stored(path, cut, spec.shape, dtype, rank if chosen.scale else 1))
        energies = [float(e) for e in reference.block_energies(pair, delta) / np.sum(delta**2)]
        turned = chosen.method == "rotation" and not copied
        step = PlanStep(
            path,
            path,
            Action.COPY if copied else Action.PROJECT,
            None if ungated else similarity,
            () if ungated else flags_of(similarity, weights, k, copied),
        )
        records.append(
            ModuleReport.of(
                step,
                (3, used_columns(after[-1])),
                (float(np.linalg.norm(delta)), float(np.linalg.norm(cut))),
                kept,
                None if copied else (energies[0], energies[1], energies[2], energies[3]),
                (still_of(pair.u_s, pair.u_t, chosen), still_of(pair.v_s, pair.v_t, chosen))
                if turned
                else None,
            )
        )
    extras = {"text_encoder.x": np.arange(3.0)}
    widest = max(record.rank_out for record in records)
    given = Adapter(tuple(before), "peft", extras, origin="in")
    report = MigrationReport(
        "0",
        every,
        made_of(source, records, "source_path"),
        made_of(target, records, "path"),
        Party("in", given.fingerprint),
        tuple(records),
        tuple(skipped),
        (),
        ("text_encoder.x",),
        dict(Counter([str(r.action) for r in records] + [str(s.reason) for s in skipped])),
    )
    padded = tuple(module.padded(max(widest, module.rank)) for module in after)
    metadata = {"format": "pt"}
    output = Adapter(padded, "peft", extras, metadata, origin="out")
    return Files(output, given, source, target, report).with_header()


def used_columns(module: LoraModule) -> int:
    up, down = module.up.reshape(-1, module.rank), module.down.reshape(module.rank, -1)
    return max(int(np.sum(up.any(axis=0) & down.any(axis=1))), 1)
