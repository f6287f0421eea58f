"""Runs of `soak_fleet.py`: what is started, what is killed in it, and how its end must look."""

import random
import shutil
import sqlite3
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from soak_fleet_files import make_files
from soak_fleet_hosts import Driver, Engine, Failed, environment, marked
from soak_fleet_places import (
    NOT_OUTPUTS,
    RECEIPTS,
    UNFINISHED,
    BucketOutputs,
    FolderOutputs,
    Identity,
    Outputs,
    Seaweed,
    prints,
    receipts_of,
    upload,
)

from prolora_jax.io.places.scratch import scratch

PAIR_REPORT = "pair.report.json"
DRIVERS, STORE = 0.18, 0.15
"""Shares of kills that are of a driver, and of the store where there is one."""
RUN_SECONDS = 900.0
"""What a run may take that nothing hinders any more."""
TRIES = 10
"""Times that a run may end with work left, or an error, when nothing was killed meanwhile."""


class Soak:
    """A catalog, what one machine makes of it, and runs of fleets over it.

    Args:
        folder: is made; must not be there.
        files: in the catalog.
        seed: of the catalog and of all moments.
        store: whether there is an S3 server.
    """

    def __init__(self, folder: Path, files: int, seed: int, *, store: bool):
        folder.mkdir(parents=True)
        self.folder, self.chance, self.files = folder.resolve(), random.Random(seed), files
        self.told = environment(self.folder)
        tempfile.tempdir = self.told["TMPDIR"]
        self.made = make_files(self.folder, files, seed)
        self.bases = self.folder / "store"
        started = time.monotonic()
        whole = self.folder / "one"
        self._one_machine(whole)
        self.seconds_of_one = time.monotonic() - started
        self.outputs, self.states = prints(FolderOutputs(whole)), states_of(whole)
        self.start_seconds, self.number = 10.0, 0
        self.server: Seaweed | None = None
        if store:
            (self.folder / "seaweed").mkdir()
            self.server = Seaweed(self.folder / "seaweed")
            self.server.start()
            self.told = environment(self.folder, self.server.endpoint)
            upload(self.server, self.made.catalog, "catalog")

    def close(self) -> None:
        """End the server."""
        if self.server is not None:
            self.server.kill()

    @property
    def server_there(self) -> Seaweed:
        """The server, of a soak that has one."""
        assert self.server is not None
        return self.server

    def _one_machine(self, whole: Path) -> None:
        words = [*self._words(str(self.made.catalog), str(whole)), "-q"]
        one = Driver(["migrate", *words], self.told, self.folder / "log")
        if one.result()["exit"] != int(self.made.broken > 0):
            raise Failed(f"the run that was left alone has failed: {one.messages()}")

    def _words(self, inputs: str, out: str) -> list[str]:
        models = ["--source", str(self.made.source), "--target", str(self.made.target)]
        return [inputs, *models, "--out", out, "--store", str(self.bases)]

    def outputs_of_round(self, place: str) -> Outputs:
        """A new place for outputs, `folder` or `s3`."""
        self.number += 1
        name = f"out{self.number}"
        if place == "folder":
            return FolderOutputs(self.folder / name)
        return BucketOutputs(self.server_there, name)

    def start(
        self, out: Outputs, engine: Engine, told: dict[str, str] | None = None, inputs: str = ""
    ) -> Driver:
        """Start a driver.

        Args:
            out: where to.
            engine: of its workers.
            told: environment, where it is not the usual one.
            inputs: prefix of the catalog in the bucket.
        """
        place = str(self.made.catalog)
        if isinstance(out, BucketOutputs):
            place = out.url.rpartition("/")[0] + "/" + (inputs or "catalog")
        words = [*self._words(place, out.url), *engine.words(), "--json", "-q"]
        return Driver(["fleet", "run", *words], told or self.told, self.folder / "log")

    def finish(
        self, start: Callable[[], Driver], out: Outputs, driver: Driver | None = None
    ) -> None:
        """Have a run end, by the same command as often as it takes.

        Args:
            start: the command.
            out: where to.
            driver: that was started last.

        Raises:
            Failed: it does not come to an end.
        """
        for _ in range(TRIES):
            driver = driver or start()
            found = driver.result(RUN_SECONDS)
            if found.get("run", {}).get("complete") and not found["run"]["left"]:
                again = [r for r in receipts_of(out) if r.get("quarantined")]
                if not again:
                    return
                words = ["fleet", "retry", out.url, "--quarantined", "-q"]
                if Driver(words, self.told, self.folder / "log").result()["exit"] != 0:
                    raise Failed(f"fleet retry: {driver.messages()}")
            elif found["exit"] not in (0, 1):
                raise Failed(f"exit code {found['exit']}: {driver.messages()}")
            driver = None
        raise Failed(f"not finished in {TRIES} runs that were left alone: {self._log()}")

    def _log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")[-2000:]

    def round(self, engine: Engine, place: str, kills: int) -> Counter[str]:
        """One run over a new place, in which so many things are killed, or fewer; checked.

        Args:
            engine: of the workers.
            place: `folder` or `s3`.
            kills: at most.

        Returns:
            What was killed, and how often.
        """
        out, killed = self.outputs_of_round(place), Counter[str]()
        if self.chance.random() < 0.25:  # what is known of the base models is made anew, too
            shutil.rmtree(self.bases)
        seen: dict[str, Identity] = {}
        driver = self.start(out, engine)
        try:
            while killed.total() < kills and self._moment(driver, out):
                if (victim := self._strike(driver, engine, place)) is None:
                    continue
                killed[victim] += 1
                self.require_untouched(out, seen)
                if driver.ended:
                    driver = self.start(out, engine)
            self.finish(lambda: self.start(out, engine), out, driver)
        finally:
            driver.kill()
        self.check(out, engine, seen)
        return killed

    def _moment(self, driver: Driver, out: Outputs) -> bool:
        """Wait for a random moment, in the start or at the work; False when the run has ended."""
        started = time.monotonic()
        last, enough = started + self.start_seconds * self.chance.uniform(0.05, 1.2), None
        if self.chance.random() < 0.6:
            # Most of a short run is start: aim at the work, too.
            last = started + 60
            enough = len(out.identities(RECEIPTS)) + self.chance.randint(1, 4)
        while not driver.ended:
            count = len(out.identities(RECEIPTS)) if enough is not None else 0
            if time.monotonic() > last or (enough is not None and count >= enough):
                time.sleep(self.chance.uniform(0, 0.1))
                return True
            time.sleep(0.1)
        return False

    def _strike(self, driver: Driver, engine: Engine, place: str) -> str | None:
        dice = self.chance.random()
        if dice < DRIVERS:
            driver.kill()
            return "driver"
        if dice < DRIVERS + STORE and place == "s3":
            self.restart_store()
            return "store"
        return engine.strike(driver, self.chance)

    def restart_store(self) -> None:
        """Kill the server, and start it again over what it has kept."""
        self.server_there.kill()
        time.sleep(self.chance.uniform(0, 2))
        self.server_there.start()

    def require_untouched(self, out: Outputs, seen: dict[str, Identity]) -> None:
        """No output is written anew.

        Args:
            out: place.
            seen: what was there before; what is there now is added.

        Raises:
            Failed: one was.
        """
        now = {
            key: told
            for key, told in out.identities().items()
            if not key.startswith((*NOT_OUTPUTS, PAIR_REPORT)) and UNFINISHED not in key
        }
        for key, told in seen.items():
            if now.get(key) != told:
                raise Failed(f"{out.url}/{key}: was there, and was written again, or is gone")
        seen.update(now)

    def check(self, out: Outputs, engine: Engine, seen: dict[str, Identity]) -> None:
        """A place as a run has left it that came to its end.

        Raises:
            Failed: something is not as one machine has it.
        """
        self.require_untouched(out, seen)
        found = prints(out)
        for key in sorted({*found, *self.outputs}):
            if found.get(key) != self.outputs.get(key):
                raise Failed(f"{out.url}/{key}: not what the run that was left alone has there")
        receipts = receipts_of(out)
        told = sorted((r["record"]["input"], *told_of(r["record"])) for r in receipts)
        if told != self.states:
            wrong = {*told} ^ {*self.states}
            raise Failed(f"{out.url}: receipts of {len(told)} inputs; differing: {sorted(wrong)}")
        left = [key for key in out.identities() if UNFINISHED in key]
        with scratch() as mine:  # which removes what killed workers have left, and nothing else
            left += [str(p) for p in mine.parent.glob("*prolora-fleet-*") if p != mine]
        end = time.monotonic() + 30
        while (pids := marked(self.folder) + engine.left()) and time.monotonic() < end:
            time.sleep(0.2)
        if left or pids:
            raise Failed(f"{out.url}: left behind: files {left}, processes {pids}")


def told_of(record: dict[str, Any]) -> tuple[str, str]:
    """What is compared of a record: copies in another chunk are migrated like all others."""
    state = "migrated" if record["state"] == "duplicate" else record["state"]
    return state, record.get("reason") or ""


def states_of(whole: Path) -> list[tuple[str, str, str]]:
    """Input, state and reason of each record of one machine, read without the package's code."""
    database = sqlite3.connect(whole / "manifest.sqlite")
    try:
        rows = database.execute("SELECT input, state, reason FROM records").fetchall()
    finally:
        database.close()
    return sorted((name, *told_of({"state": s, "reason": r})) for name, s, r in rows)
