"""What would become of each file of a catalog, from headers: verdicts before any work.

Names, shapes and dtypes decide almost everything, and thousands of files have few tables of them
(`HeaderTables`): one plan is made per table. What only numbers say (NaN, an alpha of 0,
an update of zero) is seen when a file is read, and then changes its record. Files without a header
of their own, Flax's and pickles, are read whole.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import msgspec

from prolora_jax.adapters.adapter import Adapter
from prolora_jax.adapters.detection import moved_to
from prolora_jax.adapters.fitting import Fitted
from prolora_jax.adapters.formats.dumping import SAME
from prolora_jax.adapters.formats.plain_scale import scale_strings
from prolora_jax.catalog.outlook import Outlook, SharedRefusal, Tally, predicted_size
from prolora_jax.engines.progress import Progress
from prolora_jax.errors import AdapterRefused, BaseModelError, Refusal, UsageError
from prolora_jax.io.adapters.files import (
    lacks_config,
    load_adapter,
    outline_adapter,
    unfit_output,
    writes_folder,
)
from prolora_jax.io.adapters.flax_file import is_flax_file
from prolora_jax.io.adapters.gguf_lora import is_gguf
from prolora_jax.io.adapters.inputs import Input
from prolora_jax.io.adapters.license_check import license_problem
from prolora_jax.io.adapters.peft_folder import config_beside
from prolora_jax.io.adapters.sidecars import Folders
from prolora_jax.io.containers.header_tables import HeaderTables
from prolora_jax.io.containers.safetensors_header import BadHeader
from prolora_jax.io.containers.signatures import is_pickle
from prolora_jax.io.outputs.catalog_files import sample_hash, stamp
from prolora_jax.migration.files import Writing, require_room_for
from prolora_jax.migration.fitted import fit_to
from prolora_jax.migration.jobs import as_outcome
from prolora_jax.migration.many import energy_that_moves
from prolora_jax.migration.pair import BasePair
from prolora_jax.migration.single import plan_fitted
from prolora_jax.migration.tokens import uses_tokens
from prolora_jax.plans.catalog_record import CatalogRecord
from prolora_jax.plans.options import MigrationOptions
from prolora_jax.plans.plan import Skip, wanted_pairs

_SUFFIXES = {"flax": ".msgpack", "gguf": ".gguf"}
_PICKLES = frozenset({".pt", ".bin", ".ckpt", ".pth"})
SCALE_ASSUMED = "no adapter_config.json: scale 1"


class Scanned(NamedTuple):
    """One file: its record as it would be, and what is needed to compare and to migrate it.

    Attributes:
        item: the file.
        record: as it would be.
        outlook: of its table.
        stamp: of the file, when it was looked at.
        said: digest of its header's strings and of its configuration, which go into the output.
        table: a name for all that decides the outlook; None for a file without a readable header.
    """

    item: Input
    record: CatalogRecord
    outlook: Outlook
    stamp: str | None
    table: str | None
    said: str = ""


class Scanner:
    """Looks at files of a catalog; knows every table that it has seen.

    Args:
        pair: source and target.
        options: of the migration.
        writing: formats.
        taught: digest of what else outputs depend on, where copies are taught: then modules that
            cannot be copied may be learned.
    """

    def __init__(
        self,
        pair: BasePair,
        options: MigrationOptions,
        writing: Writing,
        taught: str | None = None,
    ):
        self._pair, self._options, self._writing, self._taught = pair, options, writing, taught
        self._headers = HeaderTables()
        self._tables: dict[str, Outlook] = {}
        self._alone: list[Outlook] = []
        self._outputs: set[str] = set()
        self.folders = Folders()

    @property
    def pairs(self) -> dict[str, str]:
        """Source by target path of everything that was compared."""
        outlooks = (*self._tables.values(), *self._alone)
        return {p: s for look in outlooks for p, s in look.pairs.items()}

    def scan(self, items: Iterable[Input], progress: Progress | None = None) -> list[Scanned]:
        """Look at files, in their order; names of outputs are chosen among these alone.

        Args:
            items: from `io.inputs.expand`.
            progress: called with ("scan", done, total), and while subspaces are computed.
        """
        items = list(items)
        self._outputs = set()
        found = []
        for item in items:
            found.append(self._look_safely(item, progress))
            if progress is not None:
                progress("scan", len(found), len(items))
        return found

    def _look_safely(self, item: Input, progress: Progress | None) -> Scanned:
        """What `_look` says; whatever goes wrong with one file is that file's outcome."""
        try:
            return self._look(item, progress)
        except BaseModelError:
            raise
        except Exception as error:  # noqa: BLE001 (thousands of files wait behind this one)
            failed = as_outcome(error, item.path)
            state = "failed" if failed.code == Refusal.MISSING_FILE else "refused"
            record = CatalogRecord(
                *(_shown(item.relative), None, "refused", state, str(failed.code), str(failed))
            )
            return Scanned(item, record, Outlook(), None, None)

    def _look(self, item: Input, progress: Progress | None) -> Scanned:
        name = _shown(item.relative)
        if item.ignored is not None:
            record = CatalogRecord(name, None, "ignored", "ignored", message=item.ignored)
            return Scanned(item, record, Outlook(), None, None)
        if item.refusal is not None:
            code, message = item.refusal
            record = CatalogRecord(name, None, "refused", "refused", str(code), message)
            return Scanned(item, record, Outlook(), None, None)
        seen = stamp(item.path)
        header: Mapping[str, str] = {}
        config = ""
        try:
            table, header, config = self._table(item.path)
        except (OSError, BadHeader):
            table = None
        outlook = self._outlook(item.path, table, progress)
        strings = {**outlook.header, **header}
        record = outlook.record(name, item.path, 0 if seen is None else seen[1])
        if record.verdict != "refused":
            record = self._placed(item, record, strings)
        said = sha256(msgspec.json.encode([sorted(strings.items()), config])).hexdigest()
        return Scanned(item, record, outlook, seen and seen[0], table, said)

    def _placed(
        self, item: Input, record: CatalogRecord, strings: Mapping[str, str]
    ) -> CatalogRecord:
        """The record with its output, or refused for its licence or for the output's name."""
        if not self._writing.ignore_license:
            problem = license_problem(item.path, strings, self.folders)
            if problem is not None:
                return _refused(record, Refusal.LICENSE, problem)
        output = self._output(item)
        too_long = unfit_output(Path(output))
        if too_long is not None:
            return _refused(record, Refusal.BAD_NAME, too_long)
        return replace(record, output=output)

    def _table(self, path: Path) -> tuple[str, Mapping[str, str], str]:
        """A name for all that decides the outlook; the file's header strings; its configuration."""
        file = path / "adapter_model.safetensors" if path.is_dir() else path
        digest, metadata = self._headers.digest(file)
        config = metadata.get("lora_adapter_metadata") or config_beside(file) or ""
        # A name may promise what the content is not: what comes of it is not for others.
        kind = "folder" if path.is_dir() else path.suffix.lower()
        said = f"{scale_strings(metadata)} {moved_to(metadata)}"
        table = sha256(f"{digest} {kind} {config} {said}".encode()).hexdigest()
        return table, metadata, config

    def _outlook(self, path: Path, table: str | None, progress: Progress | None) -> Outlook:
        """What is known of the file's table; the first file that has it is looked at."""
        if table is None:
            self._alone.append(self._judged(path, progress, alone=True))
            return self._alone[-1]
        if table not in self._tables:
            self._tables[table] = self._judged(path, progress, alone=False)
        return self._tables[table]

    def _judged(self, path: Path, progress: Progress | None, alone: bool) -> Outlook:
        try:
            adapter = self._adapter(path)
            fitted = fit_to(
                self._pair.source,
                adapter,
                self._options,
                self._writing.format,
                folder=path.is_dir(),
            )
            looked = self._planned(fitted, path, progress)
            return replace(looked, header=adapter.metadata) if alone else looked
        except (AdapterRefused, UsageError) as error:
            failed = error.code in (Refusal.MISSING_FILE, Refusal.CHANGED)
            state = "failed" if failed else "refused"
            return Outlook(refusal=SharedRefusal.of(state, str(error.code), str(error), path))

    def _adapter(self, path: Path) -> Adapter:
        zero, pickles = self._options.alpha_zero, self._writing.allow_pickle
        told = is_flax_file, is_gguf, *((is_pickle,) if pickles else ())
        whole = path.is_file() and any(is_kind(path) for is_kind in told)
        if whole:
            return load_adapter(
                path, alpha_zero=zero, allow_pickle=pickles, quiet=True, structured=True
            )
        try:
            found = outline_adapter(path, str(path), zero, structured=True)
            if all(companion.part not in {"layer", "saved"} for companion in found.companions):
                return found
        except AdapterRefused as error:
            # Whether what stands beside the pairs has any effect is said by its numbers.
            beside = (Refusal.UNKNOWN_KEYS, Refusal.UNSUPPORTED_ALGORITHM, Refusal.INCOMPLETE_PAIR)
            if error.code not in beside and not (pickles and error.code is Refusal.PICKLE):
                raise
        return load_adapter(
            path, alpha_zero=zero, allow_pickle=pickles, quiet=True, structured=True
        )

    def _planned(self, fitted: Fitted, path: Path, progress: Progress | None) -> Outlook:
        pair, options, adapter = self._pair, self._options, fitted.adapter
        plan = plan_fitted(fitted, pair, options, progress)
        output = output_path(Input(path, Path(path.name)), self._writing)
        require_room_for(adapter, plan, pair.target.spec, self._writing, output)
        matching = pair.matching(options.match, options, tokens=uses_tokens(adapter))
        wanted = wanted_pairs(adapter, matching, options)
        weights = [
            (p, s, pair.source.fingerprint(s), pair.target.fingerprint(p))
            for p, s in sorted(wanted.items())
        ]
        asked = (options, self._writing.format, self._writing.strip_metadata, weights)
        asked += () if self._taught is None else (self._taught,)
        assumed = path.is_file() and lacks_config(adapter)
        tally = Tally.of_plan(plan, (SCALE_ASSUMED,) if assumed else ())
        learns = self._taught is not None and not plan.steps
        learns = learns and any(skip.reason is Skip.SHAPE_MISMATCH for skip in plan.skipped)
        tally = replace(tally, verdict="partial") if learns else tally
        return Outlook(
            adapter.format,
            tally,
            predicted_size(adapter, plan),
            None if plan.steps or learns else self._nothing_moves(path, tally),
            sha256(msgspec.json.encode(asked)).hexdigest()[:32],
            max(adapter.ranks, default=0),
            dict(wanted),
        )

    def _nothing_moves(self, path: Path, tally: Tally) -> SharedRefusal:
        skipped = ", ".join(f"{reason}: {n}" for reason, n in tally.skipped.items())
        message = (
            f"{path}: no module can move from {self._pair.source.spec.name} to "
            f"{self._pair.target.spec.name} ({skipped}). Check --source and --target; "
            "`prolora similarity` shows how close the two bases are."
        )
        return SharedRefusal.of("refused", str(Refusal.NO_MATCHING_MODULE), message, path)

    def _output(self, item: Input) -> str:
        """The same place below the output folder, with the suffix of what is written, once."""
        path = output_path(item, self._writing)
        if path.as_posix() in self._outputs:
            path = item.relative.with_name(f"{item.relative.name}{path.suffix or '.peft'}")
        self._outputs.add(path.as_posix())
        return path.as_posix()


def output_path(item: Input, writing: Writing) -> Path:
    """Where an output goes, below the output folder: the input's place, with a fitting suffix."""
    path = item.relative
    same = writing.format in SAME
    if writes_folder(path, writing.format) or (same and item.path.is_dir()):
        return path.with_suffix("") if path.suffix and not item.path.is_dir() else path
    if item.path.is_dir():
        return path.with_name(path.name + ".safetensors")
    suffix = path.suffix if same else _SUFFIXES.get(writing.format, ".safetensors")
    return path.with_suffix(".safetensors" if suffix.lower() in _PICKLES else suffix)


def with_energies(
    found: Scanned, pair: BasePair, options: MigrationOptions, writing: Writing
) -> CatalogRecord:
    """A record with what only numbers say; reads the whole file."""
    if found.record.verdict in ("refused", "ignored"):
        return found.record
    try:
        adapter = load_adapter(
            found.item.path,
            alpha_zero=options.alpha_zero,
            allow_pickle=writing.allow_pickle,
            quiet=True,
            structured=True,
        )
        fitted = fit_to(
            pair.source, adapter, options, writing.format, folder=found.item.path.is_dir()
        )
        plan = plan_fitted(fitted, pair, options)
        energy, moved = energy_that_moves(fitted.adapter, plan)
    except BaseModelError:
        raise
    except Exception as error:  # noqa: BLE001 (thousands of files wait behind this one)
        failed = as_outcome(error, found.item.path)
        record = replace(found.record, verdict="refused", state="refused", output=None)
        return replace(record, reason=str(failed.code), message=str(failed), size_out=None)
    return replace(found.record, energy_in=energy, energy_moved=moved)


def duplicates(found: Sequence[Scanned], options: MigrationOptions) -> dict[str, str]:
    """Which files have the content and the header of an earlier one: its name by theirs.

    A header's strings go into the output, and say which words an adapter answers to: files that
    differ in them alone get outputs of their own.

    Only files with one table, size of output and kind are compared: first by samples, then, where
    these agree, by all they hold.

    Args:
        found: of a scan, in the order in which the first one is chosen.
        options: what an alpha of 0 means.
    """
    groups: dict[tuple[str | int, str], list[Scanned]] = {}
    for one in found:
        if one.record.output is not None:
            # Where there is no table, the size has to do.
            table = one.record.size_in if one.table is None else one.table
            groups.setdefault((table, Path(one.record.output).suffix), []).append(one)
    same: dict[str, str] = {}
    for members in groups.values():
        if len(members) == 1:
            continue
        samples: dict[str, list[Scanned]] = {}
        for one in members:
            try:
                samples.setdefault(sample_hash(one.item.path), []).append(one)
            except Exception:  # noqa: BLE001, PERF203 (it is reported when it is read)
                continue
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
        path, zero = found.item.path, options.alpha_zero
        given = load_adapter(path, alpha_zero=zero, quiet=True, structured=True)
        return f"{given.fingerprint} {msgspec.json.encode(sorted(given.metadata.items())).decode()}"
    except Exception:  # noqa: BLE001 (thousands of files wait behind this one)
        return None  # it is reported when it is read


def _shown(path: Path) -> str:
    """A path as text that can be written anywhere."""
    return path.as_posix().encode(errors="surrogateescape").decode(errors="backslashreplace")


def _refused(record: CatalogRecord, code: Refusal, message: str) -> CatalogRecord:
    refused = replace(record, verdict="refused", state="refused", size_out=None)
    return replace(refused, reason=str(code), message=message)
