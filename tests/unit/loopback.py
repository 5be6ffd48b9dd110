"""A file server on the loopback interface that can misbehave."""

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Loopback:
    """How the one file is served.

    drop_after  bytes after which each response breaks off.
    pause_s     between pieces of 16 KiB.
    """

    content: bytes
    url: str = ""
    ranges: bool = True
    drop_after: int | None = None
    pause_s: float = 0.0
    status: int = 200
    lengths: bool = True
    range_offset: int = 0
    requests: list[str | None] = field(default_factory=list)


@contextlib.contextmanager
def serve(content: bytes, **settings: object) -> Iterator[Loopback]:
    """A running server; `requests` holds the Range header of every request."""
    file = Loopback(content, **settings)  # type: ignore[arg-type]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            _answer(self, file)

        def log_message(self, *_: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.block_on_close = False
    file.url = f"http://127.0.0.1:{server.server_address[1]}/file.demo"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield file
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _answer(request: BaseHTTPRequestHandler, file: Loopback) -> None:
    asked = request.headers["Range"]
    file.requests.append(asked)
    if file.status != 200:
        request.send_error(file.status)
        return
    start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and file.ranges else 0
    if start and start >= len(file.content):
        request.send_error(416)
        return
    body = file.content[start:]
    request.send_response(206 if start else 200)
    if file.lengths:
        request.send_header("Content-Length", str(len(body)))
    if start:
        first, total = start + file.range_offset, len(file.content)
        request.send_header("Content-Range", f"bytes {first}-{total - 1}/{total}")
    request.end_headers()
    with contextlib.suppress(OSError):  # the client may be gone
        body = body[: file.drop_after]
        for at in range(0, len(body), 1 << 14):
            request.wfile.write(body[at : at + (1 << 14)])
            request.wfile.flush()
            time.sleep(file.pause_s)
