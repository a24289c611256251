"""The server of the offline miniature: the CAVE endpoints that caveclient asks, and the files of a
precomputed volume.
"""

from __future__ import annotations

import json
import operator
import re
import shutil
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pandas as pd

from nbhelpers.core.errors import ParameterError

DATASTACK = "miniature"
VERSION = 1412
OLDER_VERSION = 117
EXPIRED_VERSION = 343
TOKEN = "token-of-the-miniature"  # no secret: everyone may have it
# the unit of table points in MICrONS, which is not that of its images
TABLE_RESOLUTION_NM = (4.0, 4.0, 40.0)
SYNAPSE_TABLE = "synapses_pni_2"
NUCLEUS_TABLE = "nucleus_detection_v0"
ARROW_BATCH_ROWS = 256  # several batches a reply: only so can a stream be cut between two of them


@dataclass(frozen=True)
class Truth:
    """What was injected, for comparison with what comes back.

    ``neurons`` has root_id, nucleus_id, cell_type, x_nm, y_nm, z_nm and ``state`` ("labelled",
    "unlabelled", "conflicting", or "mislabelled": only in the metamodel table, as excitatory);
    ``synapses`` is the phantom's table. ``identity`` is the hash of all that is served.
    """

    neurons: pd.DataFrame
    synapses: pd.DataFrame
    origin_nm: tuple[float, float, float]
    voxel_nm: tuple[float, float, float]
    folder: Path
    identity: str


class Miniature:
    """A running server; made by :func:`miniature`. Leaving its ``with`` block stops it.

    ``address`` is the CAVE server, ``image_url`` the volume, ``token`` what it asks for, ``truth``
    what was injected. ``identity`` is the hash of what it serves: the ``served`` of a query to it.
    """

    datastack = DATASTACK
    version = VERSION

    def __init__(
        self,
        truth: Truth,
        tables: dict[str, pd.DataFrame],
        *,
        port: int,
        token: str,
        row_cap: int,
        scratch: Path | None,
    ):
        self.truth = truth
        self.token = token
        self.row_cap = row_cap
        self._scratch = scratch
        self.identity = truth.identity
        self._tables = tables
        try:
            self._server = _Server(("127.0.0.1", port), _Handler)
        except OSError as error:
            raise ParameterError(
                "parameter port",
                f"{port} cannot be used ({error.strerror}).",
                "0 takes any free port.",
            ) from None
        self._server.miniature = self
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}"
        self.image_url = f"precomputed://{self.address}/image"
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
        )
        self._thread.start()

    def __enter__(self) -> Miniature:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Miniature({self.address})"

    def close(self) -> None:
        """Stop serving; a temporary volume is removed."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        if self._scratch:
            shutil.rmtree(self._scratch, ignore_errors=True)


class _Server(ThreadingHTTPServer):
    # an idle keep-alive connection must not hold the end up
    daemon_threads = True
    block_on_close = False
    request_queue_size = 256
    miniature: Miniature

    def handle_error(self, *_: object) -> None:
        """A client that goes away in the middle is no news."""


class _Refused(Exception):
    def __init__(self, status: int, message: str):
        self.status = status
        self.message = message


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "miniature"
    # one packet a reply where it fits: no waiting for the other side
    disable_nagle_algorithm = True
    wbufsize = 1 << 16

    @property
    def miniature(self) -> Miniature:
        return self.server.miniature

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._answer({})

    do_HEAD = do_GET

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            self._answer(json.loads(body or b"{}"))
        except ValueError:
            self._send_json(400, {"code": 400, "message": "the body is not JSON"})

    def _answer(self, data: dict) -> None:
        address = urlsplit(self.path)
        path = unquote(address.path)
        made = self.miniature
        try:
            if path.startswith("/image/"):
                return self._send_file(path.removeprefix("/image/"))
            self._check_token()
            arguments = {key: values[-1] for key, values in parse_qs(address.query).items()}
            for pattern, reply in _ROUTES:
                if found := re.fullmatch(pattern, path):
                    names = found.groupdict()
                    self._check_names(names)
                    answer = reply(made, names, arguments, data)
                    return (
                        self._send_table(*answer)
                        if isinstance(answer, tuple)
                        else self._send_json(200, answer)
                    )
            raise _Refused(404, f"the miniature does not speak {path}")
        except _Refused as refusal:
            self._send_json(refusal.status, {"code": refusal.status, "message": refusal.message})

    def _check_token(self) -> None:
        given = self.headers.get("Authorization", "")
        if not given:
            raise _Refused(401, "no token was given")
        if given != f"Bearer {self.miniature.token}":
            raise _Refused(403, "the token is not valid or has no permission for this datastack")

    def _check_names(self, names: dict[str, str]) -> None:
        if names.get("datastack", DATASTACK) != DATASTACK:
            raise _Refused(404, f"datastack {names['datastack']} not found; there is {DATASTACK}")
        if names.get("version") and int(names["version"]) not in (
            VERSION,
            OLDER_VERSION,
            EXPIRED_VERSION,
        ):
            raise _Refused(404, f"version {names['version']} not found")
        if names.get("table", SYNAPSE_TABLE) not in self.miniature._tables:
            raise _Refused(404, f"table {names['table']} not found in datastack {DATASTACK}")

    def _send_json(self, status: int, value: object) -> None:
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send_table(self, frame: pd.DataFrame, resolution: object, capped: bool) -> None:
        import pyarrow as pa

        table = pa.Table.from_pandas(frame, preserve_index=False)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(
            sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")
        ) as writer:
            writer.write_table(table, max_chunksize=ARROW_BATCH_ROWS)
        headers = {"Content-Type": "data.arrow"}
        if resolution is not None:
            headers["dataframe_resolution"] = ", ".join(f"{float(step):g}" for step in resolution)
        if capped:
            headers["Warning"] = f'201 - "Limited query to {self.miniature.row_cap} rows'
        self._send(200, sink.getvalue().to_pybytes(), headers)

    def _send_file(self, name: str) -> None:
        root = (self.miniature.truth.folder / "image").resolve()
        path = (root / name).resolve()
        if not path.is_relative_to(root) or not path.is_file():
            return self._send(404, b"", {})
        content = path.read_bytes()
        headers = {
            "Accept-Ranges": "bytes",
            "Access-Control-Allow-Origin": "*",
            "Content-Type": "application/octet-stream",
        }
        span = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if not span or span.groups() == ("", ""):
            return self._send(200, content, headers)
        first, last = span.groups()
        start = int(first) if first else max(0, len(content) - int(last))
        end = min(int(last) + 1, len(content)) if first and last else len(content)
        if start >= end:
            return self._send(416, b"", {"Content-Range": f"bytes */{len(content)}"})
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(content)}"
        self._send(206, content[start:end], headers)

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _datastack(made: Miniature, *_: object) -> dict:
    return {
        "aligned_volume": {
            "id": 1,
            "name": DATASTACK,
            "image_source": made.image_url,
            "description": "phantom",
        },
        "local_server": made.address,
        "segmentation_source": f"graphene://{made.address}/segmentation/table/none",
        "synapse_table": SYNAPSE_TABLE,
        "soma_table": NUCLEUS_TABLE,
        "viewer_site": "",
        **{
            f"viewer_resolution_{axis}": step
            for axis, step in zip("xyz", TABLE_RESOLUTION_NM, strict=True)
        },
    }


def _versions(made: Miniature, names: dict, arguments: dict, _: dict) -> list[int]:
    expired = [EXPIRED_VERSION] if arguments.get("expired", "False").lower() == "true" else []
    return [OLDER_VERSION, *expired, VERSION]


def _version(made: Miniature, names: dict, *_: object) -> dict:
    version = int(names["version"])
    year = {OLDER_VERSION: 2021, EXPIRED_VERSION: 2022, VERSION: 2025}[version]
    expired = version == EXPIRED_VERSION
    return {
        "id": version,
        "version": version,
        "datastack": DATASTACK,
        "is_merged": False,
        "valid": not expired,
        "status": "EXPIRED" if expired else "AVAILABLE",
        # caveclient refuses times without a fraction
        "time_stamp": f"{year}-06-11T08:10:00.215114",
        "expires_on": f"{2023 if expired else 2121}-11-10T07:10:00.215114",
    }


def _table_list(made: Miniature, names: dict, *_: object) -> list[str]:
    _check_live(names)
    return sorted(made._tables)


def _metadata(made: Miniature, names: dict, *_: object) -> dict:
    _check_live(names)
    table = names["table"]
    schemas = {SYNAPSE_TABLE: "synapse", NUCLEUS_TABLE: "nucleus_detection"}
    return {
        "id": 1 + sorted(made._tables).index(table),
        "table_name": table,
        "aligned_volume": DATASTACK,
        "schema": schemas.get(table, "cell_type_reference"),
        "valid": True,
        "created": "2020-11-04T11:02:08.388988",
        "description": "Injected by the miniature.",
        "notice_text": None,
        "user_id": "0",
        "flat_segmentation_source": None,
        "reference_table": NUCLEUS_TABLE if "target_id" in made._tables[table] else None,
        **{
            f"voxel_resolution_{axis}": step
            for axis, step in zip("xyz", TABLE_RESOLUTION_NM, strict=True)
        },
    }


def _check_live(names: dict[str, str]) -> None:
    if int(names["version"]) == EXPIRED_VERSION:
        raise _Refused(404, f"version {EXPIRED_VERSION} has expired and is no longer available")


def _query(
    made: Miniature, names: dict, arguments: dict, data: dict
) -> tuple[pd.DataFrame, object, bool]:
    """A query of one table, or of a reference table joined with what it refers to."""
    _check_live(names)
    wanted = [[names["table"], None]] if "table" in names else data.get("tables", [])
    unknown = [table for table, _ in wanted if table not in made._tables]
    if unknown or not wanted:
        raise _Refused(404, f"table {unknown} not found")
    frames = {table: _filtered(made._tables[table], data, table) for table, _ in wanted}
    if len(wanted) == 1:
        frame = frames[wanted[0][0]]
    else:
        (left, left_on), (right, right_on) = wanted
        suffix = data.get("suffix_map", {})
        frame = frames[left].merge(
            frames[right],
            left_on=left_on,
            right_on=right_on,
            suffixes=(suffix.get(left, ""), suffix.get(right, "_ref")),
        )
    frame = frame.iloc[data.get("offset", 0) :]
    limit = min(made.row_cap, data.get("limit") or made.row_cap)
    # like CAVE: a result of exactly this many rows is called limited as well
    capped = len(frame) >= made.row_cap
    frame = frame.iloc[:limit].reset_index(drop=True)
    columns = list(data.get("select_columns") or [])
    if not columns:
        for more in data.get("select_column_map", {}).values():
            columns += more
    if columns:
        chosen = [name for name in frame.columns if name in columns or name[:-2] in columns]
        absent = [
            name
            for name in columns
            if name not in frame.columns and f"{name}_x" not in frame.columns
        ]
        if absent:
            raise _Refused(400, f"column {absent[0]} does not exist")
        frame = frame[chosen]
    resolution = data.get("desired_resolution")
    if resolution is not None:
        frame = frame.copy()
        for name in frame.columns:
            if name[:-2].endswith("_position"):
                axis = "xyz".index(name[-1])
                frame[name] = frame[name] * (TABLE_RESOLUTION_NM[axis] / float(resolution[axis]))
    return frame, resolution or TABLE_RESOLUTION_NM, capped


_FILTERS = {
    "filter_in_dict": pd.Series.isin,
    "filter_less_dict": operator.lt,
    "filter_greater_equal_dict": operator.ge,
}


def _filtered(frame: pd.DataFrame, data: dict, table: str) -> pd.DataFrame:
    unknown = [key for key in data if key.startswith("filter_") and key not in _FILTERS]
    if unknown:
        raise _Refused(400, f"the miniature does not speak {unknown[0]}")
    for key, test in _FILTERS.items():
        for column, value in (data.get(key, {}).get(table) or {}).items():
            if column not in frame.columns:
                raise _Refused(400, f"column {column} does not exist in {table}")
            frame = frame[test(frame[column], value)]
    return frame


_STACK = r"/materialize/api/v[23]/datastack/(?P<datastack>[^/]+)"
_OF_VERSION = _STACK + r"/version/(?P<version>\d+)"
_ROUTES = [
    ("/info/version", lambda *_: "4.4.0"),
    (r"/info/api/v2/datastacks", lambda *_: [DATASTACK]),
    (r"/info/api/v2/datastack/full/(?P<datastack>[^/]+)", _datastack),
    ("/materialize/api/versions", lambda *_: [2, 3]),
    ("/materialize/version", lambda *_: "5.13.0"),
    (_STACK + "/versions", _versions),
    (_OF_VERSION, _version),
    (_OF_VERSION + "/tables", _table_list),
    (_OF_VERSION + r"/table/(?P<table>[^/]+)/metadata", _metadata),
    (_OF_VERSION + r"/table/(?P<table>[^/]+)/query", _query),
    (_OF_VERSION + "/query", _query),
]
