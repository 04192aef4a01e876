"""A real server of S3 on loopback, which a test can watch, cut off, or make busy.

The server is moto's. A `hook` sees each request before the server does, and may answer in its
place, or end the process under test.
"""

import itertools
import socket
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

CUT = 599
"""As a status: no answer, but the end of the connection."""
_numbers = itertools.count()
Hook: TypeAlias = Callable[[int, str, str], int | tuple[int, str] | None]


@dataclass
class ObjectStore:
    """The server.

    Attributes:
      environment: the variables that lead to it, with credentials.
      requests: method and path of each request so far, in order.
      before, after: called with the number of a request (from 0), its method and its path, before
        the server does it and before its answer is sent. What they return, unless it is None, is
        the answer in the server's place: a status such as 503, and perhaps the code of S3's error;
        CUT cuts the connection.
    """

    environment: dict[str, str] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    before: "Hook" = lambda *_: None
    after: "Hook" = lambda *_: None

    def make_bucket(self, name: str = "") -> str:
        """Makes a bucket, by default one that no other server of this process has; returns its URL.

        Servers share their buckets in a process, because moto keeps them in its modules.
        """
        name = name or f"bucket-{next(_numbers)}"
        url = f"{self.environment['AWS_ENDPOINT_URL']}/{name}"
        urllib.request.urlopen(urllib.request.Request(url, method="PUT")).close()
        return f"s3://{name}"

    def reset(self) -> None:
        """Forgets the requests and the hooks."""
        self.requests.clear()
        self.before = self.after = lambda *_: None


@contextmanager
def object_store(host: str = "127.0.0.1") -> Iterator[ObjectStore]:
    """Runs the server on this address until the block ends."""
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    store = ObjectStore()
    app = DomainDispatcherApplication(create_backend_app)
    lock = threading.Lock()

    def watched(environ: dict[str, Any], start_response: Any) -> Any:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        with lock:
            number = len(store.requests)
            store.requests.append((method, path))
        instead = store.before(number, method, path)
        if instead is None:
            answer: list[Any] = []
            body = list(app(environ, lambda *head: answer.extend(head)))
            instead = store.after(number, method, path)
            if instead is None:
                start_response(*answer)
                return body
        else:
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        if instead == CUT:
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
        status, code = instead if isinstance(instead, tuple) else (instead, "")
        text = f"<Error><Code>{code}</Code></Error>".encode() if code and method != "HEAD" else b""
        start_response(f"{status} in place of the server", [("Content-Length", str(len(text)))])
        return [text]

    class Quiet(WSGIRequestHandler):
        protocol_version = "HTTP/1.1"

        def log(self, *_: object) -> None:
            pass

    server = make_server(host, 0, watched, threaded=True, request_handler=Quiet)
    store.environment = {
        "AWS_ENDPOINT_URL": f"http://{host}:{server.port}",
        "AWS_ACCESS_KEY_ID": "a-key",
        "AWS_SECRET_ACCESS_KEY": "a-secret",
        "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield store
    finally:
        server.shutdown()
