"""Faults of `soak_fleet.py`, each of which a run over a store must get over, alone or in turn."""

import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import obstore
from fault_proxy import Fault, FaultProxy
from soak_fleet_hosts import Driver, Engine, Failed, environment
from soak_fleet_places import RECEIPTS, BucketOutputs, upload
from soak_fleet_rounds import Soak

HUNG_SECONDS = 420.0
"""Without any new receipt."""
REPLACED = 4
"""Inputs that are replaced while a run goes on."""


@dataclass
class Hindered:
    """A run that is hindered.

    Attributes:
        soak: whose catalog it does.
        engine: of its workers.
        proxy: between it and the store.
        out: where it writes to.
        inputs: prefix of its catalog in the bucket.
        driver: the last one that was started.
        more: receipts that are waited for in a fault.
        swapped: content that inputs are to have, and have not yet.
        made: faults that were made, by their kind.
    """

    soak: Soak
    engine: Engine
    proxy: FaultProxy
    out: BucketOutputs
    inputs: str
    driver: Driver
    more: int
    swapped: dict[str, bytes]
    made: Counter[str] = field(default_factory=Counter)

    def start(self) -> Driver:
        """The same command."""
        told = environment(self.soak.folder, self.proxy.endpoint)
        return self.soak.start(self.out, self.engine, told, self.inputs)

    def again(self) -> None:
        """Give the same command again."""
        self.driver = self.start()

    def receipts(self) -> int:
        """How many there are."""
        return len(self.out.identities(RECEIPTS))

    def until(self, more: int) -> None:
        """Wait for more receipts, or for the end.

        Raises:
            Failed: there are none for too long.
        """
        last = self.receipts()
        wanted, since = last + more, time.monotonic()
        while not self.driver.ended and last < wanted:
            time.sleep(0.25)
            now = self.receipts()
            if now > last:
                last, since = now, time.monotonic()
            if time.monotonic() - since > HUNG_SECONDS:
                raise Failed(f"{self.out.url}: no receipt in {HUNG_SECONDS:g} s")

    def answers(self, choose: Callable[[str, str], Fault | None]) -> None:
        """Have requests answered so, while some receipts are written."""

        def counted(method: str, path: str) -> Fault | None:
            fault = choose(method, path)
            if fault is not None:
                self.made[str(fault)] += 1
            return fault

        self.proxy.choose = counted
        try:
            self.until(self.more)
        finally:
            self.proxy.choose = nothing

    def chance(self) -> random.Random:
        """Of its own: requests come from many threads."""
        return random.Random(self.soak.chance.random())


def nothing(method: str, path: str) -> Fault | None:
    """A proxy that does no harm."""
    return None


def storm(run: Hindered) -> None:
    """The store says that it is too much, for a second and a half of each six."""
    chance = run.chance()

    def choose(method: str, path: str) -> Fault | None:
        return chance.choice((429, 503)) if time.monotonic() % 6 < 1.5 else None

    run.answers(choose)


def writes(*faults: Fault) -> Callable[[Hindered], None]:
    """A fault of every fifth write."""

    def fault(run: Hindered) -> None:
        chance = run.chance()

        def choose(method: str, path: str) -> Fault | None:
            return chance.choice(faults) if method == "PUT" and chance.random() < 0.2 else None

        run.answers(choose)

    return fault


def reads(run: Hindered) -> None:
    """Every tenth answer to a read is lost, or an error of the store."""
    chance = run.chance()

    def choose(method: str, path: str) -> Fault | None:
        fails = method in ("GET", "HEAD") and chance.random() < 0.1
        return chance.choice(("lose", 500)) if fails else None

    run.answers(choose)


def careless(run: Hindered) -> None:
    """A store that keeps no conditions is refused at the start, and nothing is written to it."""
    soak = run.soak
    other = soak.outputs_of_round("s3")
    prefix = other.url.rpartition("/")[2]
    run.proxy.choose = lambda method, path: "careless" if f"/{prefix}/" in path else None
    try:
        told = environment(soak.folder, run.proxy.endpoint)
        driver = soak.start(other, run.engine, told, run.inputs)
        found = driver.result(HUNG_SECONDS)
    finally:
        run.proxy.choose = nothing
    written = [key for key in other.identities() if not key.startswith(".prolora/probe")]
    if found["exit"] == 0 or "run" in found or written:
        raise Failed(f"{other.url}: a careless store was not refused: {found}, {written}")
    run.made["careless store"] += 1
    run.until(run.more)


def damaged(run: Hindered) -> None:
    """Files of the store of subspaces and operators are damaged; the same command reads them."""
    run.until(1)
    run.driver.kill()
    paths = [path for path in sorted(run.soak.bases.rglob("*")) if path.stat().st_size > 64]
    paths = [path for path in paths if path.suffix in (".safetensors", ".json")]
    for path in run.soak.chance.sample(paths, min(len(paths), 20)):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 0xFF
        path.write_bytes(content if run.soak.chance.random() < 0.5 else content[:-9])
        run.made["damaged file of the store of operators"] += 1
    run.again()
    run.until(run.more)


def replaced(run: Hindered) -> None:
    """Inputs that have others' content get their own, while the run goes on."""
    run.until(1)
    store = run.soak.server_there.client()
    for name, content in list(run.swapped.items()):
        obstore.put(store, f"{run.inputs}/{name}", content)
        del run.swapped[name]
        run.made["replaced input"] += 1
        run.until(max(1, run.more // REPLACED))
    run.until(run.more)


def two_drivers(run: Hindered) -> None:
    """A second driver has the same command; both go on."""
    other = run.start()
    run.made["second driver"] += 1
    try:
        run.until(run.more)
        if run.driver.ended:
            other.result(HUNG_SECONDS)
    finally:
        if not other.ended:
            other.kill()


def sigterm(run: Hindered) -> None:
    """A driver is told to stop, ends with exit code 0 in half a minute, and is started again."""
    run.until(1)
    if run.driver.ended:
        return
    run.driver.process.send_signal(signal.SIGTERM)
    found = run.driver.result(60)
    # One that had its work behind it ends as it would have.
    if found["exit"] != 0 and not found.get("run", {}).get("complete"):
        raise Failed(f"SIGTERM: {found}: {run.driver.messages()}")
    run.made["SIGTERM"] += 1
    run.again()
    run.until(run.more)


def worker_killed(run: Hindered) -> None:
    """Something of the engine is killed: a worker, or an actor, a host, the head."""
    run.until(1)
    victim = run.engine.strike(run.driver, run.soak.chance)
    if victim is not None:
        run.made[victim] += 1
    if run.driver.ended:
        run.again()
    run.until(run.more)


def driver_killed(run: Hindered) -> None:
    """A driver is killed."""
    run.until(1)
    run.driver.kill()
    run.made["driver"] += 1
    run.again()
    run.until(run.more)


def store_killed(run: Hindered) -> None:
    """The store is killed, and comes back."""
    run.until(1)
    run.soak.restart_store()
    run.made["store"] += 1
    run.until(run.more)


FAULTS: dict[str, Callable[[Hindered], None]] = {
    "storm": storm,
    "lost": writes("lose"),
    "cut": writes("cut"),
    "own": writes("own"),
    "conflict": writes(409, 500),
    "reads": reads,
    "careless": careless,
    "damaged": damaged,
    "replaced": replaced,
    "two-drivers": two_drivers,
    "sigterm": sigterm,
    "worker": worker_killed,
    "driver": driver_killed,
    "store": store_killed,
}
"""By name: what a run must get over."""


def hindered(soak: Soak, engine: Engine, name: str) -> dict[str, object]:
    """A run over a new prefix, hindered by one fault from its start to its end; checked.

    Returns:
        How often what was made, and the seconds that it took.

    Raises:
        Failed: something is not as it must be.
    """
    return _run(soak, engine, [name], max(2, soak.files // 3))


def in_turn(soak: Soak, engine: Engine) -> dict[str, object]:
    """The same, hindered by all faults in turn, each at least once while it is at work."""
    return _run(soak, engine, list(FAULTS), max(2, soak.files // (len(FAULTS) + 3)))


def _run(soak: Soak, engine: Engine, names: list[str], more: int) -> dict[str, object]:
    started, out = time.monotonic(), soak.outputs_of_round("s3")
    assert isinstance(out, BucketOutputs)
    inputs, swapped = "catalog", {}
    if "replaced" in names:
        inputs = f"catalog-of-{out.url.rpartition('/')[2]}"
        upload(soak.server_there, soak.made.catalog, inputs)
        swapped = _swapped(soak, inputs)
    with FaultProxy(soak.server_there.endpoint).running() as proxy:
        told = environment(soak.folder, proxy.endpoint)
        driver = soak.start(out, engine, told, inputs)
        run = Hindered(soak, engine, proxy, out, inputs, driver, more, swapped)
        try:
            done = 0
            while not run.driver.ended or done < len(names):
                if run.driver.ended and run.receipts() < soak.files:
                    run.again()
                FAULTS[names[done % len(names)]](run)
                done += 1
            soak.finish(run.start, out, run.driver)
            if "replaced" in names:  # whose list may be older than an input is
                soak.finish(run.start, out)
        finally:
            run.driver.kill()
    soak.check(out, engine, {})
    return {"made": dict(run.made), "seconds": round(time.monotonic() - started, 1)}


def _swapped(soak: Soak, inputs: str) -> dict[str, bytes]:
    """Give some inputs the content of others; returns what they are to have."""
    files = [name for name in soak.made.good if (soak.made.catalog / name).is_file()]
    names = soak.chance.sample([n for n in files if n.endswith(".safetensors")], REPLACED)
    store = soak.server_there.client()
    wanted = {name: (soak.made.catalog / name).read_bytes() for name in names}
    for name, other in zip(names, [*names[1:], names[0]], strict=True):
        obstore.put(store, f"{inputs}/{name}", wanted[other])
    return wanted
