"""Every change that `mutate_verify.py` makes: of a report, a header, options and tensors."""

import copy
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any, NamedTuple

import msgspec
import numpy as np

from prolora_jax.adapters.adapter import Adapter
from prolora_jax.errors import ProloraError
from prolora_jax.io.base_models.checkpoint import BaseModel
from prolora_jax.plans.options import BadOption, MigrationOptions
from prolora_jax.plans.plan import Skip
from prolora_jax.plans.report import MigrationReport
from prolora_jax.plans.rules import ModuleRule

Report = dict[str, Any]
Place = tuple[str | int, ...]

NAMED = {
    "location": "where its input and both base models were",
    "prolora_version": "which version of prolora made it",
    "version": "which version of prolora made it",
}
"""Fields of report and header that nothing can be compared with, and what says so."""

REASONS = tuple(map(str, Skip))

CHOICES: dict[str, tuple[object, ...]] = {
    "method": ("copy", "subspace", "null-space", "prolora", "prolora-full", "rotation"),
    "basis_rank": (
        "energy=0.9",
        "energy=0.5",
        "rank=7",
        "fraction=0.3",
        "numerical",
        "gap",
        "optimal",
    ),
    "pair_rank": ("max", "own"),
    "min_similarity": (-1.0, 0.5, 0.8, 0.95, 1.0),
    "gate": ("phi", "corrected"),
    "gate_sides": ("both", "left"),
    "below": ("skip", "copy"),
    "identical": ("copy", "project"),
    "match": ("auto", "name", "block", "module"),
    "match_score": ("cosine", "similarity"),
    "assume_base": (None, "sdxl"),
    "rotation_min_cos": (0.1, 0.9, 1.0),
    "include": ((), ("*attn2*",), ("*",)),
    "exclude": ((), ("*attn2*",), ("*nothing*",)),
    "rank": ("exact", "source", "2", "energy=0.5", "mean=2"),
    "uniform_rank": (False, True),
    "rescale": ("none", "norm"),
    "scale": (1.0, 0.5, 1.01, -1.0, 0.0),
    "dtype": ("same", "float32", "bfloat16", "float16"),
    "allow_partial": (False, True),
    "alpha_zero": ("refuse", "rank", "zero"),
    "factor_rank": ("energy=0.999,max=64", "max=2", "exact"),
    "dora": ("fold", "keep"),
    "rules": ((), (ModuleRule("*attn1*", scale=0.5),), (ModuleRule("*nothing*"),)),
}
"""Values that each option is given in report and header alike."""


class Held:
    """A base model whose weights stay in memory."""

    def __init__(self, model: BaseModel):
        self.spec, self.fingerprint = model.spec, model.fingerprint
        self._model, self._weights, self._matrices = model, {}, {}

    def weight(self, path: str) -> np.ndarray:
        """See `BaseModel`."""
        if path not in self._weights:
            self._weights[path] = self._model.weight(path)
        return self._weights[path]

    def matrix(self, path: str) -> np.ndarray:
        """See `BaseModel`."""
        if path not in self._matrices:
            self._matrices[path] = self._model.matrix(path)
        return self._matrices[path]


class Case(NamedTuple):
    """A right output, and all that it is checked with."""

    output: Adapter
    before: Adapter
    source: Held
    target: Held
    report: Report


class Mutant(NamedTuple):
    """One change: of what kind, to what, and what may name it as not checked."""

    kind: str
    name: str
    case: Case
    named: str | None = None


def mutants(case: Case) -> Iterator[Mutant]:
    """Every change of a case, one at a time."""
    yield from of_report(case)
    yield from of_header(case)
    yield from of_options(case)
    yield from of_tensors(case)


def of_report(case: Case) -> Iterator[Mutant]:
    """Every field of the report changed or null; records removed and repeated; fields added."""
    for place in ((), *places(case.report)):
        if isinstance(looked_up(case.report, place), dict):
            changed = copy.deepcopy(case.report)
            looked_up(changed, place)["more"] = 1
            name = ".".join(map(str, (*place, "more")))
            yield Mutant("report, a field added", name, case._replace(report=changed))
    for place in places(case.report):
        name = ".".join(map(str, place))
        for value in (*other_values(looked_up(case.report, place)), None):
            changed = copy.deepcopy(case.report)
            looked_up(changed, place[:-1])[place[-1]] = value
            if is_same(changed, case.report):
                continue  # defaults left out
            named = next((text for key, text in NAMED.items() if key in place), None)
            yield Mutant("report", f"{name} = {value!r}", case._replace(report=changed), named)


def places(value: Any, place: Place = ()) -> Iterator[Place]:
    """Where every value of a document stands, lists and maps among them."""
    if place:
        yield place
    items = value.items() if isinstance(value, dict) else enumerate(value) if is_list(value) else ()
    for key, inner in items:
        yield from places(inner, (*place, key))


def is_same(report: Report, other: Report) -> bool:
    """Whether two reports read alike."""
    try:
        read, known = (msgspec.convert(told, MigrationReport) for told in (report, other))
    except (msgspec.ValidationError, ProloraError):
        return False
    return read == known


def is_list(value: object) -> bool:
    """Whether a value of a document is one."""
    return isinstance(value, list | tuple)


def looked_up(document: Any, place: Place) -> Any:
    """What stands there."""
    for key in place:
        document = document[key]
    return document


def other_values(value: Any) -> list[Any]:
    """Other values of the same type, and none at all."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1, 10**6, -1]
    if isinstance(value, float):
        return [value + 0.01 * max(abs(value), 0.1), -value - 1.0, 1e30]
    if isinstance(value, str):
        return [f"{value}x", ""]
    if is_list(value):
        return [[], [*value, *value[:1]]] if value else [["x"]]
    if isinstance(value, dict):
        return [{}]
    return [0.5, 3, "x"]


def of_header(case: Case) -> Iterator[Mutant]:
    """Every header string, and every field of the entry `prolora`."""
    strings = dict(case.output.metadata)
    for key, text in strings.items():
        left = {k: t for k, t in strings.items() if k != key}
        absent = "header string format: absent" if key == "format" else None
        yield Mutant("header", f"{key} removed", _with_strings(case, left), absent)
        yield Mutant("header", f"{key} changed", _with_strings(case, {**left, key: f"{text}x"}))
    yield Mutant("header", "a string added", _with_strings(case, {**strings, "note": "x"}))
    facts = json.loads(strings["prolora"])
    for place in places(facts):
        for value in (*other_values(looked_up(facts, place)), None):
            changed = copy.deepcopy(facts)
            looked_up(changed, place[:-1])[place[-1]] = value
            if changed == facts:
                continue
            yield _with_facts(case, changed, f"{place} = {value!r}")
    for key in facts:
        yield _with_facts(case, {k: v for k, v in facts.items() if k != key}, f"{key} removed")
    for place in ((), *places(facts)):
        if isinstance(looked_up(facts, place), dict):
            changed = copy.deepcopy(facts)
            looked_up(changed, place)["more"] = 1
            yield _with_facts(case, changed, f"{(*place, 'more')} added")


def _with_strings(case: Case, strings: dict[str, str]) -> Case:
    return case._replace(output=replace(case.output, metadata=strings))


def _with_facts(case: Case, facts: dict[str, Any], name: str) -> Mutant:
    strings = {**case.output.metadata, "prolora": json.dumps(facts)}
    return Mutant("entry prolora", name, _with_strings(case, strings))


def of_options(case: Case) -> Iterator[Mutant]:
    """Every option in report and header alike; and the version, which both have."""
    told = msgspec.convert(case.report["options"], MigrationOptions)
    for field in fields(told):
        for value in CHOICES[field.name]:
            if value == getattr(told, field.name):
                continue
            try:
                other = replace(told, **{field.name: value})
            except BadOption:  # no report can say both
                continue
            said = msgspec.to_builtins(other.changed() | {"method": other.method})
            changed = {**case.report, "options": msgspec.to_builtins(other)}
            yield Mutant(
                "options in report and header",
                f"{field.name} = {value!r}",
                _in_both(case, changed, options=said),
                f"{field.name} (",
            )
    changed = {**case.report, "prolora_version": "9"}
    yield Mutant(
        "options in report and header",
        "version",
        _in_both(case, changed, version="9"),
        NAMED["version"],
    )


def _in_both(case: Case, report: Report, **facts: Any) -> Case:
    entry = {**json.loads(case.output.metadata["prolora"]), **facts}
    strings = {**case.output.metadata, "prolora": json.dumps(entry)}
    return _with_strings(case._replace(report=report), strings)


def of_tensors(case: Case) -> Iterator[Mutant]:
    """Every tensor changed, removed, renamed; others added; modules listed as skipped."""
    output = case.output
    for place, module in enumerate(output.modules):
        rest = (*output.modules[:place], *output.modules[place + 1 :])
        factors = {"up": module.up, "down": module.down}
        for name, factor in factors.items():
            wide = factor.astype(np.float64)
            one = wide.copy()
            one.flat[0] += 0.5 * np.abs(wide).max()
            for how, other in (("scaled", 1.05 * wide), ("one number", one), ("zero", 0 * wide)):
                changed = replace(module, **{name: other.astype(factor.dtype)})
                yield _with_modules(case, (*rest, changed), f"{module.path}.{name} {how}")
        double = replace(module, alpha=2.0 * (module.alpha or module.rank))
        yield _with_modules(case, (*rest, double), f"{module.path} alpha")
        yield _with_modules(case, rest, f"{module.path} removed")
        yield _with_modules(case, (*output.modules, module), f"{module.path} twice")
        held = {m.path for m in output.modules}
        shapes = {p: m.shape for p, m in case.target.spec.modules.items() if p not in held}
        like = [p for p, s in shapes.items() if s == case.target.spec.modules[module.path].shape]
        for path in like[:1]:
            yield _with_modules(case, (*rest, replace(module, path=path)), f"{path} renamed to")
            yield _with_modules(
                case, (*output.modules, replace(module, path=path)), f"{path} added"
            )
        yield from _listed_as_skipped(case, place)
    for key, array in output.extras.items():
        others = {k: a for k, a in output.extras.items() if k != key}
        for how, extras in (
            ("removed", others),
            ("changed", {**others, key: array + 1}),
            ("in another dtype", {**others, key: array.astype(np.float64)}),
            ("renamed", {**others, f"{key}x": array}),
            ("joined by another", {**others, key: array, "more.x": array}),
        ):
            changed = case._replace(output=replace(output, extras=extras))
            yield Mutant("tensors", f"{key} {how}", changed)


def _with_modules(case: Case, modules: tuple, name: str) -> Mutant:
    return Mutant("tensors", name, case._replace(output=replace(case.output, modules=modules)))


def _listed_as_skipped(case: Case, place: int) -> Iterator[Mutant]:
    """A module taken out of file and report and listed under each reason, counts and all."""
    module = case.output.modules[place]
    record = next(m for m in case.report["modules"] if m["path"] == module.path)
    rest = (*case.output.modules[:place], *case.output.modules[place + 1 :])
    for reason in REASONS:
        for target in (module.path, None):
            skipped = {
                "reason": reason,
                "source_path": record["source_path"],
                "path": target,
                "similarity": None,
            }
            report = copy.deepcopy(case.report)
            report["modules"] = [m for m in report["modules"] if m["path"] != module.path]
            report["skipped"] = [*report["skipped"], skipped]
            kinds = [m["action"] for m in report["modules"]]
            kinds += [s["reason"] for s in report["skipped"]]
            report["counts"] = dict(sorted(Counter(kinds).items()))
            changed = _in_both(case, report, counts=report["counts"])
            changed = changed._replace(output=replace(changed.output, modules=rest))
            yield Mutant("listed as skipped", f"{module.path}: {reason}, {target}", changed)
