"""The connection to CAVE: the real caveclient with a pinned version, whose replies are looked at
before they are used.
"""

import re
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from urllib.parse import quote

import numpy as np
import pandas as pd

from nbhelpers.core.errors import InputError, nearest

NO_SEGMENT = 0  # the root id of what no segment covers, as CAVE writes it
DEAD_S = 100.0  # after so long without any answer nothing is tried again
CONNECT_S = 10.0  # the longest wait for a connection to be taken
END_OF_ARROW_STREAM = b"\xff\xff\xff\xff\x00\x00\x00\x00"
# what to do where no answer came at all, be it an unwelcome one
NO_ANSWER = "Is there a network, and is the server up? A frozen query needs neither."
HOW_TO_GET_A_TOKEN = (
    "Get one once, with caveclient: CAVEclient().auth.get_new_token() shows the page, "
    "CAVEclient().auth.save_token(token=...) keeps it in its secret file. Without a token, use the "
    "offline miniature."
)


class CaveError(InputError):
    """CAVE refuses, cannot be reached, or answers with something that cannot be used. Never holds
    the token.
    """


class _CutReply(Exception):
    """A reply that ends too early."""


class _NoTable(Exception):
    """A reply that is no table, or does not say what it must."""


class Connection:
    """A caveclient with a pinned version, whose failures are retried, put into words, and never
    hold the token.

    ``timestamp`` is when the version was frozen (ISO text, UTC), ``image_source`` where the images
    lie, ``synapse_table`` the synapse table of the datastack.

    ``token`` is by default the user's own, from the secret file of caveclient; it is never printed,
    logged, stored or put into an error. ``attempts``, ``backoff_s`` (doubled each time) and
    ``timeout_s`` rule how failures that may pass are retried; a server that does not answer at all
    is given up after about 100 s. Raises CaveError: no token, a refused one, an unknown datastack,
    an expired version (with the live ones), a server that is down.
    """

    def __init__(
        self,
        datastack: str,
        *,
        version: int,
        server_address: str = "",
        token: str | None = None,
        attempts: int = 5,
        backoff_s: float = 0.5,
        timeout_s: float = 60.0,
    ):
        server_address, token = _address_and_token(datastack, server_address, token)
        self.datastack = datastack
        self.version = version
        self._server_address = server_address
        self._secret = _Secret(token)
        self._attempts = attempts
        self._backoff_s = backoff_s
        self._timeout_s = timeout_s
        self._seen: dict[str, str | None] = {}
        self._client = self._ask(f"datastack {datastack}", self._open)
        client = self._client
        live = sorted(self._ask("the list of versions", client.materialize.get_versions))
        if version not in live:
            ever = self._ask(
                "the list of versions", lambda: client.materialize.get_versions(expired=True)
            )
            why = f"the datastack {datastack} never had it."
            if version in ever:
                why = "it has expired."
            raise CaveError(
                f"version {version}",
                why,
                f"Live now: {', '.join(map(str, live)) or 'none'}. A query that was frozen stays "
                "usable.",
            )
        self._ask(f"version {version}", lambda: setattr(client, "version", version))
        self.timestamp = client.timestamp.isoformat()
        info = client.info.get_datastack_info()
        self.image_source = info["aligned_volume"]["image_source"]
        self.synapse_table = info.get("synapse_table") or ""
        self.tables: list[str] = sorted(
            self._ask("the list of tables", client.materialize.get_tables)
        )

    def __repr__(self) -> str:
        return f"Connection({self.datastack}, version {self.version})"

    def __reduce__(self):
        raise TypeError("a connection is not stored: it holds a token")

    def _open(self) -> object:
        from caveclient import CAVEclient
        from requests.adapters import HTTPAdapter

        timeout_s = self._timeout_s

        class Patient(HTTPAdapter):
            def send(self, request, **options):  # caveclient waits for ever by itself
                return super().send(
                    request, **{**options, "timeout": (min(CONNECT_S, timeout_s), timeout_s)}
                )

        def make() -> object:
            client = CAVEclient(
                self.datastack,
                server_address=self._server_address,
                auth_token=self._secret.text,
                max_retries=0,
                write_server_cache=False,
            )
            client.materialize  # noqa: B018 made lazily, and here is where that may take its time
            return client

        client = _within(min(3 * timeout_s, DEAD_S / 3), make)
        # caveclient falls back in silence when the server did not answer
        if client.materialize.api_version < 3:
            raise _CutReply("the server did not say which interfaces it speaks")
        for service in (client.info, client.materialize):
            for scheme in ("http://", "https://"):
                service.session.mount(scheme, Patient(max_retries=0))
        client.materialize.session.hooks["response"].append(self._look)
        return client

    def _look(self, response, **_: object) -> None:
        """Look at the reply to a query before caveclient does: what it leaves out would make
        results wrong in silence.
        """
        if response.request.method != "POST" or not response.ok:
            return
        kind = response.headers.get("Content-Type", "")
        if kind != "data.arrow":
            raise _NoTable(f"the reply is no table ({kind or 'of no stated kind'})")
        # pyarrow takes a cut between two batches for the end
        if not response.content.endswith(END_OF_ARROW_STREAM):
            raise _CutReply("the table ends too early")
        _keep_ids_whole(response)
        self._seen = {
            name: response.headers.get(name) for name in ("Warning", "dataframe_resolution")
        }

    def _ask(self, where: str, function: Callable[[], object]) -> object:
        """The result of ``function``, tried again with growing pauses while the
        failure may pass."""
        silent_s = 0.0  # spent on attempts without any answer: a dead server should be named soon
        for attempt in range(1, self._attempts + 1):
            began = time.monotonic()
            try:
                return function()
            except CaveError:
                raise
            except Exception as error:
                # whatever caveclient raises may hold the token: nothing passes unread
                why, fix, may_pass, wait_s = _reason(error)
                if fix == NO_ANSWER:
                    silent_s += time.monotonic() - began
            if not may_pass or silent_s >= 0.85 * DEAD_S:
                break
            if attempt < self._attempts:
                time.sleep(min(60.0, max(wait_s, self._backoff_s * 2 ** (attempt - 1))))
        tries = f"{attempt} attempts" if may_pass and attempt > 1 else ""
        if silent_s >= 1:
            tries += f"{' in' if tries else 'after'} {silent_s:.0f} s"
        tries = tries and f" ({tries})"
        raise CaveError(where, self._secret.scrub(why) + tries + ".", fix)

    def fetch(
        self,
        table: str,
        *,
        where: dict[str, Sequence] | None = None,
        columns: Sequence[str] | None = None,
        reference: bool = False,
    ) -> pd.DataFrame:
        """All rows of ``table`` whose columns have one of the values in ``where``, sorted by id;
        points in nm.

        ``reference`` joins the rows that it refers to, whose columns end in "_ref" only where both
        tables have one of the name, whether the server marks these or all of them. A result at the
        server's row cap is never used: it is asked for again in halves, by id. Raises CaveError,
        for a table that the version does not have naming the nearest one.
        """
        if table not in self.tables:
            raise CaveError(
                f"table {table}",
                f"{self.datastack} has no such table in version {self.version}.",
                nearest(table, self.tables),
            )
        asked = {
            "select_columns": list(columns) if columns else None,
            "merge_reference": reference,
        }
        if where:
            plain = {name: [_python(value) for value in values] for name, values in where.items()}
            asked["filter_in_dict"] = plain
        frames = self._rows(table, asked)
        resolution = frames[0].attrs["dataframe_resolution"]
        frame = pd.concat([part for part in frames if len(part)] or frames[:1], ignore_index=True)
        frame = frame.sort_values("id", ignore_index=True, kind="stable")
        if reference:
            plain = {name: re.sub("_ref(?=(_[xyz])?$)", "", name) for name in frame.columns}
            frame = frame.rename(columns=lambda name: name if plain[name] in plain else plain[name])
        frame.attrs = {"dataframe_resolution": resolution}
        return frame

    def _rows(
        self, table: str, asked: dict, low: int | None = None, high: int | None = None
    ) -> list[pd.DataFrame]:
        query = partial(
            self._client.materialize.query_table,
            table,
            **asked,
            filter_greater_equal_dict=None if low is None else {"id": low},
            filter_less_dict=None if high is None else {"id": high},
            split_positions=True,
            desired_resolution=[1, 1, 1],
            materialization_version=self.version,
            metadata=False,
            log_warning=False,
        )
        frame = self._ask(f"table {table}", query)
        resolution = self._seen.get("dataframe_resolution")
        try:
            steps = [float(step) for step in re.split(r"[,\s]+", (resolution or "").strip(" []()"))]
        except ValueError:
            steps = []
        if steps != [1.0, 1.0, 1.0]:
            raise CaveError(
                f"table {table}",
                f"points in nm were asked for, and the server answered in "
                f"{resolution or 'an unstated resolution'}.",
                "They cannot be placed; nothing was used.",
            )
        frame.attrs = {"dataframe_resolution": steps}
        capped = re.search(
            r"limited query to (\d+)", self._seen.get("Warning") or "", re.IGNORECASE
        )
        if not capped:
            return [frame]
        ids = np.unique(frame["id"]) if "id" in frame.columns else np.empty(0)
        if len(ids) < 2:
            raise CaveError(
                f"table {table}",
                f"the server cuts results at {capped[1]} rows, too few to go on.",
                "Nothing was used, as it would be incomplete.",
            )
        middle = int(ids[len(ids) // 2])
        return self._rows(table, asked, low, middle) + self._rows(table, asked, middle, high)


@dataclass(repr=False)
class _Secret:
    """A token that shows itself to nobody who prints it."""

    text: str

    def __repr__(self) -> str:
        return "<token>"

    def scrub(self, text: str) -> str:
        for form in {self.text, quote(self.text), quote(self.text, safe="")}:
            text = text.replace(form, "<token>")
        return text


def check_token(datastack: str) -> None:
    """Raises CaveError when there is no token of the user's own, or none that could be one. Asks no
    server.
    """
    _address_and_token(datastack, "", None)


def _address_and_token(datastack: str, server_address: str, token: str | None) -> tuple[str, str]:
    from caveclient.auth import AuthClient
    from caveclient.datastack_lookup import handle_server_address
    from caveclient.endpoints import default_global_server_address

    server_address = (
        handle_server_address(datastack, server_address or None) or default_global_server_address
    )
    try:
        token = AuthClient(server_address=server_address, token=token or None).token
    except (OSError, ValueError, AttributeError):
        raise CaveError(
            "the secret file of caveclient", "it cannot be read.", HOW_TO_GET_A_TOKEN
        ) from None
    token = token.strip() if isinstance(token, str) else ""
    if not token:
        raise CaveError("CAVE token", "there is none.", HOW_TO_GET_A_TOKEN)
    if not re.fullmatch(r"[!-~]+", token):  # requests would quote it in its own error
        raise CaveError(
            "CAVE token", "it holds spaces or other characters that no token has.", "Copy it again."
        )
    return server_address, token


def _within(seconds: float, function: Callable[[], object]) -> object:
    """The result of ``function``, or TimeoutError: some requests of caveclient have no time-out and
    offer none.
    """
    result = Future()

    def work() -> None:
        try:
            result.set_result(function())
        except BaseException as error:
            result.set_exception(error)

    # a pool would wait for its thread when Python ends
    threading.Thread(target=work, daemon=True).start()
    return result.result(seconds)


def _reason(error: Exception) -> tuple[str, str, bool, float]:
    """What went wrong, how to fix it, whether it may pass by itself, and the seconds that the
    server asks to wait.
    """
    import pyarrow as pa
    import requests
    from caveclient.base import AuthException

    if isinstance(error, requests.HTTPError) and error.response is not None:
        status = error.response.status_code
        asked = error.response.headers.get("Retry-After", "")
        wait_s = float(asked) if re.fullmatch(r"\d{1,4}", asked) else 0.0
        if status == 401:
            return "the server does not accept the token (401)", HOW_TO_GET_A_TOKEN, False, 0.0
        if status == 403:
            return (
                "the server refuses the token: it is wrong, or it has no permission here (403)",
                "Accept the terms of the datastack on its page once. " + HOW_TO_GET_A_TOKEN,
                False,
                0.0,
            )
        if status == 429:
            return (
                "the server says: too many requests (429)",
                "Wait some minutes and run again.",
                True,
                wait_s,
            )
        if status >= 500:
            return (
                f"the server has a fault or is overloaded ({status})",
                "Run again later.",
                True,
                wait_s,
            )
        return f"the server refuses ({status}: {_message(error.response)})", "", False, 0.0
    if isinstance(error, AuthException):
        return (
            "the server asks for a log-in: the token is missing or not valid",
            HOW_TO_GET_A_TOKEN,
            False,
            0.0,
        )
    if isinstance(error, TimeoutError | requests.Timeout):
        return "the server did not answer in time", NO_ANSWER, True, 0.0
    if isinstance(error, _CutReply | pa.ArrowException | requests.exceptions.ChunkedEncodingError):
        return "the reply was cut or damaged", "Nothing of it was used. Run again.", True, 0.0
    if isinstance(error, requests.ConnectionError):
        return "the server cannot be reached, or broke off", NO_ANSWER, True, 0.0
    if isinstance(error, _NoTable | requests.JSONDecodeError):
        return (
            f"the server did not answer as CAVE does ({error})",
            "Is server_address right? Is a proxy in the way?",
            False,
            0.0,
        )
    return f"caveclient failed ({type(error).__name__}: {error})", "", False, 0.0


def _keep_ids_whole(response: object) -> None:
    """Write 0 for ids that are null, before pandas makes floats of their column and rounds all ids
    in it.
    """
    import pyarrow as pa

    with pa.ipc.open_stream(response.content) as reader:
        table = reader.read_all()
    whole = table
    for at, (name, column) in enumerate(zip(table.column_names, table.columns, strict=True)):
        ids = name.endswith(("_id", "_id_ref")) and pa.types.is_integer(column.type)
        if ids and column.null_count:
            whole = whole.set_column(at, name, column.fill_null(NO_SEGMENT))
    if whole is table:
        return
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, whole.schema) as writer:
        writer.write_table(whole)
    response._content = sink.getvalue().to_pybytes()


def _message(response: object) -> str:
    try:
        value = response.json()
    except ValueError:
        value = None
    text = value.get("message") if isinstance(value, dict) else None
    return " ".join(str(text or response.reason).split())[:200]


def _python(value: object) -> object:
    return value.item() if isinstance(value, np.generic) else value
