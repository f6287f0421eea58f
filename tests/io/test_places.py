"""Local folders, a real S3 server (SeaweedFS) and an emulator of Google's store keep one contract.

Through faults, too.
"""

import errno
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest
from fake_gcs import EMULATOR, proxied_gcs
from fault_proxy import FaultProxy, chained
from seaweed import BUCKET, KEY, proxied, use

from prolora_jax.errors import AdapterRefused, OutputError, Refusal, UsageError
from prolora_jax.io.places import staging
from prolora_jax.io.places.local import LocalPlace
from prolora_jax.io.places.opening import open_place, require_conditions, without_secrets
from prolora_jax.io.places.pacing import Pace
from prolora_jax.io.places.place import FilePlace, read_listed, read_whole
from prolora_jax.io.places.staging import PIECE, stage, stage_once

WRITERS = 8
ODD = "folder/b é+%20 #.txt"
"""A key with what URLs and signatures may stumble over."""


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultProxy]:
    with proxied(tmp_path_factory.mktemp("seaweed")) as found:
        yield found


@pytest.fixture
def store(proxy: FaultProxy, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch):
    """A prefix of its own on the server, and no patience."""
    proxy.choose = lambda method, path: None
    use(proxy.endpoint, monkeypatch)
    proxy.asked.clear()
    return open_place(f"s3://{BUCKET}/{request.node.name}", Pace(patience=5))


@pytest.fixture(scope="module")
def google_proxy() -> Iterator[FaultProxy]:
    with proxied_gcs(BUCKET) as found:
        yield found


@pytest.fixture
def google(
    google_proxy: FaultProxy, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> FilePlace:
    """A prefix of its own on the emulator, and no patience."""
    google_proxy.choose = lambda method, path: None
    monkeypatch.setenv(EMULATOR, google_proxy.endpoint)
    return open_place(f"gs://{BUCKET}/{request.node.name}", Pace(patience=5))


@pytest.fixture(params=["local", "store", "google"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> FilePlace:
    return (
        LocalPlace(tmp_path) if request.param == "local" else request.getfixturevalue(request.param)
    )


class Faulty(NamedTuple):
    """A store, the proxy before it, and the method by which its clients write."""

    place: FilePlace
    proxy: FaultProxy
    writes: str


@pytest.fixture(params=["store", "google"])
def faulty(request: pytest.FixtureRequest) -> Faulty:
    proxy, writes = ("proxy", "PUT") if request.param == "store" else ("google_proxy", "POST")
    return Faulty(request.getfixturevalue(request.param), request.getfixturevalue(proxy), writes)


def test_what_is_written_is_there(place: FilePlace, tmp_path: Path):
    assert place.head(ODD) is None
    assert list(place.list()) == []
    written = place.create(ODD, b"hello", {"prolora-job": "a"})
    assert written.ours
    source = tmp_path.parent / f"{tmp_path.name}.source"
    source.write_bytes(b"0123456789")
    assert place.create("folder/other.txt", source, {}).ours
    assert place.create("elsewhere.txt", b"", {}).ours
    found = place.head(ODD)
    assert found is not None
    assert (found.size, found.etag) == (5, written.etag)
    assert found.tags.get("prolora-job") == ("a" if place.keeps_tags else None)
    assert [(one.key, one.size) for one in place.list("folder")] == [
        (ODD, 5),
        ("folder/other.txt", 10),
    ]
    assert sorted(one.key for one in place.list()) == ["elsewhere.txt", ODD, "folder/other.txt"]
    assert {one.etag for one in place.list("folder")} >= {written.etag}
    assert place.read_range("folder/other.txt", 2, 3) == b"234"
    assert place.read_range("folder/other.txt", 8, 30) == b"89"
    assert read_whole(place, ODD, 5) == (b"hello", written.etag)
    with pytest.raises(AdapterRefused, match="at most 4"):
        read_whole(place, ODD, 4)
    with pytest.raises(FileNotFoundError):
        place.read_range("folder/none.txt", 0, 1)
    with pytest.raises(FileNotFoundError):
        read_whole(place, "folder/none.txt", 9)


def test_a_listed_file_is_read_by_one_request(store: FilePlace, proxy: FaultProxy):
    store.create("a", b"one", {})
    (listed,) = store.list()
    proxy.asked.clear()
    assert read_listed(store, listed, 3) == (b"one", listed.etag)
    assert [method for method, _ in proxy.asked] == ["GET"]
    with pytest.raises(AdapterRefused, match="found 3 bytes; expected at most 2"):
        read_listed(store, listed, 2)
    now = store.replace_if("a", b"another", listed.etag, {})
    assert read_listed(store, listed, 9) == (b"another", now.etag)
    with pytest.raises(FileNotFoundError):
        read_listed(store, listed._replace(key="b"), 9)


def test_a_folder_that_cannot_be_read_is_not_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    place = LocalPlace(tmp_path)
    place.create("a/b", b"", {})
    (tmp_path / "itself").symlink_to("itself")
    assert [one.key for one in place.list()] == ["a/b"]
    assert [*place.list("none")] == []
    assert [place.head(key) for key in ("none", "a/b/c", "a", "itself", "k" * 300, "\0")] == [
        None
    ] * 6

    def fail(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path))

    for broken in (os, "scandir"), (Path, "stat"):
        with monkeypatch.context() as patch:
            patch.setattr(*broken, fail)
            with pytest.raises(OutputError, match="Permission denied"):
                next(place.list())


def test_one_of_many_wins(place: FilePlace):
    together = threading.Barrier(WRITERS)

    def write(writer: int) -> list[bool]:
        together.wait()
        return [place.create(f"k{n}", b"%d" % writer, {}).ours for n in range(6)]

    with ThreadPoolExecutor(WRITERS) as threads:
        won = list(threads.map(write, range(WRITERS)))
    for n in range(6):
        winners = [writer for writer in range(WRITERS) if won[writer][n]]
        assert len(winners) == 1
        assert place.read_range(f"k{n}", 0, 9) == b"%d" % winners[0]


def test_only_what_is_known_is_replaced(place: FilePlace):
    first = place.create("k", b"one", {})
    second = place.replace_if("k", b"second", first.etag, {})
    assert second.ours
    assert place.read_range("k", 0, 9) == b"second"
    late = place.replace_if("k", b"late", first.etag, {})
    assert (late.ours, late.etag) == (False, second.etag)
    assert not place.replace_if("none", b"x", first.etag, {}).ours
    assert place.head("none") is None
    with pytest.raises(AdapterRefused, match="replaced") as refused:
        place.read_range("k", 0, 3, first.etag)
    assert refused.value.code == Refusal.CHANGED


def test_files_are_staged_as_they_were_listed(place: FilePlace, tmp_path: Path):
    content = os.urandom(PIECE + 1000)
    place.create("a/large.bin", content, {})
    place.create("a/b/small.bin", b"x", {})
    listed = list(place.list("a"))
    stage(place, listed, tmp_path / "staged")
    assert (tmp_path / "staged/a/large.bin").read_bytes() == content
    assert (tmp_path / "staged/a/b/small.bin").read_bytes() == b"x"
    small = next(one for one in listed if one.size == 1)
    assert place.replace_if(small.key, b"y", small.etag, {}).ours
    for gone in (small, small._replace(key="a/none.bin")):
        with pytest.raises(AdapterRefused) as refused:
            stage(place, [gone], tmp_path / "again")
        assert refused.value.code == Refusal.CHANGED
    for odd in ("../x", "/x", "a\0b", "n" * 256):
        with pytest.raises(AdapterRefused, match="no file below a folder"):
            stage(place, [small._replace(key=odd)], tmp_path / "again")
    assert not list((tmp_path / "again").rglob("*.*"))


def test_a_place_that_keeps_its_word_is_trusted(place: FilePlace):
    require_conditions(place)
    require_conditions(place)  # what the first check has left is no hindrance


def test_a_store_that_ignores_conditions_is_refused(
    store: FilePlace, monkeypatch: pytest.MonkeyPatch
):
    from prolora_jax.io.places import object_store

    put = object_store.obstore.put
    monkeypatch.setattr(object_store.obstore, "put", lambda *given, mode, **how: put(*given, **how))
    with pytest.raises(UsageError, match="let two writers make one file"):
        require_conditions(store)


def test_a_folder_that_ignores_conditions_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(os, "link", os.replace)
    with pytest.raises(UsageError, match="let two writers make one file"):
        require_conditions(LocalPlace(tmp_path))


@pytest.mark.parametrize("fault", ["lose", "cut", 503, 500, 429, 409, 412])
def test_an_unclear_answer_is_cleared_up(faulty: Faulty, fault):
    """Whatever was answered: what was made is ours, once, and what was not made is made."""
    store, proxy, writes = faulty
    proxy.first(fault, writes, "made")
    written = store.create("made", b"mine", {})
    assert written.ours
    assert store.read_range("made", 0, 9) == b"mine"
    proxy.first(fault, writes, "made")
    assert store.replace_if("made", b"mine, too", written.etag, {}).ours
    assert store.read_range("made", 0, 9) == b"mine, too"
    # And what is another's is never called ours.
    store.create("other", b"another's", {})
    proxy.first(fault, writes, "other")
    assert not store.create("other", b"mine", {}).ours
    assert store.read_range("other", 0, 9) == b"another's"


@pytest.mark.parametrize("fault", [503, 429, "lose"])
def test_reading_goes_on_after_a_storm(faulty: Faulty, fault):
    store, proxy, _ = faulty
    store.create("a/k", b"there", {})
    how = "HEAD" if faulty.writes == "PUT" else "GET"
    proxy.first(fault, how, "k", times=2)
    assert store.head("a/k") is not None
    proxy.first(fault, "GET", "prefix=", times=2)
    assert [one.key for one in store.list("a")] == ["a/k"]
    proxy.first(fault, "GET", "k", times=2)
    assert store.read_range("a/k", 0, 9) == b"there"


def test_a_store_that_never_answers_ends_with_a_message(
    proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
):
    use(proxy.endpoint, monkeypatch)
    slow = Pace(patience=0.3)
    place = open_place(f"s3://{BUCKET}/never", slow)
    proxy.choose = lambda method, path: 503
    before = slow.rate
    with pytest.raises(OutputError, match=r"no answer \(status 503\).*the same command goes on"):
        place.create("k", b"x", {})
    assert slow.rate < before


def test_a_listing_of_many_pages_is_whole(faulty: Faulty, monkeypatch: pytest.MonkeyPatch):
    pages = {"PUT": 1100, "POST": 250}
    if faulty.writes == "POST":  # the emulator is slow; what a page holds is ours to say
        monkeypatch.setattr("prolora_jax.io.places.google_store._PAGE", 100)
    names = [f"many/{n:04}" for n in range(pages[faulty.writes])]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda name: faulty.place.create(name, b"", {}), names))
    assert [one.key for one in faulty.place.list("many")] == names


def test_no_secret_is_shown(proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch):
    url = "s3://AKIDMADE:secret-made@bucket/a?X-Amz-Signature=signature-made#fragment-made"
    assert without_secrets(url) == "s3://bucket/a"
    with pytest.raises(UsageError) as refused:
        open_place(url)
    assert "made" not in str(refused.value).lower()
    use(proxy.endpoint, monkeypatch)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret-made")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "token-made")
    place = open_place(f"s3://{BUCKET}/x", Pace(patience=1))
    for act in (
        lambda: place.head("k"),
        lambda: place.create("k", b"", {}),
        lambda: [*place.list()],
    ):
        with pytest.raises(OutputError, match="store refused") as failed:
            act()
        assert failed.value.exit_code == 2  # it has not answered otherwise so far
        shown = "".join(map(str, chained(failed.value)))
        assert not {w for w in ("wrong-secret", "token-made", KEY, "Signature") if w in shown}


def test_a_name_that_no_store_takes_is_refused(faulty: Faulty):
    store = faulty.place
    for act in (lambda: store.create("line\nbreak", b"", {}), lambda: store.head("bell\a")):
        with pytest.raises(AdapterRefused, match="control character") as refused:
            act()
        assert refused.value.code is Refusal.BAD_NAME
    # S3's limit, and before that this server's own.
    with pytest.raises(AdapterRefused, match=r"a key of 1\d{3} bytes") as refused:
        store.create("k" * 1024, b"x", {})
    assert refused.value.code is Refusal.BAD_NAME
    if faulty.writes == "POST":
        return
    with pytest.raises(OutputError, match="KeyTooLongError") as told:
        store.create("k" * 900, b"x", {})
    assert told.value.code is Refusal.BAD_NAME


def test_a_server_with_a_lower_limit_is_asked_before_anything_is_written(
    store: FilePlace, proxy: FaultProxy
):
    """Of a key that is longer than all it has taken; an output would else be there alone."""
    proxy.choose = lambda method, path: "long" if "k" * 200 in path else None
    fits, longer = "/".join(["k" * 99] * 4), "/".join(["k" * 200] * 2)
    for key in ("short", fits, fits, fits[:-9]):
        store.require_name(key)
    with pytest.raises(OutputError, match="KeyTooLongError") as refused:
        store.require_name(longer)
    assert refused.value.code is Refusal.BAD_NAME
    assert [path.endswith(fits) for method, path in proxy.asked if method == "PUT"] == [True, False]
    assert list(store.list()) == []


def test_a_bucket_that_is_not_there_is_named(proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch):
    use(proxy.endpoint, monkeypatch)
    proxy.choose = lambda method, path: 404  # SeaweedFS itself makes a bucket that is not there
    place = open_place("s3://no-such-bucket/x", Pace(patience=1))
    with pytest.raises(OutputError, match=r"s3://no-such-bucket/x/k: the store refused"):
        place.create("k", b"x", {})


def test_a_base_model_is_fetched_once(
    store: FilePlace, proxy: FaultProxy, request: pytest.FixtureRequest, tmp_path: Path
):
    """By many processes of a host at once; a fetch that was ended before is begun again."""
    url = f"s3://{BUCKET}/{request.node.name}"
    store.create("base/unet/weights.bin", b"w" * 1000, {})
    store.create("base/unet/config.json", b"{}", {})
    store.create("single.bin", b"s", {})

    def gone(method: str, path: str) -> bool:
        return method == "GET" and path.endswith("weights.bin")

    proxy.choose = lambda method, path: 404 if gone(method, path) else None
    with pytest.raises(AdapterRefused, match="is gone"):
        stage_once(f"{url}/base", tmp_path)
    proxy.choose = lambda method, path: None
    proxy.asked.clear()
    with ThreadPoolExecutor(4) as threads:
        (folder,) = {*threads.map(lambda _: stage_once(f"{url}/base", tmp_path), range(4))}
    assert folder.name == "base"
    assert (folder / "unet" / "weights.bin").read_bytes() == b"w" * 1000
    assert sum(gone(*asked) for asked in proxy.asked) == 1
    assert stage_once(f"{url}/single.bin", tmp_path).read_bytes() == b"s"
    with pytest.raises(UsageError, match="found nothing there"):
        stage_once(f"{url}/none", tmp_path)
    first = store.head("single.bin")
    assert first is not None
    store.replace_if("single.bin", b"changed", first.etag, {})
    signs = []
    # Who waits for another's fetch is alive, too.
    with ThreadPoolExecutor(1) as threads, staging._held(folder.parent, None):
        waiting = threads.submit(stage_once, f"{url}/base", tmp_path, lambda: signs.append(0))
        while not signs:
            assert not waiting.done()
    signs.clear()
    assert stage_once(f"{url}/single.bin", tmp_path, lambda: signs.append(0)).is_file()
    assert signs
    assert stage_once(f"{url}/single.bin", tmp_path).read_bytes() == b"changed"


class Counting(LocalPlace):
    """How often it was read."""

    reads = 0

    def read_range(self, key: str, start: int, length: int, etag: str | None = None) -> bytes:
        self.reads += 1
        return super().read_range(key, start, length, etag)


def test_a_slow_disk_does_not_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(staging, "PIECE", 1)
    place, ahead = Counting(tmp_path / "place"), list[int]()
    place.create("k", bytes(range(100)), {})

    def slow() -> None:
        time.sleep(0.002)
        ahead.append(place.reads - len(ahead))

    stage(place, place.list(), tmp_path / "staged", slow)
    assert (tmp_path / "staged" / "k").read_bytes() == bytes(range(100))
    assert len(ahead) == 100
    assert max(ahead) <= staging._AT_ONCE
