"""Who gets which inputs: chunks that shrink, and blame for who has ended workers alone."""

import time
from pathlib import Path
from typing import Literal

import pytest
from fleet_workers import start_toy

from prolora_jax.catalog.fleet.chunk import ChunkDone, ChunkWork
from prolora_jax.catalog.fleet.dispatch import LOSSES, MOST, TRIES, Dispatch
from prolora_jax.catalog.fleet.giving import LAST_STRIKES, FleetRun
from prolora_jax.catalog.fleet.inputs import FleetInput, as_items, fetch, find_inputs, units_of
from prolora_jax.catalog.fleet.share import RunShare
from prolora_jax.engines.crew import Crew, Event
from prolora_jax.errors import Refusal, UsageError
from prolora_jax.io.places.local import LocalPlace
from prolora_jax.io.places.place import Listed


def units(count: int):
    return [(FleetInput(f"{n:06}.safetensors", "etag"),) for n in range(count)]


def test_chunks_shrink_towards_the_end():
    dispatch, sizes = Dispatch(units(101), 3), []
    assert dispatch.next(one=True) == (units(1)[0],)
    while (chunk := dispatch.next()) is not None:
        sizes.append(len(chunk))
    assert sum(sizes) == 100
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == MOST
    assert sizes[-3:] == [1, 1, 1]
    assert dispatch.left == 0


def test_only_who_ends_workers_alone_is_blamed():
    """Every worker that gets unit 5 ends; the others of its chunk are done, and none is blamed."""
    dispatch, done, deaths, blamed = Dispatch(units(20), 1), [], 0, []
    bad = units(20)[5]
    while (chunk := dispatch.next()) is not None:
        if bad in chunk:
            deaths += 1
            at = chunk.index(bad)
            done += chunk[:at]  # these have their receipts
            blamed += dispatch.died(chunk, chunk[at:])
        else:
            done += chunk
    assert blamed == [bad]
    assert deaths == TRIES + 1
    assert sorted(unit[0].name for unit in done) == [
        unit[0].name for unit in units(20) if unit != bad
    ]


def test_what_is_handed_back_is_not_blamed():
    dispatch = Dispatch(units(1), 1)
    for _ in range(2 * TRIES):
        chunk = dispatch.next()
        assert chunk is not None
        dispatch.hand_back(chunk)
    assert dispatch.left == 1


def test_what_is_lost_with_its_host_is_tried_long_before_it_is_given_up():
    dispatch, sizes, spent = Dispatch(units(9), 1), [], []
    while (chunk := dispatch.next()) is not None:
        sizes.append(len(chunk))
        spent += dispatch.lost(chunk)
    assert sorted(unit[0].name for unit in spent) == [unit[0].name for unit in units(9)]
    assert sum(sizes) == 9 * LOSSES
    # Chunks that are lost again and again are taken apart: one of them may be to blame.
    assert max(sizes) > 1
    assert {*sizes[-9 * (LOSSES - 3) :]} == {1}


def test_who_comes_second_counts_for_nothing(tmp_path: Path):
    """Two workers with one chunk: whichever answers first has done it, and no death is blamed."""
    name = units(1)[0][0].name
    for last in ("ended", "lost", "done"):
        run = FleetRun(units(1), {}, LocalPlace(tmp_path), RunShare(), None, False)
        run.crew = Crew(start_toy, None, 0)
        chunk = run.dispatch.next()
        assert chunk is not None
        run.busy.add(0, chunk)
        run.busy.add(1, chunk)
        if last == "done":
            run._heard(Event(0, "done", ChunkDone({name: "done"})))
            assert not run.busy.at_work
            run._heard(Event(1, "done", ChunkDone({name: "done"})))
            assert (run.done, run.states, sorted(run.idle)) == (1, {"done": 1}, [0, 1])
        else:
            run._heard(Event(0, last, "how"))
            assert (run.dispatch.left, run.busy.at_work) == (0, True)
            run._heard(Event(1, last, "how"))
            assert (run.dispatch.left, run.busy.at_work) == (1, False)


class Told(Crew):
    """Two workers, which are what a test says; what each was given."""

    def __init__(self):
        super().__init__(start_toy, None, 0)
        self.given: dict[int, list[list[str]]] = {0: [], 1: []}
        self.gone: list[int] = []

    @property
    def workers(self) -> list[int]:
        return [worker for worker in self.given if worker not in self.gone]

    def give(self, worker: int, task: ChunkWork) -> None:
        self.given[worker].append([one.name.lstrip("0").partition(".")[0] for one in task.inputs])

    def kill(self, worker: int) -> None:
        self.gone.append(worker)

    def dismiss(self, worker: int) -> None:
        self.gone.append(worker)


@pytest.fixture
def run(tmp_path: Path) -> FleetRun:
    """Two workers, of whom one has done the first input of 80, and both have got more."""
    run = FleetRun(units(80), {}, LocalPlace(tmp_path), RunShare(2), None, False)
    run.crew = Told()
    hear(run, Event(0, "ready"), Event(1, "ready"))
    hear(run, done(run, 1))
    return run


def hear(run: FleetRun, *events: Event) -> None:
    for event in events:
        run._heard(event)
    run._give_out()


def done(run: FleetRun, worker: int, trouble: str | None = None) -> Event:
    """A worker has done what it was at, or nothing of it."""
    names = [one.name for unit in run.busy._held[worker][0].chunk for one in unit]
    if trouble:
        return Event(worker, "done", ChunkDone({}, tuple(names), trouble))
    return Event(worker, "done", ChunkDone(dict.fromkeys(names, "done")))


def given(run: FleetRun) -> dict[int, list[list[str]]]:
    assert isinstance(run.crew, Told)
    return run.crew.given


def test_a_worker_goes_on_with_what_it_has(run: FleetRun):
    """One input goes ahead; then each has two chunks, and a third when one is done."""
    first = given(run)
    assert first[1][0] == [""]
    assert [len(chunks) for chunks in first.values()] == [2, 3]
    hear(run, done(run, 0))
    assert [len(chunks) for chunks in first.values()] == [3, 3]
    assert not run.idle
    behind = first[0][-1]
    while run.done < 80 - len(first[0][-2]):
        hear(run, done(run, 1))
    # Who has nothing takes a copy of what another has not begun, and not of what that is at.
    assert first[1][-1] == behind
    assert run.idle == [1]
    names = [name for chunks in first.values() for chunk in chunks for name in chunk]
    assert sorted(names) == sorted(["", *map(str, range(1, 80)), *behind])
    hear(run, done(run, 0))
    assert (run.done, run.busy.at_work) == (80, False)


@pytest.mark.parametrize("how", ["ended", "lost"])
def test_what_was_not_begun_is_not_blamed(run: FleetRun, how: Literal["ended", "lost"]):
    at, behind = given(run)[0]
    run._heard(Event(0, how, "how"))
    apart = {unit[0].name for unit in run.dispatch._alone}
    names = {f"{name:0>6}.safetensors" for name in at}
    assert apart == (names if how == "ended" else set())
    assert not run.dispatch._deaths
    assert run.dispatch._losses.keys() == (set() if how == "ended" else names)
    waiting = {unit[0].name for unit in run.dispatch._waiting}
    assert waiting >= {f"{name:0>6}.safetensors" for name in behind}


def test_who_may_end_its_worker_is_alone_with_it(run: FleetRun):
    """Else its worker might have ended over what it had besides."""
    hear(run, Event(0, "ended", "how"))
    run.dispatch._waiting.clear()
    for _ in range(2):
        hear(run, done(run, 1))
    (alone,) = run.busy._held[1]
    assert run.dispatch.is_apart(alone.chunk)
    run.dispatch.hand_back(units(120)[80:])
    run._give_out()
    assert len(run.busy._held[1]) == 1
    hear(run, Event(1, "ended", "how"))
    assert [*run.dispatch._deaths.values()] == [1]


def test_what_a_host_had_together_fails_as_one(run: FleetRun):
    """Two chunks in flight are one strike; a host with others is dismissed at the third."""
    hear(run, done(run, 0, "disk full"))
    assert (run.strikes[0], len(run.busy._held[0])) == (1, 1)
    hear(run, done(run, 0, "disk full"))
    assert run.strikes[0] == 1
    for strikes in (2, 3):
        assert len(given(run)[0][-1]) == 1
        hear(run, done(run, 0, "disk full"))
        assert run.strikes[0] == strikes
    assert run.dismissed == {0}
    # Without the other there is no run: it is asked for longer, and what it does clears it.
    for strikes in (1, 1, *range(2, LAST_STRIKES)):
        hear(run, done(run, 1, "disk full"))
        assert run.strikes[1] == strikes
    assert run.dismissed == {0}
    hear(run, done(run, 1, "disk full"))
    assert run.dismissed == {0, 1}


def test_who_was_told_to_end_by_somebody_else_is_replaced(run: FleetRun):
    """SIGTERM of a worker alone: it gives back all that it gets, without an end."""
    at, behind = (ChunkDone({}, tuple(unit[0].name for unit in h.chunk)) for h in run.busy._held[0])
    hear(run, Event(0, "done", at))
    assert isinstance(run.crew, Told)
    assert run.crew.gone == [0]
    hear(run, Event(0, "done", behind))  # was on its way
    hear(run, Event(0, "ended", "signal SIGKILL"))
    assert (len(given(run)[0]), 0 in run.busy, run.idle, run.never_ready) == (2, False, [], 0)
    assert not run.dispatch._apart
    while run.busy.at_work:
        hear(run, done(run, 1))
    assert (run.done, run.dispatch.left) == (80, 0)


def test_a_hundred_thousand_are_listed_in_seconds():
    """The driver's share of a large catalog: units and chunks, none of it growing with a square."""
    started = time.process_time()
    found = units_of([one for unit in units(100_000) for one in unit])
    dispatch, count = Dispatch(found, 256), 0
    while (chunk := dispatch.next()) is not None:
        count += len(chunk)
    assert count == 100_000
    assert time.process_time() - started < 20


class NamesOnly(LocalPlace):
    """A store that has nothing but a listing."""

    def __init__(self, *keys: str):
        self.shown, self.keys = "s3://bucket/catalog", keys
        self.folder: Path | None = None

    def list(self, below: str = ""):
        return iter([Listed(key, 10, f"etag of {key}") for key in self.keys])


def test_a_listing_is_read_by_names():
    place = NamesOnly(
        ".hidden/a.safetensors",
        "a.civitai.info",
        "a.safetensors",
        "a.preview.png",
        "a.txt",
        "b/adapter_config.json",
        "b/adapter_model.safetensors",
        "b/checkpoint/adapter_model.safetensors",
        "b/training.log",
        "c/unet/adapter_model.bin",
        "c/text_encoder/adapter_model.bin",
        "d.zip",
        "e/mlx/adapter_config.json",
        "e/mlx/adapters.safetensors",
        "e/notes.md",
        "e/lora.gguf",
        "out/a.safetensors",
    )
    out = NamesOnly()
    out.shown = "s3://bucket/catalog/out"
    found = {one.name: one for one in find_inputs(place, out)}
    assert [*found] == ["a.safetensors", "b", "c", "d.zip", "e/lora.gguf", "e/mlx"]
    assert [file.key for file in found["a.safetensors"].beside] == ["a.civitai.info", "a.txt"]
    assert len(found["b"].files) == 3
    assert found["d.zip"].by_name
    pictures = {one.name: one for one in find_inputs(place, out, previews=True)}
    assert "a.preview.png" in [file.key for file in pictures["a.safetensors"].beside]
    with pytest.raises(UsageError, match="no adapter"):
        find_inputs(NamesOnly("a.txt"), out)
    out.shown = place.shown
    with pytest.raises(UsageError, match="found the catalog itself") as refused:
        find_inputs(place, out)
    assert refused.value.code is Refusal.OUTPUT_EXISTS


def test_a_stores_own_folder_is_no_adapter_whatever_is_in_it(tmp_path: Path):
    """Names at its root that would make a folder one adapter: each input is found."""
    names = ["adapter_model.safetensors", "b.safetensors"]
    names += [f"{part}/adapter_model.safetensors" for part in ("text_encoder", "unet")]
    for name in names:
        path = tmp_path / "store" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"an adapter")
    store = LocalPlace(tmp_path / "store")
    store.folder = None
    found = find_inputs(store, NamesOnly())
    expected = ["adapter_model.safetensors", "b.safetensors", "text_encoder", "unet"]
    assert [one.name for one in found] == expected
    assert fetch(store, found, tmp_path / "staged", lambda: None) == {}
    items = as_items(store, found, tmp_path / "staged", {})
    assert [item.relative.as_posix() for item in items] == expected
    assert [item.refusal or item.ignored for item in items] == [None] * 4


def test_names_that_may_meet_stay_together():
    names = ["a.pt", "a.safetensors", "a.safetensors.safetensors", "b/a.pt", "style.v1.pt"]
    found = units_of([FleetInput(name, "") for name in [*names, "style.v2.pt"]])
    assert [[one.name for one in unit] for unit in found] == [
        ["a.pt", "a.safetensors", "a.safetensors.safetensors"],
        ["b/a.pt"],
        ["style.v1.pt"],
        ["style.v2.pt"],
    ]
