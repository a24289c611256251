"""A loopback proxy that passes requests on, and spoils some of them as it is told."""

from __future__ import annotations

import http.client
import threading
import time
from collections import Counter
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import pyarrow as pa


@dataclass
class Fault:
    """What to do to the next ``times`` requests whose path contains ``path``.

    ``kind`` is a status ("429", "503"), "hang" (answer after ``seconds``), "cut" (break off in the
    body), "trim" (leave the last batches and the end mark of an Arrow stream out, with a right
    Content-Length), "html" (a login page with status 200), "no resolution" and "other resolution"
    (the header), "redirect" (to a login page), or "echo" (a 400 that quotes the Authorization
    header).
    """

    kind: str
    path: str = "/query"
    times: int = 10**9
    seconds: float = 0.0
    headers: tuple[tuple[str, str], ...] = ()


class FaultyProxy:
    def __init__(self, target: str, *faults: Fault):
        self.target = urlsplit(target).netloc
        self.faults = list(faults)
        self.requests = Counter()
        self.lock = threading.Lock()
        self.ended = threading.Event()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self.server.daemon_threads = True
        self.server.block_on_close = False
        self.server.proxy = self
        self.server.handle_error = lambda *_: None
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(
            target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
        ).start()

    def close(self) -> None:
        self.ended.set()
        self.server.shutdown()
        self.server.server_close()

    def fault_for(self, path: str) -> Fault | None:
        with self.lock:
            self.requests[path.split("?")[0]] += 1
            for fault in self.faults:
                if fault.path in path and fault.times > 0:
                    fault.times -= 1
                    return fault
        return None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        proxy: FaultyProxy = self.server.proxy
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path.startswith("/login"):
            return self.reply(200, b"<html>please log in</html>", {"Content-Type": "text/html"})
        fault = proxy.fault_for(self.path)
        kind = fault.kind if fault else ""
        if kind.isdigit():
            return self.reply(int(kind), b'{"message": "spoilt on purpose"}', dict(fault.headers))
        if kind == "html":
            return self.reply(200, b"<html>please log in</html>", {"Content-Type": "text/html"})
        if kind == "redirect":
            return self.reply(302, b"", {"Location": f"{proxy.address}/login"})
        if kind == "echo":
            text = f'{{"message": "what is {self.headers.get("Authorization")}?"}}'
            return self.reply(400, text.encode(), {"Content-Type": "application/json"})
        if kind == "hang":
            proxy.ended.wait(fault.seconds)
        upstream = http.client.HTTPConnection(proxy.target, timeout=30)
        try:
            kept = {
                name: value
                for name, value in self.headers.items()
                if name.lower() not in ("host", "connection")
            }
            upstream.request(self.command, self.path, body=body or None, headers=kept)
            answer = upstream.getresponse()
            content = answer.read()
            headers = {
                name: value
                for name, value in answer.getheaders()
                if name.lower() not in ("content-length", "connection", "server", "date")
            }
        finally:
            upstream.close()
        # the miniature names itself in the datastack's record: let the client come back through
        # here
        if "/datastack/full/" in self.path:
            content = content.replace(f"http://{proxy.target}".encode(), proxy.address.encode())
        if kind == "no resolution":
            headers.pop("dataframe_resolution")
        if kind == "other resolution":
            headers["dataframe_resolution"] = "4, 4, 40"
        if kind == "trim":
            content = trimmed(content)
        if kind == "cut":
            self.send_response(answer.status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content[: len(content) // 2])
            self.wfile.flush()
            time.sleep(0.02)
            self.close_connection = True
            self.connection.close()
            return None
        return self.reply(answer.status, content, headers)

    do_POST = do_GET

    def reply(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)


def trimmed(content: bytes) -> bytes:
    """The stream up to the end of its first batch: pyarrow reads that without a word."""
    source = pa.BufferReader(content)
    pa.ipc.read_message(source)  # schema
    pa.ipc.read_message(source)  # first batch
    return content[: source.tell()]
