"""What only Google's store needs of a test: credentials, buckets, odd keys, and what a body is."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_gcs import EMULATOR, proxied_gcs
from fault_proxy import FaultProxy, chained

from prolora_jax.errors import OutputError, Refusal, UsageError
from prolora_jax.io.places.opening import open_place
from prolora_jax.io.places.pacing import Pace
from prolora_jax.io.places.place import FilePlace

BUCKET = "bucket"


@pytest.fixture(scope="module")
def google_proxy() -> Iterator[FaultProxy]:
    with proxied_gcs(BUCKET) as found:
        yield found


@pytest.fixture
def google(google_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> FilePlace:
    google_proxy.choose = lambda method, path: None
    monkeypatch.setenv(EMULATOR, google_proxy.endpoint.removeprefix("http://"))
    return open_place(f"gs://{BUCKET}/a", Pace(patience=5))


def test_a_bucket_of_googles_that_is_not_there_is_named(google: FilePlace):
    place = open_place("gs://no-such-bucket/x", Pace(patience=1))
    for act in (lambda: place.create("k", b"x", {}), lambda: [*place.list()]):
        with pytest.raises(OutputError, match=r"gs://no-such-bucket/x/k?: the store refused"):
            act()
    assert place.head("k") is None  # a store says the same of a missing object


def test_no_token_of_googles_is_shown(
    google: FilePlace, google_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
):
    """Without credentials it is said what to do; with wrong ones only that the store refuses."""
    import google.auth as google_auth
    from google.auth.exceptions import DefaultCredentialsError
    from google.oauth2.credentials import Credentials

    from prolora_jax.io.places import google_store

    def none(scopes: list[str]):
        raise DefaultCredentialsError("made")

    monkeypatch.delenv(EMULATOR)
    monkeypatch.setattr(google_store, "_SERVER", google_proxy.endpoint)
    monkeypatch.setattr(google_auth, "default", none)
    with pytest.raises(OutputError, match="no credentials for Google's store"):
        open_place(f"gs://{BUCKET}/x").head("k")
    monkeypatch.setattr(google_auth, "default", lambda scopes: (Credentials("token-made"), None))
    place = open_place(f"gs://{BUCKET}/x", Pace(patience=1))
    google_proxy.choose = lambda method, path: 403
    for act in (
        lambda: place.head("k"),
        lambda: place.create("k", b"", {}),
        lambda: [*place.list()],
    ):
        with pytest.raises(OutputError, match="store refused") as failed:
            act()
        assert "token-made" not in "".join(map(str, chained(failed.value)))


def test_what_google_refuses_of_one_object_is_that_objects(
    google: FilePlace, monkeypatch: pytest.MonkeyPatch
):
    """A name with odd characters, say: its answer, as its documentation has it."""
    from prolora_jax.io.places.google_store import GooglePlace

    told = json.dumps({"error": {"errors": [{"reason": "invalid"}]}}).encode()
    monkeypatch.setattr(GooglePlace, "_ask", lambda *_, **__: (400, told, {}))
    with pytest.raises(OutputError, match="status 400, invalid") as refused:
        google.create("odd", b"x", {})
    assert refused.value.code is Refusal.BAD_NAME


@pytest.mark.parametrize(("url", "library"), [("s3://b/x", "fleet"), ("gs://b/x", "gcs")])
def test_a_missing_library_is_named(url: str, library: str, monkeypatch: pytest.MonkeyPatch):
    for client in ("object_store", "google_store"):
        monkeypatch.setitem(sys.modules, f"prolora_jax.io.places.{client}", None)
    with pytest.raises(UsageError, match=rf"pip install 'prolora_jax\[{library}\]'") as told:
        open_place(url)
    assert told.value.code is Refusal.MISSING_LIBRARY


def test_a_bucket_is_a_place_and_folders_that_consoles_make_are_no_files(google: FilePlace):
    place = open_place(f"gs://{BUCKET}", Pace(patience=5))
    place.create("whole/", b"", {})
    place.create("whole/k", b"x", {})
    assert [one.key for one in place.list("whole")] == ["whole/k"]
    place.create("odd//k", b"x", {})
    with pytest.raises(UsageError, match="an empty part") as told:
        list(place.list("odd"))
    assert told.value.code is Refusal.BAD_NAME


def test_a_body_can_be_sent_twice(tmp_path: Path):
    """Clients do, when credentials have run out: the second is as whole as the first."""
    from prolora_jax.io.places.google_store import _Upload

    (tmp_path / "f").write_bytes(b"--made--\r\n" * 300_000)
    body = _Upload(tmp_path / "f", {"name": "é"})
    sent = [b"".join(body) for _ in range(2)]
    assert sent[0] == sent[1]
    assert len(sent[0]) == len(body)
    about, content = sent[0].split(b"\r\n\r\n", 2)[1:]
    assert json.loads(about.splitlines()[0]) == {"metadata": {"name": "é"}}
    assert content.startswith((tmp_path / "f").read_bytes())
