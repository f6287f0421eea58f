"""A migrated adapter checked, module by module, against a dense recomputation from the weights.

`dense.recompute` shares no code with what made the file, and neither does anything here; shared
are the spelling of options and the records of a report. The report is believed in one thing: which
source module a target module got. Everything else that it says is recomputed.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import ml_dtypes
import msgspec
import numpy as np
from jaxtyping import Float

from prolora_jax.adapters.adapter import Adapter, LoraModule
from prolora_jax.architectures.clip.table import encoder_of, is_text_encoder
from prolora_jax.architectures.spec import BaseModelSpec
from prolora_jax.errors import Refusal, UsageError
from prolora_jax.plans.options import MigrationOptions, basis_rule, output_rank
from prolora_jax.plans.plan import UNVERIFIED_TEXT_ENCODER, Action, Skip, SkippedModule
from prolora_jax.plans.report import MigrationReport, ModuleReport
from prolora_jax.verification.companions import companion_problems
from prolora_jax.verification.dense import DenseResult, recompute

Matrix = Float[np.ndarray, "out in"]

TOLERANCES = {"float16": 1e-3, "bfloat16": 8e-3}
"""Largest error relative to the input's norm, by the output's dtype (method.md 6, law 8)."""

FLOAT32_TOLERANCE = 1e-4
"""The same for float32 and wider."""

PHI_SLACK = 1e-5
"""Bases are stored in float32: the package's similarity may differ by about 1e-7."""

ENERGY_SLACK = 1e-6
"""`--rank energy=e` is decided on float32 singular values: at a tie it may keep a column less."""

NOTHING_LEFT = 1e-6
"""Share of the input's norm up to which a module may be left out as `nothing-left`."""


@runtime_checkable
class Weights(Protocol):
    """A base model, as far as it is needed here."""

    @property
    def spec(self) -> BaseModelSpec:
        """Its modules."""
        ...

    def matrix(self, path: str) -> np.ndarray:
        """The weight of a module as a float32 matrix `(out, in * kh * kw)`."""
        ...


@dataclass(frozen=True)
class ModuleCheck:
    """What came of one module.

    Attributes:
        path: module of the target.
        source_path: module of the source.
        action: `project`, `copy` or `skip`.
        verdict: `failed` when there are problems; `undetermined` when a cut falls between equal
            singular values, so that there is no one right answer; else `verified`.
        error: ||file - recomputed||_F / ||input||_F, before `--rescale` and `--scale` and without
            what the best approximation of the rank asked for misses; None when there is nothing
            to compare.
        allowed: largest error that the dtype explains.
        problems: what is wrong.
    """

    path: str
    source_path: str
    action: Literal["project", "copy", "skip"]
    verdict: Literal["verified", "undetermined", "failed"]
    error: float | None = None
    allowed: float | None = None
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class VerifyReport:
    """What came of a file.

    Attributes:
        ok: nothing failed.
        worst_error: largest error of a module that could be compared, 0 when there is none.
        counts: number of modules by verdict.
        modules: moved modules, and skipped ones whose reason was recomputed.
        problems: what is wrong with the file as a whole.
    """

    ok: bool
    worst_error: float
    counts: dict[str, int]
    modules: tuple[ModuleCheck, ...]
    problems: tuple[str, ...]


def verify_adapter(
    output: Adapter,
    source_lora: Adapter,
    source: Weights,
    target: Weights,
    report: Mapping[str, Any],
    progress: Callable[[str, int, int], None] | None = None,
) -> VerifyReport:
    """Recompute every module of a migrated adapter and compare.

    Args:
        output: the migrated adapter, resolved against `target`'s spec.
        source_lora: what it was made from, resolved against `source`'s spec.
        source: base model that `source_lora` was trained on.
        target: base model of `output`.
        report: the migration report as plain dicts and lists (`MigrationReport.to_dict`).
        progress: called with ("verify", done, total) after each module.

    Returns:
        A check per module, and what is wrong with the file as a whole.

    Raises:
        UsageError: when `report` is not a migration report.
    """
    try:
        told = msgspec.convert(report, MigrationReport)
    except msgspec.ValidationError as error:
        raise UsageError(
            f"{output.origin}: not a migration report ({error}); expected what `prolora migrate` "
            "writes beside its output. Migrate again.",
            code=Refusal.BAD_REPORT,
        ) from None
    job = _Job(output, source_lora, source, target, told)
    skipped = [s for s in told.skipped if s.reason in _RECOMPUTED]
    checks: list[ModuleCheck] = []
    for record in (*told.modules, *skipped):
        moved = isinstance(record, ModuleReport)
        checks.append(job.check_moved(record) if moved else job.check_skipped(record))
        if progress is not None:
            progress("verify", len(checks), len(told.modules) + len(skipped))
    problems = job.file_problems()
    counts = Counter(check.verdict for check in checks)
    compared = [c.error for c in checks if c.error is not None and c.verdict != "undetermined"]
    # max() would pass over a NaN that does not come first.
    worst = float(np.max(compared)) if compared else 0.0
    return VerifyReport(
        not problems and not counts["failed"], worst, dict(counts), tuple(checks), problems
    )


_RECOMPUTED = (Skip.BELOW_THRESHOLD, Skip.NOTHING_LEFT)
"""Reasons that follow from the weights; the others follow from names, shapes and patterns."""


class _Job:
    """One file, with all that is needed to check it."""

    def __init__(
        self,
        output: Adapter,
        source_lora: Adapter,
        source: Weights,
        target: Weights,
        told: MigrationReport,
    ):
        self.output, self.source_lora, self.told = output, source_lora, told
        self.source, self.target, self.options = source, target, told.options
        self.after = {module.path: module for module in output.modules}
        self.before = {module.path: module for module in source_lora.modules}

    def file_problems(self) -> tuple[str, ...]:
        """Modules and tensors that nothing accounts for."""
        moved = {m.path for m in self.told.modules}
        skipped = {s.path: s.reason for s in self.told.skipped}
        seen = {m.source_path for m in self.told.modules} | {
            s.source_path or s.path for s in self.told.skipped
        }
        problems = [
            f"{p}: of the input, neither moved nor skipped" for p in self.before if p not in seen
        ]
        for path in self.after.keys() - moved:
            told = f"skipped it ({skipped[path]})" if path in skipped else "has no such module"
            problems.append(f"{path}: the file has it, the report {told}")
        if len(self.after) < len(self.output.modules) or len(moved) < len(self.told.modules):
            problems.append(f"{self.output.origin}: a module is there twice")
        for key in self.told.carried:
            there, here = self.source_lora.extras.get(key), self.output.extras.get(key)
            if there is None or here is None or not np.array_equal(there, here):
                problems.append(f"{key}: carried along by the report, but not as in the input")
        beside = self.told.companions, self.source_lora, self.output, self.options.scale
        return tuple(sorted((*problems, *companion_problems(*beside))))

    def check_skipped(self, told: SkippedModule) -> ModuleCheck:
        """Recompute why a module was left out."""
        path, source_path = told.path or "", told.source_path or ""
        before = self.before.get(source_path)
        problem = self._cannot_compare(path, source_path, before)
        if problem or before is None:
            return ModuleCheck(path, source_path, "skip", "failed", problems=(problem,))
        delta = _delta(before)
        dense = self._recompute(path, source_path, delta)
        problems = []
        left = float(np.linalg.norm(dense.delta_t))
        if told.reason is Skip.NOTHING_LEFT and left > NOTHING_LEFT * np.linalg.norm(delta):
            problems.append(f"skipped as {told.reason}, but a norm of {left:.3g} is left")
        if told.reason is Skip.BELOW_THRESHOLD and _passes(dense, self.options, PHI_SLACK):
            problems.append(f"skipped as {told.reason}, but the gate lets {_phis(dense)} pass")
        if dense.undetermined:
            return ModuleCheck(path, source_path, "skip", "undetermined")
        verdict = "failed" if problems else "verified"
        return ModuleCheck(path, source_path, "skip", verdict, problems=tuple(problems))

    def check_moved(self, told: ModuleReport) -> ModuleCheck:
        """Recompute one module of the output and compare it with the file."""
        before, after = self.before.get(told.source_path), self.after.get(told.path)
        names = told.path, told.source_path, told.action.value
        problem = self._cannot_compare(told.path, told.source_path, before, after)
        if UNVERIFIED_TEXT_ENCODER in told.flags:
            problem = self._wrongly_passed(told, before, after)
        if problem or before is None or after is None:
            return ModuleCheck(*names, "failed", problems=(problem,))
        delta, ours = _delta(before), _delta(after)
        dense, problems = self._check_decision(told, delta)
        reference = delta if dense is None or told.action is Action.COPY else dense.delta_t
        cut = _cut(reference, self.options.rank, before.rank)
        error, allowed = self._compare(ours, cut, delta), _tolerance(after)
        if dense is not None and dense.undetermined and "clustered-cut" in told.flags:
            return ModuleCheck(*names, "undetermined", error, allowed)
        if not error <= allowed:  # "not <=", so that NaN fails
            problems.append(f"differs from the recomputed update by {error:.3g} > {allowed:.3g}")
        if cut.rank is not None and _used_columns(after) > cut.rank:
            problems.append(f"has rank {_used_columns(after)}, asked for was {cut.rank}")
        verdict = "failed" if problems else "verified"
        return ModuleCheck(*names, verdict, error, allowed, tuple(problems))

    def _cannot_compare(
        self, path: str, source_path: str, before: LoraModule | None, *after: LoraModule | None
    ) -> str:
        """Why there is nothing to compare; empty when there is."""
        if before is None:
            return f"the input has no module {source_path}"
        if None in after:
            return "the report has it, the file does not"
        specs = self.target.spec.modules.get(path), self.source.spec.modules.get(source_path)
        wanted = [None if spec is None else spec.matrix_shape for spec in specs]
        found = [_shape(module) for module in (*after, before) if module is not None]
        if len({*wanted, *found}) == 1:
            return ""
        return f"has shapes {found} where target and source have {wanted}"

    def _wrongly_passed(
        self, told: ModuleReport, before: LoraModule | None, after: LoraModule | None
    ) -> str:
        """Why a text encoder's module could not be passed through unseen; empty when it could."""
        if before is None or after is None:
            return "passed through, but not in both files"
        if _shape(before) != _shape(after):
            return f"passed through, but with shape {_shape(after)} instead of {_shape(before)}"
        paths = told.source_path in self.source.spec.modules, told.path in self.target.spec.modules
        if all(paths) or told.path != told.source_path or not is_text_encoder(told.path):
            return f"flagged {UNVERIFIED_TEXT_ENCODER}, but both bases have its weights"
        names = encoder_of(self.source.spec, told.path), encoder_of(self.target.spec, told.path)
        if names[0] is None or names[0] != names[1]:
            return f"passed through between different text encoders, {names[0]} and {names[1]}"
        return "" if told.action is Action.COPY else "projected without weights"

    def _recompute(self, path: str, source_path: str, delta: Matrix) -> DenseResult:
        return recompute(
            self.options.method,
            self.source.matrix(source_path),
            self.target.matrix(path),
            delta,
            basis_rule(self.options.basis_rank),
            self.options.pair_rank,
            rotation_min_cos=self.options.rotation_min_cos,
        )

    def _check_decision(
        self, told: ModuleReport, delta: Matrix
    ) -> tuple[DenseResult | None, list[str]]:
        """Whether to project or to copy: the recomputation (None: not needed), and problems."""
        if self.options.method == "copy":
            wrong = told.action is not Action.COPY
            return None, ["projected, but the method is copy"] if wrong else []
        if UNVERIFIED_TEXT_ENCODER in told.flags:
            return None, []
        same = _identical(self.source.matrix(told.source_path), self.target.matrix(told.path))
        if "identical" in told.flags:
            wrong = not same or self.options.identical != "copy" or told.action is not Action.COPY
            return None, ["copied as identical, but the weights differ"] if wrong else []
        dense = self._recompute(told.path, told.source_path, delta)
        problems = []
        if told.action is Action.PROJECT and not _passes(dense, self.options, -PHI_SLACK):
            problems.append(f"projected, but the gate stops {_phis(dense)}")
        if told.action is Action.COPY and self.options.below != "copy":
            problems.append("copied, but no option asks for it")
        elif told.action is Action.COPY and _passes(dense, self.options, PHI_SLACK):
            problems.append(f"copied as below the gate, which lets {_phis(dense)} pass")
        if (told.k_source, told.k_target) != (dense.k_source, dense.k_target):
            problems.append(
                f"report has ranks {told.k_source}, {told.k_target}; "
                f"recomputed {dense.k_source}, {dense.k_target}"
            )
        for said, is_ in ((told.phi_left, dense.phi_left), (told.phi_right, dense.phi_right)):
            if said is None or not abs(said - is_) <= PHI_SLACK:
                problems.append(f"report has a similarity of {said}, recomputed {is_:.6f}")
        return dense, problems

    def _compare(self, ours: Matrix, cut: "_Cut", delta: Matrix) -> float:
        """Error relative to the input's norm, before any scaling.

        The best approximation of rank r misses exactly the tail, and what it misses is orthogonal
        to it: squares of the tail and of any other error add up, so the tail is taken off.
        """
        size = float(np.linalg.norm(delta))
        factor = self.options.scale
        if self.options.rescale == "norm" and cut.kept > 0:
            factor *= size / cut.kept
        difference, unit = float(np.linalg.norm(ours - factor * cut.whole)), abs(factor) * size
        if unit == 0.0:
            return 0.0 if difference == 0.0 else float("inf")
        # maximum() and not max(): it hands on NaN
        return float(np.sqrt(np.maximum((difference / unit) ** 2 - (cut.tail / size) ** 2, 0.0)))


class _Cut(NamedTuple):
    """A recomputed update, and what its best approximation of the rank asked for keeps."""

    whole: np.ndarray
    rank: int | None
    kept: float
    tail: float


def _cut(update: Matrix, wanted: str, rank_in: int) -> _Cut:
    kind, value = output_rank(wanted)
    if kind == "exact":
        return _Cut(update, None, float(np.linalg.norm(update)), 0.0)
    s = np.linalg.svd(update, compute_uv=False)
    if kind == "energy" and value is not None:
        enough = np.cumsum(s**2) >= (value - ENERGY_SLACK) * np.sum(s**2)
        rank = int(np.argmax(enough)) + 1
    else:
        rank = rank_in if value is None else int(value)
    known = None if kind == "energy" else rank
    return _Cut(update, known, float(np.linalg.norm(s[:rank])), float(np.linalg.norm(s[rank:])))


def _passes(dense: DenseResult, options: MigrationOptions, slack: float) -> bool:
    """Whether the gate of method.md 2 lets a module through with `slack` to spare."""
    sides = [(dense.phi_left, dense.chance_left), (dense.phi_right, dense.chance_right)]
    if options.gate == "corrected":
        # Where both spans are everything there is no information: that side passes.
        values = [1.0 if c >= 1.0 else (phi - c) / (1.0 - c) for phi, c in sides]
    else:
        values = [phi for phi, _ in sides]
    if options.gate_sides == "left":
        values = values[:1]
    return min(values) >= options.min_similarity + slack


def _phis(dense: DenseResult) -> str:
    return f"similarities {dense.phi_left:.4f} (left), {dense.phi_right:.4f} (right)"


def _identical(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two weights are equal in float32 or in one of the 16-bit dtypes."""
    narrower = (np.dtype(np.float32), np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))
    with np.errstate(over="ignore"):
        return any(np.array_equal(a.astype(dtype), b.astype(dtype)) for dtype in narrower)


def _delta(module: LoraModule) -> np.ndarray:
    """The dense update of a module as a matrix, float64, scale included."""
    down = module.down.reshape(module.rank, -1).astype(np.float64)
    return module.scale * (module.up.reshape(-1, module.rank).astype(np.float64) @ down)


def _shape(module: LoraModule) -> tuple[int, int]:
    return module.up.shape[0], module.down.size // module.rank


def _used_columns(module: LoraModule) -> int:
    """Rank without the zero columns that pad a file to one rank."""
    down, up = module.down.reshape(module.rank, -1), module.up.reshape(-1, module.rank)
    return int(np.count_nonzero(down.any(axis=1) & up.any(axis=0)))


def _tolerance(module: LoraModule) -> float:
    dtypes = module.down.dtype.name, module.up.dtype.name
    return max(TOLERANCES.get(name, FLOAT32_TOLERANCE) for name in dtypes)
