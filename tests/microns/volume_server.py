"""A precomputed volume of noise that tells its own place, and a loopback server for it with latency
and faults.
"""

from __future__ import annotations

import argparse
import http.server
import itertools
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np

FIRST = (30, 200, 100)  # voxel (z, y, x) that the volume begins with, at mip 0
CHUNK = (16, 64, 64)
VOXEL_NM = (40.0, 8.0, 8.0)


def write_volume(folder, arrays, *, first=FIRST, chunk=CHUNK, voxel_nm=VOXEL_NM, encoding="raw"):
    """Write one (z, y, x) array per mip, each half as fine in y and x as the one before."""
    import tensorstore as ts

    for mip, array in enumerate(arrays):
        scale = (1, 2**mip, 2**mip)
        store = ts.open(
            {
                "driver": "neuroglancer_precomputed",
                "kvstore": {"driver": "file", "path": f"{folder}/"},
                "multiscale_metadata": {
                    "data_type": array.dtype.name,
                    "num_channels": 1,
                    "type": "image",
                },
                "scale_metadata": {
                    "size": array.shape[::-1],
                    "encoding": encoding,
                    "chunk_size": chunk[::-1],
                    "resolution": [size * by for size, by in zip(voxel_nm, scale, strict=True)][
                        ::-1
                    ],
                    "voxel_offset": [at // by for at, by in zip(first, scale, strict=True)][::-1],
                },
            },
            create=True,
        ).result()
        store[..., 0].write(array.transpose(2, 1, 0)).result()


def noise(shape, seed=0, dtype=np.uint8):
    """(z, y, x) from 1 up: no zeros, so that a zero read is a fault; smooth in z, so that sections
    correlate.
    """
    rng = np.random.default_rng(seed)
    array = rng.integers(1, np.iinfo(dtype).max // 2, shape, dtype)
    return array + rng.integers(0, np.iinfo(dtype).max // 2, shape[1:], dtype)


class VolumeServer:
    """Serves a folder on the loopback interface. ``faults`` maps a part of a path to a list of what
    to answer instead, one per request: a status code, "stall" (no byte comes), or "cut" (half of
    the content)."""

    def __init__(self, folder, latency_s: float = 0.0, port: int = 0):
        self.requests = Counter()
        self.faults = {}
        self.latency_s = latency_s
        self._lock = threading.Lock()
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1  # one packet per answer, else Nagle's algorithm adds 40 ms
            disable_nagle_algorithm = True

            def log_message(self, *_):
                pass

            def do_GET(self):
                path = self.path.split("?")[0]
                if path == "/_requests":
                    return self._send(200, f"{sum(server.requests.values())}".encode())
                with server._lock:
                    server.requests[path] += 1
                    planned = next(
                        (
                            answers
                            for part, answers in server.faults.items()
                            if part in path and answers
                        ),
                        None,
                    )
                    fault = planned.pop(0) if planned else None
                time.sleep(server.latency_s)
                if fault == "stall":
                    time.sleep(5)
                    self.close_connection = True
                    return None
                if isinstance(fault, int):
                    return self._send(fault, b"")
                file = Path(folder, path.lstrip("/"))
                if not file.is_file():
                    return self._send(404, b"")
                content = file.read_bytes()
                if "Range" in self.headers:
                    start, stop = self.headers["Range"].removeprefix("bytes=").split("-")
                    stop = min(int(stop or len(content)), len(content) - 1)
                    return self._send(
                        206,
                        content[int(start) : stop + 1],
                        {"Content-Range": f"bytes {start}-{stop}/{len(content)}"},
                    )
                return self._send(200, content, cut=fault == "cut")

            def _send(self, code, content, headers=None, cut=False):
                self.send_response(code)
                for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content[: len(content) // 2] if cut else content)
                self.wfile.flush()
                self.close_connection |= cut

            do_HEAD = do_GET

        class Server(http.server.ThreadingHTTPServer):
            request_queue_size = 128

            def handle_error(self, *_):  # a client that went away, as a killed one does
                pass

        self._http = Server(("127.0.0.1", port), Handler)
        self.address = f"http://127.0.0.1:{self._http.server_port}"

    @property
    def url(self):
        return f"precomputed://{self.address}"

    @property
    def chunk_requests(self):
        return sum(count for path, count in self.requests.items() if not path.endswith("/info"))

    def __enter__(self):
        threading.Thread(
            target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
        ).start()
        return self

    def __exit__(self, *_):
        self._http.shutdown()
        self._http.server_close()


def chunks_of(plan, scale) -> int:
    """How many distinct chunks of a volume the rows of a plan touch."""
    starts = plan.starts[plan.order] - scale.first
    low = starts // scale.chunk
    high = (starts + plan.shape_px - 1) // scale.chunk
    touched = set()
    for first, last in zip(low.tolist(), high.tolist(), strict=True):
        spans = [range(start, end + 1) for start, end in zip(first, last, strict=True)]
        touched.update(itertools.product(*spans))
    return len(touched)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--latency-ms", type=float, default=0)
    asked = parser.parse_args()
    with VolumeServer(asked.folder, asked.latency_ms / 1000) as server:
        print(server.address, flush=True)
        threading.Event().wait()
