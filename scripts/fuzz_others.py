"""Break what is no safetensors adapter in many ways; each must be read, or refused with a code.

    python scripts/fuzz_others.py --n 20000 --out docs/fuzz_others.json

PEFT folders, msgpack, orbax folders, shard indexes, options, plans, reports, manifests, files of
the store, sidecars. Most cases go to the functions that read them, a share to the command of a
user's. It fails the check if anything but a `ProloraError` comes out of a function, or an exit code
that is not 0, 1 or 2 or an internal error out of a command, or if a command leaves half an output
or one that `verify` rejects, or if it takes longer or more memory than allowed here. Case `i` of
seed `s` depends on `s` and `i` alone: `--only i` repeats it.
"""

import argparse
import contextlib
import io
import json
import logging
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
from fuzz_others_files import Kind, make
from fuzz_others_mutations import broken, broken_row

from prolora_jax.cli.main import run as command
from prolora_jax.errors import ProloraError

MOST_SECONDS = 10
MOST_BYTES = 2**29
MOST_FAILURES = 40
"""Listed in the result; all are counted."""
QUICK = 160


class TookTooLongError(BaseException):
    """Raised by the alarm; no `Exception`, so that no reader takes it for a damaged file."""


def _ring(*_: object) -> None:
    raise TookTooLongError


def peak() -> int:
    """Bytes that this process had at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def called(kind: Kind, place: Path) -> str:
    """What a function made of it: `read`, a code, or `failure: ...`."""
    try:
        kind.quick(place)
    except ProloraError as error:
        if str(error.code) == "internal-error":
            return f"failure: {error}"[:300]
        return str(error.code)
    return "read"


def commanded(kind: Kind, place: Path) -> str:
    """What a command made of it: `exit 0`, ..., or `failure: ...`."""
    assert kind.whole is not None
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = command(list(kind.whole(place)))
    text = said.getvalue()
    for words in ("internal error", "internal-error", "Traceback (most"):
        if words in text:
            at = text.index(words)
            return f"failure: {text[at : at + 300]!r}"
    wrong = None if kind.after is None else kind.after(place, code)
    if wrong is not None:
        return f"failure: {wrong}"[:300]
    return f"exit {code}" if code in (0, 1, 2) else f"failure: exit code {code}"


def outcome(kind: Kind, place: Path, whole: bool) -> str:
    """What came of it, under the alarm."""
    signal.setitimer(signal.ITIMER_REAL, MOST_SECONDS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return commanded(kind, place) if whole else called(kind, place)
    except TookTooLongError:
        return f"failure: more than {MOST_SECONDS} s"
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 - panics of libraries are no Exception
        return f"failure: {type(error).__name__}: {error}"[:300]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def prepare(seed: int, number: int, kinds: dict[str, Kind], folder: Path):
    """Write case `number` of `seed`: kind, its folder, whether it is for the command, recipe."""
    rng = np.random.default_rng((seed, number))
    weights = np.array([kind.weight for kind in kinds.values()], float)
    name = str(rng.choice(list(kinds), p=weights / weights.sum()))
    kind, place = kinds[name], folder / "case"
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(folder / name, place)
    victim = place / kind.victims[rng.integers(len(kind.victims))]
    if kind.database and victim.suffix == ".sqlite" and rng.random() < 0.6:
        recipe = broken_row(rng, victim)
    else:
        content, recipe = broken(rng, victim.name, victim.read_bytes())
        victim.write_bytes(content)
    whole = kind.whole is not None and rng.integers(kind.share) == 0
    return name, place, whole, [victim.name, *recipe]


def run(n: int, seed: int, folder: Path) -> dict[str, object]:
    """Try `n` cases; the result is ready for JSON."""
    old = signal.signal(signal.SIGALRM, _ring)
    logging.disable(logging.WARNING)
    failures, failed = [], 0
    slowest, growth = (0.0, 0), (0, 0)
    started = time.monotonic()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            kinds = make(folder)
        counts = {name: Counter() for name in kinds}
        # What is loaded or compiled once is no case's fault; and what is valid is read.
        for name, kind in kinds.items():
            for whole in (False, True)[: 1 + (kind.whole is not None)]:
                shutil.rmtree(folder / "case", ignore_errors=True)
                shutil.copytree(folder / name, folder / "case")
                found = outcome(kind, folder / "case", whole)
                if found not in ("read", "exit 0"):
                    failed += 1
                    failures.append({"kind": name, "whole": whole, "found": f"valid: {found}"})
        for number in range(n):
            name, place, whole, recipe = prepare(seed, number, kinds, folder)
            before, start = peak(), time.perf_counter()
            found = outcome(kinds[name], place, whole)
            seconds, grown = time.perf_counter() - start, peak() - before
            slowest, growth = max(slowest, (seconds, number)), max(growth, (grown, number))
            if grown > MOST_BYTES:
                found = f"failure: {grown} bytes more"
            if found.startswith("failure"):
                failed += 1
                if len(failures) < MOST_FAILURES:
                    told = found.replace(str(folder), "FOLDER")
                    failures.append({"case": number, "kind": name, "how": recipe, "found": told})
                found = "failure"
            counts[name][found] += 1
    finally:
        logging.disable(logging.NOTSET)
        signal.signal(signal.SIGALRM, old)
    return {
        "n": n,
        "seed": seed,
        "cases": {name: counter.total() for name, counter in counts.items()},
        "counts": {name: dict(sorted(counter.items())) for name, counter in counts.items()},
        "max_seconds": round(slowest[0], 4),
        "slowest_case": slowest[1],
        "most_growth_bytes": growth[0],
        "largest_case": growth[1],
        "wall_seconds": round(time.monotonic() - started, 1),
        "failed": failed,
        "failures": failures,
    }


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK} cases")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", type=int, help="repeat this case and show what happens")
    options = parser.parse_args()
    n = QUICK if options.quick else options.n
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["PROLORA_STORE"] = str(folder / "default-store")
        if options.only is not None:
            return show(options.seed, options.only, folder)
        result = run(n, options.seed, folder)
    told = (
        f"python scripts/fuzz_others.py --n {n} --seed {options.seed} --out docs/fuzz_others.json"
    )
    text = json.dumps({"command": told, **result}, indent=1) + "\n"
    if options.out is not None:
        options.out.write_text(text)
    sys.stdout.write(text)
    return 1 if result["failed"] else 0


def show(seed: int, number: int, folder: Path) -> int:
    """Repeat one case, traceback included."""
    kinds = make(folder)
    name, place, whole, recipe = prepare(seed, number, kinds, folder)
    print(name, whole, recipe)
    os.environ["PROLORA_TRACEBACK"] = "1"
    try:
        print(commanded(kinds[name], place) if whole else called(kinds[name], place))
    except BaseException:  # noqa: BLE001 - it is there to be shown
        print(traceback.format_exc())
    return 0


if __name__ == "__main__":
    sys.exit(main())
