"""Listings as stores give them where people have used a console: empty objects for folders."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from urllib.parse import parse_qs, urlsplit
from xml.sax.saxutils import escape

import pytest
from fake_gcs import EMULATOR, proxied_gcs
from seaweed import use

from prolora_jax.io.places.opening import open_place
from prolora_jax.io.places.place import Listed

KEPT = {"in/": 0, "in/a/": 0, "in/a/b/": 0, "in/a/b/c": 5, "in/a-b": 1, "in/empty": 0, "in/z/": 0}
"""Keys and sizes; a real server (SeaweedFS) makes folders of them, and lists none."""

MANY = {f"many/{n}": 0 for n in range(1, 10)} | {"many/5/": 0, "many/5/b": 2, "many/0/": 7}
"""Empty ones, more than a page has; and one of some bytes with a slash at its end."""


class Handler(BaseHTTPRequestHandler):
    def log_message(self, format: str, *_: object) -> None: ...

    def do_GET(self) -> None:
        asked = parse_qs(urlsplit(self.path).query)
        behind = asked.get("start-after", [""])[0]
        one = (
            "<Contents><Key>{}</Key><Size>{}</Size><ETag>e</ETag>"
            "<LastModified>2026-11-30T00:00:00.000Z</LastModified></Contents>"
        )
        within = asked["prefix"][0]
        keys = [key for key in sorted(KEPT | MANY) if key > behind and key.startswith(within)]
        told = "".join(one.format(escape(key), (KEPT | MANY)[key]) for key in keys)
        text = f"<ListBucketResult><IsTruncated>false</IsTruncated>{told}</ListBucketResult>"
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())


@pytest.fixture
def endpoint() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("page", [3, 4, 5, 1000])
def test_folders_of_consoles_are_no_files_on_s3(
    endpoint: str, page: int, monkeypatch: pytest.MonkeyPatch
):
    """Wherever a page ends. Of one that is empty nothing tells that it is no empty file."""
    pytest.importorskip("obstore", reason="obstore is not installed (the extra `fleet`)")
    use(endpoint, monkeypatch)
    monkeypatch.setattr("prolora_jax.io.places.object_store._PAGE", page)
    found = {key.removeprefix("in/"): size for key, size in KEPT.items() if not key.endswith("/")}
    found["z"] = 0
    files = [Listed(key, size, "e") for key, size in sorted(found.items())]
    assert sorted(open_place("s3://bucket/in").list()) == files
    assert list(open_place("s3://bucket/none").list()) == []


@pytest.mark.parametrize("page", [1, 2, 3, 5])
def test_more_empty_objects_than_a_page_has(
    endpoint: str, page: int, monkeypatch: pytest.MonkeyPatch
):
    """All of them, each once: no page ends where it begins, and none before a folder's first."""
    pytest.importorskip("obstore", reason="obstore is not installed (the extra `fleet`)")
    use(endpoint, monkeypatch)
    monkeypatch.setattr("prolora_jax.io.places.object_store._PAGE", page)
    found = [one.key for one in islice(open_place("s3://bucket/many").list(), 50)]
    assert sorted(found) == ["0", *"12345", "5/b", *"6789"]


def test_a_folder_of_googles_console_is_a_place(monkeypatch: pytest.MonkeyPatch):
    """One that was made there has an object of its own name, with a slash behind it."""
    with proxied_gcs("bucket") as proxy:
        monkeypatch.setenv(EMULATOR, proxy.endpoint)
        bucket = open_place("gs://bucket")
        for key in ("in/", "in/k"):
            bucket.create(key, b"", {})
        assert [one.key for one in open_place("gs://bucket/in").list()] == ["k"]
