"""A store that hosts share: each copies what it needs, the loser of a create takes the winner's.

Over a folder, a real S3 server (SeaweedFS), which stands behind a proxy that loses answers, and an
emulator of Google's store.
"""

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from fake_gcs import EMULATOR, proxied_gcs
from fault_proxy import Fault, FaultProxy
from seaweed import BUCKET, SECRET, proxied, use

from prolora_jax.errors import OutputError, Refusal, UsageError
from prolora_jax.io.places.opening import open_place
from prolora_jax.io.places.place import FilePlace
from prolora_jax.io.stores.basis_store import FolderStore
from prolora_jax.io.stores.shared_files import alone
from prolora_jax.io.stores.store_address import store_address
from prolora_jax.io.stores.weight_tables import TableKey
from prolora_jax.method.basis import Basis, compute_basis
from prolora_jax.method.basis import BasisRule as Rule
from prolora_jax.method.operators import ModuleOperators, Span, prepare_side
from prolora_jax.method.prepared import Comparison, ComparisonKey, OperatorKey

A, B = "a" * 32, "b" * 32
KEY = OperatorKey(A, B, "prolora", 4, 4, None)
COMPARED = ComparisonKey(A, B, "energy=0.95", "max")
TABLE = TableKey("cosines", (A,), (B,))
WRITERS = 4


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultProxy]:
    with proxied(tmp_path_factory.mktemp("seaweed")) as found:
        yield found


@pytest.fixture(scope="module")
def google_proxy() -> Iterator[FaultProxy]:
    with proxied_gcs(BUCKET) as found:
        yield found


@pytest.fixture(params=["folder", "s3", "gs"])
def shared(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> str | Path:
    if request.param == "folder":
        return tmp_path / "shared"
    # Parameters of one test share a name.
    name = f"{request.node.originalname}-{tmp_path.name}"
    if request.param == "gs":
        monkeypatch.setenv(EMULATOR, request.getfixturevalue("google_proxy").endpoint)
        return f"gs://{BUCKET}/{name}"
    proxy = request.getfixturevalue("proxy")
    proxy.choose = lambda method, path: None
    use(proxy.endpoint, monkeypatch)
    return f"s3://{BUCKET}/{name}"


@pytest.fixture
def host(shared: str | Path, tmp_path: Path) -> Callable[..., FolderStore]:
    """The store as hosts see it, each with a folder of its own."""
    return lambda name, **how: FolderStore(tmp_path / name, shared=shared, **how)


def basis_of(seed: int, columns: int = 4) -> Basis:
    """Of one weight, with the signs of a device of one's own."""
    weight = np.random.default_rng(0).normal(size=(24, 16)) * 0.8 ** np.arange(16)
    u, s, v = compute_basis(weight.astype(np.float32), Rule("rank", columns))
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=16).astype(np.float32)
    return Basis(u * signs[: u.shape[1]], s, v * signs)


def operators_of(seed: int) -> ModuleOperators:
    basis = basis_of(seed)
    spans = Span(basis.u[:, :4], None), Span(basis.v[:, :4], basis.v[:, 4:])
    left, right = (prepare_side("prolora", span, span) for span in spans)
    return ModuleOperators(left, right)


def comparison_of(seed: int) -> Comparison:
    return Comparison(0.5, 0.25 + seed, None, None, 4, 4, 0.0)


def fill(store: FolderStore, seed: int) -> None:
    store.put(A, basis_of(seed))
    store.operators.put(KEY, operators_of(seed))
    store.operators.put_comparison(COMPARED, comparison_of(seed))
    store.tables.put(TABLE, np.array([[0.5 + seed]]))


def files_of(store: FolderStore) -> dict[str, bytes]:
    """What is kept, by its name."""
    found = [p for p in store.folder.rglob("*") if p.suffix in (".safetensors", ".json")]
    return {p.relative_to(store.folder).as_posix(): p.read_bytes() for p in found}


def contents(place: FilePlace) -> dict[str, bytes]:
    return {
        one.key: place.read_range(one.key, 0, one.size)
        for one in place.list()
        if not one.key.startswith(".")
    }


def test_what_one_host_has_made_the_others_read(
    shared: str | Path, host: Callable[..., FolderStore]
):
    one, two = host("one"), host("two")
    for look in (one, two):
        assert look.get(A) is None
        assert not look.has(A)
        assert not look.operators.has(KEY)
    fill(one, 1)
    assert len(files_of(one)) == 4
    assert files_of(one) == contents(open_place(shared))
    assert two.has(A)
    assert two.operators.has(KEY)
    assert files_of(two) == {}  # asked, and not fetched
    assert two.extent(A) is not None
    assert two.operators.get(KEY) is not None
    assert two.operators.comparison(COMPARED) == comparison_of(1)
    np.testing.assert_array_equal(two.tables.get(TABLE), [[1.5]])
    assert files_of(two) == files_of(one)


def test_of_many_hosts_one_wins_and_all_use_its_files(
    shared: str | Path, host: Callable[..., FolderStore]
):
    stores, begin = [host(str(i)) for i in range(WRITERS)], threading.Barrier(WRITERS)

    def write(seed: int) -> dict[str, bytes]:
        begin.wait()
        fill(stores[seed], seed)
        return files_of(stores[seed])

    with ThreadPoolExecutor(WRITERS) as pool:
        found = list(pool.map(write, range(WRITERS)))
    assert len(found[0]) == 4
    assert all(files == found[0] for files in found)
    assert found[0] == contents(open_place(shared))
    assert not list(stores[0].folder.rglob("*.prolora-tmp"))


def test_a_wider_basis_takes_the_place_of_a_narrow_one(
    shared: str | Path, host: Callable[..., FolderStore]
):
    one, two = host("one"), host("two")
    one.put(A, basis_of(1, columns=4))
    two.put(A, basis_of(2, columns=8))
    three = host("three")
    for store in (two, three):
        basis = store.get(A)
        assert basis is not None
        np.testing.assert_array_equal(basis.u, basis_of(2, columns=8).u)
    one.put(A, basis_of(1, columns=6))  # too late: the other's serves
    assert files_of(one) == files_of(two) == contents(open_place(shared))


@pytest.mark.parametrize("spoiled", ["a byte", "cut"])
def test_what_is_damaged_is_never_believed(
    shared: str | Path, host: Callable[..., FolderStore], spoiled: str
):
    fill(host("one"), 1)
    place, two = open_place(shared), host("two")
    for key, content in contents(place).items():
        bad = content[:-9] if spoiled == "cut" else content[:-9] + b"!" + content[-8:]
        head = place.head(key)
        assert head is not None
        assert place.replace_if(key, bad, head.etag, {}).ours
    assert two.get(A) is None
    assert two.operators.get(KEY) is None
    assert two.operators.comparison(COMPARED) is None
    assert two.tables.get(TABLE) is None
    fill(two, 2)
    assert files_of(two) == contents(place)
    # A copy that is damaged is fetched again, and nothing is computed.
    good = files_of(two)
    for name, content in good.items():
        (two.folder / name).write_bytes(content[: len(content) // 2])
    again = host("two")
    assert again.get(A) is not None
    assert again.operators.get(KEY) is not None
    assert again.operators.comparison(COMPARED) == comparison_of(2)
    assert again.tables.get(TABLE) is not None
    assert files_of(again) == good


def test_what_is_not_to_stay_leaves_nothing(shared: str | Path, host: Callable[..., FolderStore]):
    fill(host("one"), 1)
    before = contents(open_place(shared))
    passing = host("two", keeps=False)
    assert passing.get(A) is not None
    assert passing.operators.get(KEY) is not None
    passing.put(B, basis_of(3))
    assert passing.get(B) is not None
    passing.close()
    assert {Path(name).suffix for name in files_of(passing)} <= {".json"}
    assert contents(open_place(shared)) == before


@pytest.fixture
def forbid(shared: str | Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch):
    """Have the place refuse writes, or everything."""

    def forbidden(reads: bool = False) -> None:
        def no(*_: object) -> None:
            raise PermissionError(errno.EACCES, "Permission denied")

        if isinstance(shared, Path):
            monkeypatch.setattr(os, "link", no)
            if reads:
                monkeypatch.setattr(Path, "stat", no)
            return
        google = shared.startswith("gs://")
        proxy = request.getfixturevalue("google_proxy" if google else "proxy")
        request.addfinalizer(lambda: setattr(proxy, "choose", lambda method, path: None))
        proxy.choose = lambda how, path: 403 if reads or how in ("PUT", "POST") else None

    return forbidden


def test_one_that_may_not_be_written_to_is_read(
    shared: str | Path,
    host: Callable[..., FolderStore],
    forbid: Callable[..., None],
    caplog: pytest.LogCaptureFixture,
):
    fill(host("one"), 1)
    before = contents(open_place(shared))
    forbid()
    two = host("two")
    assert two.get(A) is not None
    two.operators.put(KEY, operators_of(2))
    two.put(B, basis_of(3))
    assert two.get(B) is not None
    assert contents(open_place(shared)) == before
    assert [told for told in caplog.messages if "nothing new is kept there" in told] == [
        f"{open_place(shared).shown}: may not be written to from here; it is read, and nothing new "
        f"is kept there: what is computed stays in {two.folder}"
    ]
    forbid(reads=True)
    with pytest.raises(OutputError, match=r"the store refused|Permission denied"):
        host("three").begin()


def test_lost_answers_change_nothing(
    proxy: FaultProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    use(proxy.endpoint, monkeypatch)
    url, asked = f"s3://{BUCKET}/lost", []

    def choose(method: str, path: str) -> Fault | None:
        asked.append(method)
        return "lose" if method == "PUT" and asked.count("PUT") % 2 else None

    proxy.choose = choose
    one, two = (FolderStore(tmp_path / name, shared=url) for name in ("one", "two"))
    fill(one, 1)
    fill(two, 2)
    proxy.choose = lambda method, path: None
    assert files_of(one) == files_of(two) == contents(open_place(url))


def test_who_waits_for_the_place_gives_signs_of_life(
    proxy: FaultProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """For its answers, and for another process of the host that is fetching."""
    use(proxy.endpoint, monkeypatch)
    signs: list[float] = []
    url = f"s3://{BUCKET}/signs"
    store = FolderStore(tmp_path / "own", shared=url, waiting=lambda: signs.append(1))
    proxy.first(503, "HEAD", "signs", times=2)
    assert not store.has(A)
    assert len(signs) == 2
    signs.clear()
    other = FolderStore(tmp_path / "other", shared=url)
    fill(other, 1)
    name = next(name for name in files_of(other) if name.startswith(A))
    with ThreadPoolExecutor(1) as pool:
        with alone(tmp_path / "own", name, None):
            waited = pool.submit(store.get, A)
            begun = time.monotonic()
            while not signs and time.monotonic() - begun < 30:
                time.sleep(0.01)
            # Who wants another file waits for nobody.
            assert store.operators.get(KEY) is not None
            assert not waited.done()
        assert waited.result() is not None
    assert signs
    assert not list((tmp_path / "own").glob(".*"))


def test_a_place_that_lets_two_win_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    store = FolderStore(tmp_path / "one", shared=tmp_path / "shared")
    place = store._beyond.place  # pyright: ignore[reportAttributeAccessIssue]
    real = place.create

    def careless(key: str, content: bytes | Path, tags: dict[str, str]):
        (place.folder / key).unlink(missing_ok=True)
        return real(key, content, tags)

    monkeypatch.setattr(place, "create", careless)
    for act in (lambda: store.get(A), lambda: store.put(A, basis_of(1))):
        with pytest.raises(UsageError, match="let two writers make one file"):
            act()
    assert files_of(store) == {}


def test_addresses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("PROLORA_STORE", raising=False)
    assert store_address(None).folder.name == "bases"
    assert store_address(str(tmp_path)) == (tmp_path, None)
    monkeypatch.setenv("PROLORA_STORE", str(tmp_path / "own"))
    assert store_address(None) == (tmp_path / "own", None)
    found = store_address(f"file://{tmp_path}/with%20blank")
    assert found.shared == tmp_path / "with blank"
    assert found.folder.parent == tmp_path
    assert found.folder.name.startswith("own-of-")
    for url in (f"file://localhost{tmp_path}/with%20blank", f"FILE://{tmp_path}/with blank"):
        assert store_address(url) == found
    assert store_address(f"file://{tmp_path}/a%3Fb%23%25").shared == tmp_path / "a?b#%"
    for url, told in (
        (f"file://{tmp_path}/a?b", r"found \? in the URL; expected %3F"),
        (f"file://{tmp_path}/a#b", "found # in the URL; expected %23"),
        (f"file://key:{SECRET}@host{tmp_path}", "found the name of a host"),
        ("file:///a%00b", "no folder's name"),
        ("file:///", "no folder's name"),
    ):
        with pytest.raises(UsageError, match=told) as caught:
            store_address(url)
        assert caught.value.code is Refusal.BAD_OPTION
        assert SECRET not in str(caught.value)
    pytest.importorskip("obstore", reason="obstore is not installed (the extra `fleet`)")
    other = store_address("s3://bucket/store")
    assert other.shown == "s3://bucket/store"
    assert other.folder not in (found.folder, tmp_path / "own")
    monkeypatch.setenv("PROLORA_STORE", "s3://bucket/store")
    assert store_address(None).shared == "s3://bucket/store"
    with pytest.raises(UsageError, match="found a user, a password or a query") as caught:
        store_address(f"s3://key:{SECRET}@bucket/store")
    assert SECRET not in str(caught.value)
