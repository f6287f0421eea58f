"""Who gets which inputs: chunks that shrink, and blame for who has ended workers alone."""

import time
from pathlib import Path

import pytest
from fleet_workers import start_toy

from prolora_jax.catalog.fleet.chunk import ChunkDone
from prolora_jax.catalog.fleet.dispatch import LOSSES, MOST, TRIES, Dispatch
from prolora_jax.catalog.fleet.giving import FleetRun, RunShare, _Held
from prolora_jax.catalog.fleet.inputs import FleetInput, as_items, fetch, find_inputs, units_of
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
        run.busy = {0: _Held(chunk, -100.0), 1: _Held(chunk, -1.0)}
        if last == "done":
            run._heard(Event(0, "done", ChunkDone({name: "done"})))
            assert not run._at_work
            run._heard(Event(1, "done", ChunkDone({name: "done"})))
            assert (run.done, run.states, sorted(run.idle)) == (1, {"done": 1}, [0, 1])
        else:
            run._heard(Event(0, last, "how"))
            assert (run.dispatch.left, run._at_work) == (0, True)
            run._heard(Event(1, last, "how"))
            assert (run.dispatch.left, run._at_work) == (1, False)


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
