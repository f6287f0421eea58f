"""Kill runs over a catalog at random moments, and check that nothing is lost, redone or torn.

    python scripts/soak_kill.py FOLDER --kills 200 --out docs/soak_kill.json

A mixed catalog and two tiny base models are made in FOLDER. One run is left alone; then runs are
started over a new output folder and a new basis store, and killed (SIGKILL, with their worker
processes) after a random time, or after a random number of finished files, until one gets to its
end; then over the next new folders. After every kill: what the manifest calls finished is whole;
what was finished before has not been written again; every output there is, bit for bit, that of
the run that was left alone; so is every basis. At the end nothing is missing, nothing else there.

On the first failure it says which, and leaves FOLDER as it is.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from hashlib import sha256
from pathlib import Path

from prolora_jax.benchmarks.made_models import tiny_pair, write_models
from prolora_jax.benchmarks.mixed_catalog import write_mixed_catalog
from prolora_jax.io.atomic import write_text

FILES = 40
KNOWN = ".weights.json"
OTHERS = (".report.json", KNOWN, ".names")  # the last: what a running process uses
NOT_OUTPUTS = frozenset({"manifest.sqlite", "manifest.sqlite-wal", "manifest.sqlite-shm", ".lock"})
COMPILED = {
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}
"""Programs are compiled by the first run, so that kills hit the work and not the compiler."""

Prints = dict[str, str]


class Failed(Exception):
    """Something is not as it must be."""


def main(arguments: list[str] | None = None) -> None:
    """Run until enough runs were killed.

    Args:
        arguments: of the command line; those of this process if None.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--files", type=int, default=FILES)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON file for what was found")
    chosen = parser.parse_args(arguments)
    found = Soak(chosen.folder, chosen.files, chosen.seed).run(chosen.kills)
    text = json.dumps(found, indent=1) + "\n"
    print(text)
    if chosen.out is not None:
        write_text(chosen.out, text)


class Soak:
    """A catalog, the run that was left alone, and runs that are killed.

    Args:
        folder: is made; must not be there.
        files: in the catalog.
        seed: of the catalog and of the moments.
    """

    def __init__(self, folder: Path, files: int = FILES, seed: int = 0):
        self.folder, self.random = folder, random.Random(seed)
        pair = tiny_pair(seed, 0.1)
        write_models(pair, folder)
        made = list(write_mixed_catalog(pair.source_spec, folder / "catalog", files, seed))
        self.usable = sum(one.reason is None for one in made)
        self.whole, self.bases = folder / "whole", folder / "bases"
        self._wait(self._start(self.whole, self.bases))
        started = time.monotonic()
        again = folder / "again"
        self._wait(self._start(again, folder / "again-bases"))
        self.seconds = time.monotonic() - started
        self.outputs, self.stored = prints(self.whole), prints(self.bases)
        self.known = known(self.bases)
        if prints(again) != self.outputs:
            raise Failed("two runs that were left alone differ")

    def run(self, kills: int) -> dict[str, object]:
        """Kill runs.

        Args:
            kills: at least so many.

        Returns:
            What was done.

        Raises:
            Failed: something was lost, redone or torn.
        """
        done, rounds, phases, started = 0, 0, Counter[str](), time.monotonic()
        while done < kills:
            rounds += 1
            out, bases = self.folder / f"out{rounds}", self.folder / f"bases{rounds}"
            before: dict[str, tuple[int, int]] = {}
            while True:
                process = self._start(out, bases)
                killed = self._kill(process, out)
                before = self._check(out, bases, before)
                if not killed:
                    break
                done += 1
                phases[self._phase(out, len(before))] += 1
            self._check_end(out, bases)
            shutil.rmtree(out)
            shutil.rmtree(bases)
        return {
            "kills": done,
            "complete_runs": rounds,
            "files": len(list(self._records(self.whole))),
            "usable": self.usable,
            "killed_while": dict(sorted(phases.items())),
            "seconds_of_a_run_left_alone": round(self.seconds, 2),
            "seconds": round(time.monotonic() - started),
            "lost_or_torn_or_done_again": 0,
        }

    def _start(self, out: Path, bases: Path) -> subprocess.Popen[bytes]:
        models = ["--source", self.folder / "sdxl", "--target", self.folder / "ssd-1b"]
        command = [
            "migrate",
            self.folder / "catalog",
            *models,
            "--out",
            out,
            "--store",
            bases,
            "-q",
        ]
        environment = os.environ | COMPILED
        environment.setdefault("JAX_COMPILATION_CACHE_DIR", str(self.folder / "compiled"))
        return subprocess.Popen(
            [sys.executable, "-m", "prolora_jax", *map(str, command)],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )

    def _wait(self, process: subprocess.Popen[bytes]) -> None:
        _, errors = process.communicate()
        if process.returncode != 1:  # some files of the catalog are broken
            raise Failed(f"exit code {process.returncode}: {errors.decode()[-2000:]}")

    def _kill(self, process: subprocess.Popen[bytes], out: Path) -> bool:
        """Whether it was killed, and did not end before."""
        last, enough = time.monotonic() + self.seconds * self.random.random(), float("inf")
        there = len(self._finished(out))
        if there < self.usable and self.random.random() < 0.5:
            # Most of a short run is start: aim at the writing, too.
            last, enough = float("inf"), self.random.randint(there + 1, self.usable)
        while process.poll() is None:
            if time.monotonic() > last or len(self._finished(out)) >= enough:
                time.sleep(self.random.uniform(0, 0.05))
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
                return True
            time.sleep(0.005)
        self._wait(process)
        return False

    def _check(
        self, out: Path, bases: Path, before: dict[str, tuple[int, int]]
    ) -> dict[str, tuple[int, int]]:
        """Check a folder as a run has left it; returns its finished outputs and their identity."""
        here, stored = prints(out), prints(bases)
        for name, weights in known(bases).items():
            # Nothing is noted of files that were written a moment ago: of the first run it may be
            # nothing at all.
            noted = self.known.setdefault(name, {})
            if any(noted.setdefault(place, told) != told for place, told in weights.items()):
                raise Failed(f"{name}: other fingerprints than those of an earlier run")
        for name, print_ in {**here, **stored}.items():
            if print_ != (self.outputs.get(name) or self.stored.get(name)):
                raise Failed(f"{name}: torn, or not what the run that was left alone wrote")
        finished = {}
        for output in self._finished(out):
            report = f"{output}.report.json"
            if not any(name == output or name.startswith(f"{output}/") for name in here):
                raise Failed(f"{output}: called finished, and not there")
            if not (out / report).is_file():
                raise Failed(f"{report}: its output is called finished, and it is not there")
            status = (out / output).stat()
            finished[output] = (status.st_ino, status.st_mtime_ns)
        for output, identity in before.items():
            if finished.get(output) != identity:
                raise Failed(f"{output}: was finished, and was written again")
        return finished

    def _check_end(self, out: Path, bases: Path) -> None:
        if prints(out) != self.outputs:
            raise Failed(f"{out}: other outputs than those of the run that was left alone")
        if prints(bases) != self.stored:
            raise Failed(f"{bases}: other bases than those of the run that was left alone")
        if sorted(self._records(out)) != sorted(self._records(self.whole)):
            raise Failed(f"{out}: another manifest than that of the run that was left alone")
        left = [p for p in out.rglob("*") if p.name.endswith(".prolora-tmp")]
        if left:
            raise Failed(f"{left[0]}: left behind")

    def _finished(self, out: Path) -> list[str]:
        return [o for o, state in self._records(out) if state in ("migrated", "duplicate")]

    @staticmethod
    def _records(out: Path) -> list[tuple[str, str]]:
        """Output and state of each record, read without the package's own code."""
        if not (out / "manifest.sqlite").is_file():
            return []
        database = sqlite3.connect(out / "manifest.sqlite", timeout=30)
        try:
            return database.execute("SELECT coalesce(output, input), state FROM records").fetchall()
        except sqlite3.OperationalError:
            return []  # killed before it had a table
        finally:
            database.close()

    def _phase(self, out: Path, finished: int) -> str:
        if not self._records(out):
            return "0 starting, bases and scan"
        share = finished / self.usable
        return "1 before the first file" if not share else f"2 {int(share * 4) * 25:02d} % of files"


def prints(folder: Path) -> Prints:
    """Digests of the files of a folder that a user keeps, by path below it.

    Reports are left out, since they name their folder; so is what is being written, and what
    grows while a run goes on (`known`).
    """
    found = {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        temporary = any(part.endswith(".prolora-tmp") for part in path.relative_to(folder).parts)
        if not path.is_file() or temporary or path.name in NOT_OUTPUTS or name.endswith(OTHERS):
            continue
        found[name] = sha256(path.read_bytes()).hexdigest()
    return found


def known(bases: Path) -> dict[str, dict[str, str]]:
    """Fingerprints of weights by file of a store, read without the package's own code."""
    try:
        return {
            path.name: json.loads(path.read_bytes())["fingerprints"]
            for path in bases.rglob(f"*{KNOWN}")
        }
    except ValueError as error:
        raise Failed(f"{bases}: a file of fingerprints is torn ({error})") from error


if __name__ == "__main__":
    main()
