"""What a URL means, and what is said of one that means nothing, or of missing credentials."""

import socket

import pytest
from fake_gcs import EMULATOR
from seaweed import use

from prolora_jax.errors import OutputError, Refusal, UsageError
from prolora_jax.io.places import pacing
from prolora_jax.io.places.opening import open_place, without_secrets


@pytest.mark.parametrize("url", ["az://b/x", "https://host/x", "s3:///x", "gs:///x"])
def test_other_urls_are_refused(url: str):
    with pytest.raises(UsageError, match="another kind"):
        open_place(url)


@pytest.mark.parametrize("path", ["a//b", "../a", "a/./b", ".."])
def test_a_prefix_that_is_no_path_is_refused(path: str):
    """S3's client would not take it, whatever is asked."""
    for kind in ("s3", "gs"):
        with pytest.raises(UsageError, match=r"two slashes, \. or \.\."):
            open_place(f"{kind}://bucket/{path}/")


def test_a_place_has_one_name():
    """Places are compared by it: outputs beside their inputs, and one job's with another's."""
    pytest.importorskip("obstore", reason="obstore is not installed (the extra `fleet`)")
    assert {open_place(f"s3://b{slash}in/").shown for slash in ("/", "//")} == {"s3://b/in"}


def test_what_is_no_url_is_refused_without_being_shown():
    for act in (open_place, without_secrets):
        with pytest.raises(UsageError, match="cannot be taken apart") as refused:
            act("s3://key:secret-made@[bucket/prefix")
        assert "made" not in str(refused.value)
        assert refused.value.code is Refusal.BAD_OPTION


def test_missing_credentials_are_said(monkeypatch: pytest.MonkeyPatch):
    """Where no server of the machine gives any: not that the store itself is not there."""
    pytest.importorskip("obstore", reason="obstore is not installed (the extra `fleet`)")
    use("http://127.0.0.1:1", monkeypatch)
    for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY"):
        monkeypatch.delenv(f"AWS_{name}")
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setattr("prolora_jax.io.places.pacing.FIRST_PATIENCE", 0.2)
    with pytest.raises(OutputError, match=r"no credentials: AWS_ACCESS_KEY_ID") as failed:
        open_place("s3://bucket/x").head("k")
    assert failed.value.exit_code == 2


@pytest.mark.parametrize("kind", ["s3", "gs"])
def test_a_server_that_never_says_a_word_is_no_store(kind: str, monkeypatch: pytest.MonkeyPatch):
    """It takes connections, and what it is asked."""
    if kind == "s3":
        pytest.importorskip("obstore", reason="obstore is not installed (the extra `fleet`)")
    else:
        pytest.importorskip("google.auth", reason="google-auth is not installed (the extra `gcs`)")
    monkeypatch.setattr(pacing, "FIRST_PATIENCE", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        endpoint = f"http://127.0.0.1:{server.getsockname()[1]}"
        use(endpoint, monkeypatch)
        monkeypatch.setenv(EMULATOR, endpoint)
        with pytest.raises(pacing.NoStore, match="found no store that answers"):
            open_place(f"{kind}://bucket/prefix").head("key")
