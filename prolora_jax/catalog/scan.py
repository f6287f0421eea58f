"""What would become of each file of a catalog, from headers: verdicts before any work.

Names, shapes and dtypes decide almost everything, and thousands of files have few tables of them
(`io.header.table_digest`): one plan is made per table. What only numbers say (NaN, an alpha of 0,
an update of zero) is seen when a file is read, and then changes its record. Files without a header
of their own, Flax's and pickles, are read whole.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from prolora_jax.adapters.adapter import Adapter
from prolora_jax.adapters.detection import check_base
from prolora_jax.adapters.formats.plain_scale import scale_strings
from prolora_jax.adapters.formats.resolution import resolve
from prolora_jax.engines.progress import Progress
from prolora_jax.errors import AdapterRefused, ProloraError, Refusal, UsageError
from prolora_jax.io.adapters.files import lacks_config, load_adapter, outline_adapter, writes_folder
from prolora_jax.io.adapters.flax_file import is_flax_file
from prolora_jax.io.adapters.inputs import Input
from prolora_jax.io.adapters.license_check import license_problem
from prolora_jax.io.adapters.peft_folder import config_beside
from prolora_jax.io.adapters.sidecars import Folders
from prolora_jax.io.containers.safetensors_header import BadHeader, table_digest
from prolora_jax.io.containers.signatures import is_pickle
from prolora_jax.io.outputs.catalog_files import sample_hash, stamp
from prolora_jax.method.encoding import DTYPES
from prolora_jax.migration.many import Writing, energy_that_moves
from prolora_jax.migration.pair import BasePair
from prolora_jax.migration.single import make_plan
from prolora_jax.plans.catalog_record import CatalogRecord, Verdict
from prolora_jax.plans.companions import PARTIAL
from prolora_jax.plans.options import MigrationOptions, output_rank
from prolora_jax.plans.plan import (
    Action,
    MigrationPlan,
    ModuleSimilarity,
    Skip,
    SkippedModule,
    wanted_pairs,
)

_ORIGIN, _ALONE = "<this file>", "alone "
_HEADER_BYTES = 220
"""Of a safetensors header per module: two tensors."""
_PICKLES = frozenset({".pt", ".bin", ".ckpt", ".pth"})
SCALE_ASSUMED = "no adapter_config.json: scale 1"


@dataclass(frozen=True)
class Outlook:
    """What a table of tensors means for its files; `fields` are those of their records.

    Attributes:
        fields: of `CatalogRecord`.
        job: digest of options, base weights and formats; None for refused tables.
        rank: the largest.
        pairs: source by target path of the modules that are compared.
        header: strings of the one file that this is about, where it is read whole.
    """

    fields: dict[str, Any] = field(default_factory=dict)
    job: str | None = None
    rank: int = 0
    pairs: dict[str, str] = field(default_factory=dict)
    header: Mapping[str, str] = field(default_factory=dict)


class Scanned(NamedTuple):
    """One file: its record as it would be, and what is needed to compare and to migrate it."""

    item: Input
    record: CatalogRecord
    outlook: Outlook
    stamp: str | None
    table: str


class Scanner:
    """Looks at files of a catalog; knows every table that it has seen.

    Args:
        pair: source and target.
        options: of the migration.
        writing: formats.
    """

    def __init__(self, pair: BasePair, options: MigrationOptions, writing: Writing):
        self._pair, self._options, self._writing = pair, options, writing
        self._tables: dict[str, Outlook] = {}
        self._outputs: set[str] = set()
        self.folders = Folders()

    @property
    def pairs(self) -> dict[str, str]:
        """Source by target path of everything that was compared."""
        return {p: s for look in self._tables.values() for p, s in look.pairs.items()}

    def scan(self, items: Iterable[Input], progress: Progress | None = None) -> list[Scanned]:
        """Look at files, in their order.

        Args:
            items: from `io.inputs.expand`.
            progress: called with ("scan", done, total), and while bases are computed.
        """
        items = list(items)
        found = []
        for item in items:
            found.append(self._look(item, progress))
            if progress is not None:
                progress("scan", len(found), len(items))
        return found

    def _look(self, item: Input, progress: Progress | None) -> Scanned:
        name = _shown(item.relative)
        if item.refusal is not None:
            code, message = item.refusal
            record = CatalogRecord(name, None, "refused", "refused", str(code), message)
            return Scanned(item, record, Outlook(), None, "")
        seen = stamp(item.path)
        try:
            table, header = self._table(item.path)
        except (OSError, BadHeader):
            header: Mapping[str, str] = {}
            table = f"{_ALONE}{name}"
        outlook = self._tables.get(table)
        if outlook is None:
            outlook = self._tables[table] = self._outlook(item.path, table, progress)
        fields = dict(outlook.fields)
        refused = fields.get("verdict") == "refused"
        if refused:
            fields["message"] = str(fields["message"]).replace(_ORIGIN, str(item.path), 1)
        elif not self._writing.ignore_license:
            problem = license_problem(item.path, {**outlook.header, **header}, self.folders)
            if problem is not None:
                refused = True
                fields |= {"verdict": "refused", "state": "refused", "size_out": None}
                fields |= {"reason": str(Refusal.LICENSE), "message": problem}
        output = None if refused else self._output(item)
        record = CatalogRecord(
            **{"input": name, "output": output, "state": "planned", **fields},  # pyright: ignore[reportArgumentType]
            size_in=0 if seen is None else seen[1],
        )
        return Scanned(item, record, outlook, seen and seen[0], table)

    def _table(self, path: Path) -> tuple[str, Mapping[str, str]]:
        """A name for all that decides the outlook, and the file's header strings."""
        file = path / "adapter_model.safetensors" if path.is_dir() else path
        digest, metadata = table_digest(file)
        config = metadata.get("lora_adapter_metadata") or config_beside(file) or ""
        # A name may promise what the content is not: what comes of it is not for others.
        kind = "folder" if path.is_dir() else path.suffix.lower()
        said = scale_strings(metadata)
        return sha256(f"{digest} {kind} {config} {said}".encode()).hexdigest(), metadata

    def _outlook(self, path: Path, table: str, progress: Progress | None) -> Outlook:
        origin = str(path) if table.startswith(_ALONE) else _ORIGIN
        try:
            adapter = self._adapter(path, origin)
            check_base(adapter, self._pair.source.spec, self._options.assume_base)
            looked = self._planned(resolve(adapter, self._pair.source.spec), path, progress)
            return replace(looked, header=adapter.metadata) if origin == str(path) else looked
        except (AdapterRefused, UsageError) as error:
            failed = error.code in (Refusal.MISSING_FILE, Refusal.CHANGED)
            message = str(error).replace(str(path), _ORIGIN, 1)
            state = "failed" if failed else "refused"
            return Outlook(
                {"verdict": "refused", "state": state, "reason": str(error.code)}
                | {"message": message}
            )

    def _adapter(self, path: Path, origin: str) -> Adapter:
        zero, pickles = self._options.alpha_zero, self._writing.allow_pickle
        whole = path.is_file() and (is_flax_file(path) or (pickles and is_pickle(path)))
        if whole:
            return load_adapter(path, alpha_zero=zero, allow_pickle=pickles, quiet=True)
        try:
            return outline_adapter(path, origin, zero)
        except AdapterRefused as error:
            # Whether what stands beside the pairs has any effect is said by its numbers.
            if error.code not in (Refusal.UNKNOWN_KEYS, Refusal.UNSUPPORTED_ALGORITHM):
                raise
        return load_adapter(path, alpha_zero=zero, quiet=True)

    def _planned(self, adapter: Adapter, path: Path, progress: Progress | None) -> Outlook:
        pair, options = self._pair, self._options
        plan = make_plan(adapter, pair, options, progress)
        wanted = wanted_pairs(adapter, pair.matching(options.match, options), options)
        weights = [
            (p, s, pair.source.fingerprint(s), pair.target.fingerprint(p))
            for p, s in sorted(wanted.items())
        ]
        asked = (options, self._writing.format, self._writing.strip_metadata, weights)
        fields = facts_of(adapter, plan)
        if path.is_file() and lacks_config(adapter):
            fields["flags"] = (*fields["flags"], SCALE_ASSUMED)
        fields["size_out"] = predicted_size(adapter, plan)
        if not plan.steps:
            skipped = ", ".join(f"{reason}: {n}" for reason, n in fields["skipped"].items())
            fields |= {"state": "refused", "reason": str(Refusal.NO_MATCHING_MODULE)}
            fields["message"] = (
                f"{_ORIGIN}: no module can move from {pair.source.spec.name} to "
                f"{pair.target.spec.name} ({skipped}). Check --source and --target; "
                "`prolora similarity` shows how close the two bases are."
            )
        job = sha256(msgspec.json.encode(asked)).hexdigest()[:32]
        return Outlook(fields, job, max(adapter.ranks, default=0), dict(wanted))

    def _output(self, item: Input) -> str:
        """The same place below the output folder, with the suffix of what is written, once."""
        path = output_path(item, self._writing)
        if path.as_posix() in self._outputs:
            path = item.relative.with_name(f"{item.relative.name}{path.suffix or '.peft'}")
        self._outputs.add(path.as_posix())
        return path.as_posix()


def facts_of(adapter: Adapter, plan: MigrationPlan) -> dict[str, Any]:
    """Fields of a record that follow from a plan."""
    similarities = [(step.source_path, step.similarity, step.flags) for step in plan.steps]
    return {"format": adapter.format} | outcome_fields(similarities, plan.skipped, plan.flags)


def outcome_fields(
    moved: Sequence[tuple[str, ModuleSimilarity | tuple[float, float] | None, tuple[str, ...]]],
    skipped: Sequence[SkippedModule],
    flags: Sequence[str],
) -> dict[str, Any]:
    """Fields of a record: modules, reasons, similarities, flags.

    Args:
        moved: source path, similarity and flags of what moves.
        skipped: of the same plan.
        flags: of the file.
    """
    sources = {path for path, _, _ in moved}
    left = {s.source_path: s.reason for s in skipped if s.source_path not in {*sources, None}}
    reasons = Counter(str(reason) for reason in left.values())
    counts = Counter(flag for _, _, found in moved for flag in found)
    counts.update(str(s.reason) for s in skipped if s.reason is Skip.NO_SOURCE_BLOCK)
    phis = []
    for _, similarity, found in moved:
        if isinstance(similarity, ModuleSimilarity):
            similarity = similarity.phi_left, similarity.phi_right
        if similarity is not None or "identical" in found:
            phis.append(1.0 if similarity is None else min(similarity))
    behind = left or any(flag.startswith(PARTIAL) for flag in flags)
    verdict: Verdict = "refused" if not moved else "partial" if behind else "ok"
    return {
        "verdict": verdict,
        "modules": len(sources) + len(left),
        "moved": len(sources),
        "skipped": dict(reasons.most_common()),
        "phi_min": min(phis, default=None),
        "phi_mean": float(np.mean(phis)) if phis else None,
        "flags": (*flags, *(f"{flag}: {n}" for flag, n in sorted(counts.items()))),
    }


def predicted_size(adapter: Adapter, plan: MigrationPlan) -> int:
    """Bytes of the output, as far as they can be told: ranks that `energy=` cuts are not known."""
    options = plan.options
    kind, value = output_rank(options.rank)
    modules = {module.path: module for module in adapter.modules}
    total = 0
    for step in plan.steps:
        module = modules[step.source_path]
        out, width = module.up.shape[0], module.down.size // module.rank
        twice = step.action is Action.PROJECT and options.method == "prolora"
        rank = module.rank * (2 if twice and kind != "source" else 1)
        if kind == "rank" and value is not None:
            rank = min(rank, int(value))
        dtype = module.up.dtype if options.dtype == "same" else DTYPES[options.dtype]
        total += min(rank, out, width) * (out + width) * dtype.itemsize + _HEADER_BYTES
    return total


def output_path(item: Input, writing: Writing) -> Path:
    """Where an output goes, below the output folder: the input's place, with a fitting suffix."""
    path = item.relative
    same = writing.format == "same"
    if writes_folder(path, writing.format) or (same and item.path.is_dir()):
        return path.with_suffix("") if path.suffix and not item.path.is_dir() else path
    if item.path.is_dir():
        return path.with_name(path.name + ".safetensors")
    suffix = {"flax": ".msgpack"}.get(writing.format, path.suffix if same else ".safetensors")
    return path.with_suffix(".safetensors" if suffix.lower() in _PICKLES else suffix)


def with_energies(
    found: Scanned, pair: BasePair, options: MigrationOptions, writing: Writing
) -> CatalogRecord:
    """A record with what only numbers say; reads the whole file."""
    if found.record.verdict == "refused":
        return found.record
    try:
        adapter = load_adapter(
            found.item.path,
            pair.source.spec,
            alpha_zero=options.alpha_zero,
            allow_pickle=writing.allow_pickle,
            quiet=True,
        )
        check_base(adapter, pair.source.spec, options.assume_base)
        plan = make_plan(resolve(adapter, pair.source.spec), pair, options)
    except (ProloraError, OSError) as error:
        code = error.code if isinstance(error, ProloraError) else Refusal.MISSING_FILE
        record = replace(found.record, verdict="refused", state="refused", output=None)
        return replace(record, reason=str(code), message=str(error), size_out=None)
    energy, moved = energy_that_moves(adapter, plan)
    return replace(found.record, energy_in=energy, energy_moved=moved)


def duplicates(found: Sequence[Scanned], options: MigrationOptions) -> dict[str, str]:
    """Which files have the content of an earlier one: its name by theirs.

    Only files with one table, size of output and kind are compared: first by samples, then, where
    these agree, by all they hold.

    Args:
        found: of a scan, in the order in which the first one is chosen.
        options: what an alpha of 0 means.
    """
    groups: dict[tuple[str, str], list[Scanned]] = {}
    for one in found:
        if one.record.output is not None:
            # Where there is no table, the size has to do.
            alone = one.table.startswith(_ALONE)
            table = f"{_ALONE}{one.record.size_in}" if alone else one.table
            groups.setdefault((table, Path(one.record.output).suffix), []).append(one)
    same: dict[str, str] = {}
    for members in groups.values():
        if len(members) == 1:
            continue
        samples: dict[str, list[Scanned]] = {}
        for one in members:
            try:
                samples.setdefault(sample_hash(one.item.path), []).append(one)
            except OSError:
                continue  # it is reported when it is read
        for alike in samples.values():
            first: dict[str, str] = {}
            for one in alike if len(alike) > 1 else ():
                content = _fingerprint(one, options)
                if content is None:
                    continue
                known = first.setdefault(content, one.record.input)
                if known != one.record.input:
                    same[one.record.input] = known
    return same


def _fingerprint(found: Scanned, options: MigrationOptions) -> str | None:
    try:
        path = found.item.path
        return load_adapter(path, alpha_zero=options.alpha_zero, quiet=True).fingerprint
    except (ProloraError, OSError):
        return None  # it is reported when it is read


def _shown(path: Path) -> str:
    """A path as text that can be written anywhere."""
    return path.as_posix().encode(errors="surrogateescape").decode(errors="backslashreplace")
