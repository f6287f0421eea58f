"""Adapters refined to files, one or a folder of them: what a pair's adapters share is made once."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from prolora_jax.catalog.scan import output_path
from prolora_jax.engines.progress import Progress
from prolora_jax.errors import AdapterRefused, Refusal, UsageError
from prolora_jax.io.adapters.inputs import expand
from prolora_jax.io.adapters.peft_folder import is_adapter_folder
from prolora_jax.migration.files import refuse_outputs
from prolora_jax.migration.opening import open_pair
from prolora_jax.refine.job.files import (
    DrawingBases,
    FileRefinement,
    RefinedFile,
    RefineRequest,
    record_of,
)
from prolora_jax.subspaces.store import BasisStore

WORK_ENDING = ".refine-work"


@dataclass(frozen=True)
class RefinedFiles:
    """What came of the files of one command.

    Attributes:
        found: of each that was worked on, in the order in which it ended.
        finished_before: outputs that were there, whole, from an earlier run.
        passed_over: what was left out on purpose, and why, by path.
    """

    found: tuple[RefinedFile, ...]
    finished_before: tuple[Path, ...]
    passed_over: dict[str, str]

    @property
    def refused(self) -> tuple[RefinedFile, ...]:
        """Those that were refused."""
        return tuple(one for one in self.found if one.report is None)


def refine_files(
    inputs: Sequence[str | Path],
    out: str | Path,
    bases: DrawingBases,
    request: RefineRequest,
    *,
    store: BasisStore | None = None,
    workers: int = 1,
    progress: Progress = lambda stage, done, total: None,
) -> RefinedFiles:
    """Refine adapters: a file to a file, or several, or folders of them, to a folder.

    What was done is kept beside the output (`OUT.refine-work`) until all is done: a run that was
    killed goes on where it was, and gives the same files.

    Args:
        inputs: adapter files, folders that peft wrote, or folders of adapters.
        out: the file of one adapter; the folder of several.
        bases: where both base models draw from.
        request: what is asked.
        store: where fingerprints of base models are found and kept.
        workers: processes for what has to be computed.
        progress: called with (what, done, total).

    Returns:
        What came of each.

    Raises:
        UsageError: an output exists, an input or a base model is not there.
        AdapterRefused: the one adapter cannot be refined; of several each is listed.
        BaseModelError: a base model cannot be used, or both speak of different latents.
        OutputError: an output cannot be written.
    """
    given, out = [Path(path) for path in inputs], Path(out)
    one = len(given) == 1 and (not given[0].is_dir() or is_adapter_folder(given[0]))
    read = (*given, bases.source, bases.target)
    work = Path(f"{out}{WORK_ENDING}")
    planned = _Planned([(given[0], out)], {}, []) if one else _planned(given, out, request)
    before = {output for _, output in planned.todo if not one and record_of(output) is not None}
    # What a run that was killed has left half done is its own.
    own = request.writing._replace(overwrite=request.writing.overwrite or work.is_dir())
    for path, output in planned.todo:
        if output not in before:
            refuse_outputs(path, output, own, read=read)
    pair = open_pair(bases.source, bases.target, store, workers)
    may_write = replace(request, writing=request.writing._replace(overwrite=True))
    job = FileRefinement(bases, pair, may_write, work, progress)
    made = {o for path, o in planned.todo if o in before and job.is_made(path, record_of(o))}
    for path, output in planned.todo:
        if output in before - made:
            refuse_outputs(path, output, request.writing, read=read)
    missing = [(path, output) for path, output in planned.todo if output not in made]
    found = [*planned.refused, *job.refine(missing)]
    if one and found[0].refusal is not None:
        raise found[0].refusal
    job.close()
    return RefinedFiles(tuple(found), tuple(sorted(made)), planned.passed)


class _Planned(NamedTuple):
    """Inputs and outputs; what is left out on purpose, and what is refused unread."""

    todo: list[tuple[Path, Path]]
    passed: dict[str, str]
    refused: list[RefinedFile]


def _planned(given: Sequence[Path], out: Path, request: RefineRequest) -> _Planned:
    """What is to be done with the files of folders."""
    planned = _Planned([], {}, [])
    for item in expand(given, leave_out=out):
        output = out / output_path(item, request.writing)
        if item.ignored is not None:
            planned.passed[str(item.path)] = item.ignored
        elif item.refusal is not None:
            code, message = item.refusal
            error = AdapterRefused(f"{item.path}: {message}", code=code)
            planned.refused.append(RefinedFile(item.path, output, None, error))
        else:
            planned.todo.append((item.path, output))
    if not planned.todo and not planned.refused:
        raise UsageError(
            f"{', '.join(map(str, given))}: found no adapter; expected at least one; check the "
            "path",
            code=Refusal.MISSING_FILE,
        )
    return planned
