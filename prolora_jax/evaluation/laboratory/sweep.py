"""Arms x options x targets x adapters x seeds: what to try, as data, and a runner that resumes.

Results stand in OUT/results/SWEEP/TARGET/ADAPTER-sSEED.jsonl, one arm a line. A line is kept for as
long as the base models, the adapters, the options and the measures it came from are the same.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from itertools import product
from pathlib import Path
from typing import Any

import msgspec

from prolora_jax.evaluation.laboratory.adapters import TrainedFactors, factors_of
from prolora_jax.evaluation.laboratory.beyond import BEYOND, Move, as_factors
from prolora_jax.evaluation.laboratory.controls import random_subspace
from prolora_jax.evaluation.laboratory.exams import Depth
from prolora_jax.evaluation.laboratory.refining import (
    REFINING,
    STUDENTS,
    TEACHERS,
    AdapterSamples,
    StudentFacts,
    StudentSettings,
    fitted,
)
from prolora_jax.evaluation.laboratory.trials import Contest, Pair, TrialOutcome, move
from prolora_jax.evaluation.laboratory.workshop import Say, Workshop
from prolora_jax.io.adapters.files import load_adapter
from prolora_jax.io.documents import read_lines, write_lines
from prolora_jax.migration.pair import BasePair
from prolora_jax.plans.options import MigrationOptions

MEASURES = 3
"""Raised when what is measured changes: all is then measured again."""

CONTROLS = ("", "none", "trained", "random-subspace", "round-trip")


@dataclass(frozen=True)
class Arm:
    """One way to move an adapter.

    Attributes:
        options: of the migration, those that differ from the defaults; of what learns
            (`refining.STUDENTS`), its settings.
        control: instead of a migration: `none` (no adapter), `trained` (on the target),
            `random-subspace` (with `fraction`); `round-trip`: there and back again, judged on
            the source; or one of `beyond.BEYOND` or of `refining.REFINING`.
        fraction: size of the random spans; of what is in `BEYOND`, its strength.
    """

    options: dict[str, Any] = field(default_factory=dict)
    control: str = ""
    fraction: float = 0.5

    def __post_init__(self):
        if self.control not in {*CONTROLS, *BEYOND, *REFINING}:
            names = ", ".join((*CONTROLS[1:], *BEYOND, *REFINING))
            raise ValueError(f"control {self.control!r}: expected one of {names}")
        if self.control in STUDENTS:
            StudentSettings(**self.options)  # a wrong name shows before the first cell has run

    @property
    def name(self) -> str:
        """Short and unique: `prolora basis_rank=fraction=0.5`."""
        rest = {name: value for name, value in self.options.items() if name != "method"}
        shown = " ".join(f"{name}={value}" for name, value in sorted(rest.items()))
        head = self.options.get("method", "") or (MigrationOptions.method if self.options else "")
        if self.control == "random-subspace" or self.control in BEYOND:
            head = f"{self.control} {self.fraction}"
        elif self.control in REFINING:
            head = self.control
        elif self.control:
            head = f"{self.control} {head}".strip()
        return f"{head} {shown}".strip()


@dataclass(frozen=True)
class Sweep:
    """What to try.

    Attributes:
        grids: each a list of values by option; all combinations of a grid are tried.
        controls: arms beside them.
        targets: names of base models; the source itself shows what an arm does to an adapter that
            need not have moved.
        adapters: names.
        seeds: of the adapters.
        depth: how much is measured of each.
    """

    grids: tuple[dict[str, list[Any]], ...]
    targets: tuple[str, ...]
    adapters: tuple[str, ...]
    controls: tuple[Arm, ...] = ()
    seeds: tuple[int, ...] = (0,)
    depth: Depth = field(default_factory=Depth)

    def arms(self) -> list[Arm]:
        """All arms, each once."""
        found = {arm.name: arm for arm in self.controls}
        for grid in self.grids:
            for values in product(*grid.values()):
                arm = Arm(dict(zip(grid, values, strict=True)))
                found.setdefault(arm.name, arm)
        return list(found.values())


def run_sweep(
    workshop: Workshop,
    sweep: Sweep,
    name: str,
    say: Say = lambda line: None,
    *,
    train: bool = False,
) -> Path:
    """Try everything that was not tried yet.

    Args:
        workshop: with all base models and adapters trained, unless they are to be trained here.
        sweep: what to try.
        name: of the sweep: of the folder of its results.
        say: called with a line for each arm.
        train: whether what a cell needs is trained first, where it is not there.

    Returns:
        The folder of the results.
    """
    folder = workshop.folder / "results" / name
    for target in sweep.targets:
        homes = (workshop.recipe.source_of(target), target)
        if train:
            for base in homes:
                workshop.make_base(base)
        pair = Pair(workshop, target)
        for adapter, seed in product(sweep.adapters, sweep.seeds):
            if not workshop.recipe.teaches(target, adapter):
                continue
            if train:
                for base in homes:
                    workshop.make_adapter(base, adapter, seed)
            _run_contest(pair, adapter, seed, sweep, folder, say)
    return folder


def _run_contest(pair: Pair, adapter: str, seed: int, sweep: Sweep, folder: Path, say: Say) -> None:
    file = folder / pair.target / f"{adapter}-s{seed}.jsonl"
    known = {row["key"]: row for row in read_lines(file)}
    todo = {_key(pair, adapter, seed, arm, sweep.depth): arm for arm in sweep.arms()}
    rows = {key: row for key, row in known.items() if key in todo}
    if rows.keys() == todo.keys():
        return
    contest = Contest(pair, adapter, seed, sweep.depth)
    shown = AdapterSamples(contest)
    home: Contest | None = None
    for key, arm in todo.items():
        if key in rows:
            continue
        judge = contest
        if arm.control == "round-trip":
            home = home or Contest(Pair(pair.workshop, pair.source), adapter, seed, sweep.depth)
            judge = home
        facts: StudentFacts | None = None
        if arm.control in TEACHERS:
            result = judge.judge_net(shown.teacher(TEACHERS[arm.control]))
        elif arm.control in STUDENTS:
            factors, facts = fitted(shown, arm.control, StudentSettings(**arm.options))
            result = judge.judge(factors)
        else:
            result = judge.judge(*factors_of_arm(contest, arm))
        rows[key] = {
            "key": key,
            "target": pair.target,
            "adapter": adapter,
            "kind": pair.workshop.recipe.adapter(adapter).kind,
            "seed": seed,
            "arm": arm.name,
            "options": arm.options,
            "control": arm.control,
            "phi_half": pair.phi_half,
            "disagreement": pair.samples.disagreement,
            "student": asdict(facts) if facts else None,
            "none": judge.facts_of_none,
            "trained": judge.facts_of_trained,
            **asdict(result),
        }
        write_lines(file, list(rows.values()))
        value, low, high = result.arrived
        say(f"{pair.target} {adapter}-s{seed} {arm.name}: {value:.3f} [{low:.3f}, {high:.3f}]")


def factors_of_arm(
    contest: Contest, arm: Arm
) -> tuple[dict[str, TrainedFactors], TrialOutcome | None]:
    """The adapter that an arm puts beside the target, and the report if it was migrated."""
    pair, adapter, seed = contest.pair, contest.adapter, contest.seed
    if arm.control == "none":
        return {}, None
    if arm.control == "trained":
        return contest.trained, None
    if arm.control == "random-subspace":
        copied, _ = pair.moved(adapter, seed, MigrationOptions(method="copy"))
        return random_subspace(copied, arm.fraction, seed), None
    if arm.control in BEYOND:
        return as_factors(BEYOND[arm.control](Move(contest), arm.fraction)), None
    if arm.control == "round-trip":
        return _there_and_back(pair, adapter, seed, MigrationOptions(**arm.options))
    return pair.moved(adapter, seed, MigrationOptions(**arm.options))


def _there_and_back(
    pair: Pair, adapter: str, seed: int, options: MigrationOptions
) -> tuple[dict[str, TrainedFactors], TrialOutcome]:
    file = pair.workshop.adapter_file(pair.source, adapter, seed)
    there, outcome = move(load_adapter(file, pair.bases.source.spec), pair.bases, options)
    if there is None:
        return {}, outcome
    back_pair = BasePair(pair.bases.target, pair.bases.source, pair.bases.store)
    back, outcome = move(there, back_pair, options)
    return (factors_of(back) if back else {}), outcome


def _key(pair: Pair, adapter: str, seed: int, arm: Arm, depth: Depth) -> str:
    recipe = pair.workshop.recipe
    hashes = [recipe.adapter_hash(base, adapter, seed) for base in (pair.source, pair.target)]
    parts = (MEASURES, hashes, asdict(arm), asdict(depth))
    return sha256(msgspec.json.encode(parts, order="sorted")).hexdigest()[:16]


def results(folder: Path, sweep: Sweep) -> Iterator[dict[str, Any]]:
    """The results of a sweep in its folder; not those of arms and cells that it no longer has."""
    arms = {arm.name for arm in sweep.arms()}
    for target, adapter, seed in product(sweep.targets, sweep.adapters, sweep.seeds):
        for row in read_lines(folder / target / f"{adapter}-s{seed}.jsonl"):
            if row["arm"] in arms:
                yield row
