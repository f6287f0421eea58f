"""Kill and hinder runs of a fleet, and check that nothing is lost, torn, repeated or left behind.

    python scripts/soak_fleet.py FOLDER --kills 200 --faults all --out found.json

A catalog and two very small base models are made in FOLDER, and migrated by one machine, left
alone. Then `prolora fleet run` does the same catalog again and again, over a folder and over a real
S3 server (SeaweedFS), by workers of this host or on a Ray cluster of this machine, and what is
killed (SIGKILL, at random moments) is started again with the same command: workers, drivers, the
store; actors, hosts, the head. Behind it each fault that a store may have (`soak_fleet_faults.py`)
hinders a run of its own. At the end of each run: outputs are those of the run that was left alone,
bit for bit, and reports but for places; each input has one receipt, which says what became of it
there; no output was written a second time; no process and no unfinished file is left.

On the first failure it says which, and leaves FOLDER as it is.
"""

import argparse
import json
import signal
import sys
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "support"))
from soak_fleet_faults import FAULTS, hindered, in_turn
from soak_fleet_hosts import Engine, Failed, LocalEngine, RayEngine
from soak_fleet_rounds import Soak

from prolora_jax.io.atomic import write_text

MOST_KILLS = 20
"""In one run; it is then left alone, so that it gets to its end."""


def main(arguments: list[str] | None = None) -> None:
    """Kill and hinder runs as often as was asked for.

    Args:
        arguments: of the command line; those of this process if None.

    Raises:
        SystemExit: with 1, where something was not as it must be.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--files", type=int, default=40)
    parser.add_argument("--kills", type=int, default=0, help="at least so many, at random moments")
    parser.add_argument("--engine", choices=["local", "ray"], default="local")
    parser.add_argument("--places", nargs="+", choices=["folder", "s3"], default=["folder", "s3"])
    parser.add_argument("--faults", nargs="*", default=[], help=f"all, or of {', '.join(FAULTS)}")
    parser.add_argument("--in-turn", action="store_true", help="all faults in turn in one run")
    parser.add_argument("--workers", type=int, default=2, help="of a driver, or hosts of Ray")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start no run after")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON file that what was found is added to")
    parser.add_argument("--quick", action="store_true", help="a few kills over one small folder")
    chosen = parser.parse_args(arguments)
    if chosen.quick:
        chosen.files, chosen.kills, chosen.places, chosen.workers = 10, 3, ["folder"], 1
    found = soaked(chosen)
    print(json.dumps(found, indent=1, ensure_ascii=False))
    if chosen.out is not None:
        before = json.loads(chosen.out.read_text()) if chosen.out.exists() else []
        write_text(chosen.out, json.dumps([*before, found], indent=1, ensure_ascii=False) + "\n")
    if found["finding"] is not None:
        raise SystemExit(1)


def soaked(chosen: argparse.Namespace) -> dict[str, object]:
    """What was done, and the first that was not as it must be."""
    started, faults = time.monotonic(), {}
    end = started + chosen.seconds
    wanted = list(FAULTS) if chosen.faults == ["all"] else chosen.faults
    store = "s3" in chosen.places or bool(wanted) or chosen.in_turn
    kills, runs, finding = {place: Counter[str]() for place in chosen.places}, Counter[str](), None
    with closing(Soak(chosen.folder, chosen.files, chosen.seed, store=store)) as soak:
        engine: Engine
        if chosen.engine == "ray":
            engine = RayEngine(chosen.workers, soak.told)
        else:
            engine = LocalEngine(chosen.workers)
        with closing(engine):
            try:
                while _made(kills) < chosen.kills and time.monotonic() < end:
                    place = chosen.places[runs.total() % len(chosen.places)]
                    most = min(MOST_KILLS, chosen.kills - _made(kills))
                    kills[place] += soak.round(engine, place, most)
                    runs[place] += 1
                    print(f"{time.monotonic() - started:.0f} s: {kills}", flush=True)
                for name in wanted:
                    if time.monotonic() < end:
                        faults[name] = hindered(soak, engine, name)
                        print(
                            f"{time.monotonic() - started:.0f} s: {name}: {faults[name]}",
                            flush=True,
                        )
                if chosen.in_turn:
                    faults["in turn"] = in_turn(soak, engine)
            except Failed as failure:
                finding = str(failure)
            except KeyboardInterrupt:
                print("told to stop: what was checked till now counts", flush=True)
        return {
            "engine": chosen.engine,
            "workers": chosen.workers,
            "seed": chosen.seed,
            "files": chosen.files,
            "usable": len(soak.made.good),
            "kills": {place: dict(sorted(found.items())) for place, found in kills.items()},
            "killed_in_all": _made(kills),
            "runs": dict(runs),
            "faults": faults,
            "seconds_of_one_machine": round(soak.seconds_of_one, 1),
            "seconds": round(time.monotonic() - started),
            "finding": finding,
        }


def _made(kills: dict[str, Counter[str]]) -> int:
    return sum(found.total() for found in kills.values())


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    main()
