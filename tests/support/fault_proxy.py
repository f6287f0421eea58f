"""A proxy before an S3 server that loses answers, cuts bodies and answers what it was told to."""

import http.client
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from urllib.parse import urlsplit

Fault = int | Literal["lose", "cut", "own", "careless", "long"]
"""A status to answer without asking the server, or: `lose` the answer of what was done; `cut` the
request's body, so that nothing is done; `own`: what was done is told as refused for its condition;
`careless`: what was refused for its condition is told as done; `long`: its key is too long."""

Chooser = Callable[[str, str], Fault | None]
"""By method and path: what goes wrong with a request; None for nothing."""


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        # Clients that are killed between two requests are no news.
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)  # pyright: ignore[reportArgumentType]


class FaultProxy:
    """A proxy at a port of its own.

    Args:
        endpoint: of the server.
    """

    def __init__(self, endpoint: str):
        self.choose: Chooser = lambda method, path: None
        self.asked: list[tuple[str, str]] = []
        proxy, server = self, urlsplit(endpoint).netloc

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *_: object) -> None: ...

            def _any(self) -> None:
                # A client or a server that is killed is what it looks like: no answer.
                try:
                    self._asked()
                except (OSError, http.client.HTTPException):
                    self.close_connection = True

            def _asked(self) -> None:
                proxy.asked.append((self.command, self.path))
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                fault = proxy.choose(self.command, self.path)
                if isinstance(fault, int):
                    self._answer(fault, b"<Error><Code>Made</Code></Error>", {})
                    return
                if fault == "long":
                    self._answer(400, b"<Error><Code>KeyTooLongError</Code></Error>", {})
                    return
                if fault == "cut":
                    self.close_connection = True
                    return
                headers = dict(self.headers.items())
                upstream = http.client.HTTPConnection(server, timeout=30)
                upstream.request(self.command, self.path, body, headers)
                told = upstream.getresponse()
                content = told.read()
                if fault == "lose":
                    self.close_connection = True
                elif fault == "own" and told.status < 300:
                    self._answer(412, b"<Error><Code>PreconditionFailed</Code></Error>", {})
                elif fault == "careless" and told.status == 412:
                    self._answer(200, b"", {"ETag": '"made"'})
                else:
                    self._answer(told.status, content, dict(told.getheaders()))
                upstream.close()

            def _answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
                self.send_response(status)
                length = headers.get("Content-Length", str(len(content)))
                for name, value in headers.items():
                    if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                        self.send_header(name, value)
                self.send_header("Content-Length", length)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content)

            do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _any

        self._server = _Server(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def first(self, fault: Fault, method: str, part: str, times: int = 1) -> None:
        """Have the first requests of a kind fail, and none after them.

        Args:
            fault: what goes wrong.
            method: of the requests.
            part: of their paths.
            times: how many fail.
        """
        left = [times]

        def choose(asked: str, path: str) -> Fault | None:
            if asked != method or part not in path or left[0] == 0:
                return None
            left[0] -= 1
            return fault

        self.choose = choose

    @contextmanager
    def running(self) -> Iterator["FaultProxy"]:
        """Answer requests while the block runs."""
        self._thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()


def chained(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what a traceback would show behind it."""
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
