"""Break valid files of LoHa, LoKr, DoRA, OFT and their like; each must be read or refused.

    python scripts/fuzz_algorithms.py --n 20000 --out docs/fuzz_algorithms.json

As `fuzz.py`, family by family: the tensors are parsed with their structure and fitted to a base
model whose weights are at hand, so that every update is worked out (of DoRA, in every other case,
its BA and its gains, as `migrate --dora keep` asks for); every fiftieth case is written
to a file and goes through `convert --to lora`. The container is what `fuzz.py` breaks. Some rows of
the base model are zero. Anything but factors or a `ProloraError` of one printable line fails the
check, a NumPy warning included. Case `i` of family `f` depends on the seed, `f` and `i` alone:
`--family f --only i` repeats it and shows the traceback.
"""

import argparse
import json
import logging
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from fuzz import _XL, MOST_FAILURES, MOST_SECONDS, outcome, with_sorted_header
from fuzz_algorithms_files import FAMILIES, STRUCTURE
from fuzz_mutations import KEYS, Tensors
from safetensors.numpy import save

from prolora_jax.adapters.adapter import Adapter
from prolora_jax.adapters.algorithms.cutting import FactorRank
from prolora_jax.adapters.fitting import fit
from prolora_jax.adapters.formats.parsing import parse
from prolora_jax.architectures.unet.table import unet_table
from prolora_jax.io.adapters.whole_files import convert_file
from prolora_jax.io.base_models.checkpoint import BaseModel, load_base_model

CONVERTED_EVERY = 50
RANKS = (FactorRank(), FactorRank(1.0, None), FactorRank(0.9, 2))


def made_base(folder: Path) -> BaseModel:
    """The base model that the files are for; the first rows of every other weight are zero."""
    rng = np.random.default_rng(1)
    tensors = {}
    for number, (key, shape) in enumerate(sorted(unet_table(_XL).items())):
        tensors[key] = (0.2 * rng.standard_normal(shape)).astype(np.float16)
        if number % 2:
            tensors[key][:2] = 0
    place = folder / "base.safetensors"
    place.write_bytes(save(tensors, {"format": "pt"}))
    return load_base_model(place)


@dataclass
class Case:
    """A broken file that is not yet written, and how it was made."""

    tensors: Tensors
    metadata: dict[str, str]
    recipe: list[str] = field(default_factory=list)

    def write(self, file: Path) -> None:
        """As a safetensors file."""
        ordered = {key: np.ascontiguousarray(a).reshape(a.shape) for key, a in self.tensors.items()}
        file.write_bytes(with_sorted_header(save(ordered, self.metadata or None)))


def make_case(seed: int, family: str, number: int) -> Case:
    """Case `number` of a family; the same for the same numbers."""
    rng = np.random.default_rng((seed, list(FAMILIES).index(family), number))
    arrays, strings = FAMILIES[family]
    case = Case(dict(arrays), dict(strings))
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        mutations = STRUCTURE if rng.random() < 0.7 else KEYS
        mutate = mutations[rng.integers(len(mutations))]
        case.recipe.append(mutate.__name__)
        with np.errstate(all="ignore"):
            mutate(rng, case.tensors, case.metadata)
    # What is calculated from an array of no axes is none any more.
    case.tensors = {key: np.asarray(array) for key, array in case.tensors.items()}
    return case


def jobs(case: Case, file: Path, number: int, model: BaseModel) -> dict[str, Callable[[], object]]:
    """What is done with a case."""
    rank = RANKS[number % len(RANKS)]

    def fitted() -> None:
        adapter = parse(case.tensors, case.metadata, str(file), structured=True)
        how = {"matrix": model.matrix, "factor_rank": rank, "keep_dora": number % 2 == 1}
        require_numbers(fit(adapter, model.spec, **how).adapter)

    found: dict[str, Callable[[], object]] = {"fit": fitted}
    if number % CONVERTED_EVERY == 0:
        out, base = file.with_name("out.safetensors"), file.with_name("base.safetensors")
        case.write(file)
        found["convert"] = lambda: convert_file(
            file, "lora", out, base, allow_partial=True, overwrite=True, factor_rank=rank
        )
    return found


def require_numbers(adapter: Adapter) -> None:
    """Factors that a reader could use.

    Raises:
        ValueError: they are not.
    """
    for module in adapter.modules:
        finite = np.isfinite(module.up).all() and np.isfinite(module.down).all()
        if not finite or (module.made_from and not 0.0 <= module.made_from.kept <= 1.0):
            raise ValueError(f"factors of {module.path}: {module.made_from}")
        gains = module.made_from and module.made_from.gains
        if gains is not None and not np.isfinite(gains.values).all():
            raise ValueError(f"gains of {module.path}: {gains}")


def tried(job: Callable[[], object], file: Path) -> tuple[str, float]:
    """What became of it, and the seconds of this process."""
    start = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = outcome(job, file)
    seconds = time.process_time() - start
    return (found if seconds <= MOST_SECONDS else f"failure: {seconds:.2f} s"), seconds


def run(n: int, seed: int, folder: Path, names: Iterable[str] = FAMILIES) -> dict[str, object]:
    """Try `n` cases of each family; the result is ready for JSON."""
    file, model = folder / "case.safetensors", made_base(folder)
    logging.disable(logging.WARNING)
    slowest, failures, failed = (0.0, "", 0), [], 0
    counts: dict[str, dict[str, dict[str, int]]] = {}
    try:
        for family in names:
            counted: dict[str, Counter[str]] = {"fit": Counter(), "convert": Counter()}
            for number in range(n):
                case = make_case(seed, family, number)
                for name, job in jobs(case, file, number, model).items():
                    found, seconds = tried(job, file)
                    slowest = max(slowest, (seconds, family, number))
                    if found.startswith("failure"):
                        failed += 1
                        recipe = {"family": family, "case": number, "mutations": case.recipe}
                        if len(failures) < MOST_FAILURES:
                            failures.append(recipe | {"job": name, "found": found})
                        found = "failure"
                    counted[name][found] += 1
            counts[family] = {job: dict(sorted(each.items())) for job, each in counted.items()}
    finally:
        logging.disable(logging.NOTSET)
    return {
        "n": n,
        "seed": seed,
        "counts": counts,
        "max_seconds": round(slowest[0], 4),
        "slowest_case": f"{slowest[1]} {slowest[2]}",
        "failed": failed,
        "failures": failures,
    }


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--family", choices=FAMILIES, help="this one alone")
    parser.add_argument("--only", type=int, help="repeat this case and show what happens")
    options = parser.parse_args()
    names = list(FAMILIES) if options.family is None else [options.family]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.only is not None:
            return show(make_case(options.seed, names[0], options.only), options.only, folder)
        result = run(options.n, options.seed, folder, names)
    text = json.dumps(result, indent=1) + "\n"
    if options.out is not None:
        options.out.write_text(text)
    sys.stdout.write(text)
    return 1 if result["failed"] else 0


def show(case: Case, number: int, folder: Path) -> int:
    """Repeat one case, tracebacks included."""
    file, model = folder / "case.safetensors", made_base(folder)
    print(case.recipe, {key: (a.dtype.name, a.shape) for key, a in case.tensors.items()})
    warnings.simplefilter("error")
    for name, job in jobs(case, file, number, model).items():
        try:
            print(name, job())
        except Exception:  # noqa: BLE001 - it is there to be shown
            print(name, traceback.format_exc())
    return 0


if __name__ == "__main__":
    sys.exit(main())
