"""Change everything that `verify` reads, one thing at a time, and count what it does not notice.

    python scripts/mutate_verify.py --out docs/mutate_verify.json

Some modules of the demo's style are migrated by several arms. Then every field of the report, every
header string, every field of the header's entry `prolora`, every tensor and, in report and header
alike, every option is changed, removed, made null, renamed or added to. Each change has to be
noticed (not ok, or refused), or to be named in what `verify` says that it did not check.
Exit code 1 when one is neither.
"""

import argparse
import json
import shlex
import sys
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from mutate_verify_changes import Case, Held, Mutant, mutants

from prolora_jax.adapters.formats.resolution import resolve
from prolora_jax.errors import ProloraError
from prolora_jax.evaluation.demo import FOLDER, SOURCE, TARGET, style_file
from prolora_jax.io.adapters.files import load_adapter, save_adapter
from prolora_jax.io.atomic import write_text
from prolora_jax.io.base_models.checkpoint import load_base_model
from prolora_jax.migration.single import migrate
from prolora_jax.plans.options import MigrationOptions
from prolora_jax.verification.adapter import verify_adapter

ARMS: tuple[dict[str, Any], ...] = (
    {},
    {"method": "prolora", "rank": "4", "rescale": "norm", "scale": 0.5, "dtype": "float16"},
    {"method": "rotation", "pair_rank": "own", "min_similarity": 0.95, "below": "copy"},
    {"method": "subspace", "min_similarity": 0.95, "rank": "energy=0.9", "exclude": ("*attn1*",)},
    {"method": "copy", "match": "name"},
)


def main(arguments: list[str] | None = None) -> int:
    """Run every change of every arm.

    Args:
        arguments: of the command line; those of this process if None.

    Returns:
        0 when each was noticed or named.

    Raises:
        SystemExit: a right output does not verify.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, help="JSON file for what was found")
    parser.add_argument("--modules", type=int, default=10, help="of the adapter")
    told = sys.argv[1:] if arguments is None else arguments
    given = parser.parse_args(told)
    found: dict[str, Counter[str]] = {}
    missed: list[str] = []
    for options in ARMS:
        with tempfile.TemporaryDirectory() as folder:
            case = made(Path(folder), MigrationOptions(**options), given.modules)
        said = "; ".join(f"{name} {value}" for name, value in options.items())
        right = verify_adapter(*case)
        if not right.ok:
            raise SystemExit(f"{options}: the right output does not verify: {right}")
        for mutant in mutants(case):
            outcome = tried(mutant)
            found.setdefault(mutant.kind, Counter())[outcome] += 1
            if outcome == "missed":
                missed.append(f"{said or 'defaults'}: {mutant.kind}: {mutant.name}")
                print(missed[-1], file=sys.stderr, flush=True)
    result = {
        "command": shlex.join(["python", "scripts/mutate_verify.py", *told]),
        "arms": [{name: str(value) for name, value in options.items()} for options in ARMS],
        "changes": sum(counter.total() for counter in found.values()),
        "by_kind": {kind: dict(counter) for kind, counter in sorted(found.items())},
        "missed": missed,
    }
    text = json.dumps(result, indent=2) + "\n"
    sys.stdout.write(text)
    if given.out is not None:
        write_text(given.out, text)
    return 1 if missed else 0


def made(folder: Path, options: MigrationOptions, modules: int) -> Case:
    """Migrate some modules of the demo's style, write it, and read it again."""
    source, target = (load_base_model(FOLDER / "bases" / name) for name in (SOURCE, TARGET))
    whole = resolve(load_adapter(style_file()), source.spec)
    step = max(len(whole.modules) // modules, 1)
    extras = {"bundle_emb.style.string_to_param.*": np.ones((2, 4), np.float32)}
    strings = {"modelspec.title": "style", "ss_network_dim": "8", "ss_tag": "digits"}
    before = replace(
        whole,
        modules=whole.modules[::step],
        extras=extras,
        metadata={**whole.metadata, **strings},
    )
    migrated, report = migrate(before, source, target, options)
    path = folder / "style.safetensors"
    save_adapter(migrated, path, base=target.spec)
    output = load_adapter(path, target.spec)
    return Case(output, before, Held(source), Held(target), json.loads(report.to_json()))


def tried(mutant: Mutant) -> str:
    """`noticed`, `refused`, `named` as not checked, or `missed`."""
    try:
        found = verify_adapter(*mutant.case)
    except ProloraError:
        return "refused"
    if not found.ok:
        return "noticed"
    if mutant.named is not None and any(mutant.named in line for line in found.not_checked):
        return "named"
    return "missed"


if __name__ == "__main__":
    sys.exit(main())
