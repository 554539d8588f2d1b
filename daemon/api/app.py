"""The admin API's routes. Each also answers under /anomaly, where the original's proxy had them.

Handlers are thin: validate the request, call `Control`, return JSON. Every error, the framework's own
included, is ``{"error": {"code", "message"}}``.
"""

import logging
import re
from collections.abc import Awaitable, Callable, Collection, Sequence
from importlib.resources import files
from typing import Any

import trio
from quart import Response, request
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException, MethodNotAllowed

from daemon.api import metrics
from daemon.api.access_control import Access, TokenFor
from daemon.api.audit_log import audited_handler, requested_path_text
from daemon.api.event_streams import Streams
from daemon.api.json_bodies import (
    MAX_BATCH_LINES,
    MAX_BODY_BYTES,
    BatchRequest,
    DetectRequest,
    FeedbackRequest,
    decode_body,
    encode_answer,
    line_bytes,
    note_text,
)
from daemon.api.list_body import ListBody
from daemon.api.peers import UNKNOWN_LOCAL, Peer
from daemon.api.waiting import NOBODY_ELSE, GivingWay, WaitingRequests
from daemon.control.control_interface import Control, ControlError
from daemon.control.vouched_uploads import MAX_CHUNK_BYTES
from persistence.state_directory import SNAPSHOT

PREFIXES = ("", "/anomaly")
# Those that change nothing. Every other one changes the state: it needs admin.sock or the token, and is audited.
POSTS_THAT_CHANGE_NOTHING = frozenset({"/detect", "/detect/batch", "/checkpoint", "/snapshots/verify"})
BODY_SECONDS = 10  # a body that takes longer is refused with 408
RETRY_SECONDS = 5  # after a 429 or 503
MAX_ANOMALIES = 1000
MAX_INCIDENTS = 4096
GENERATION = re.compile(r"[1-9][0-9]{0,17}")
UPLOAD = re.compile(r"[A-Za-z0-9._-]{1,64}")
ALERT_ID = re.compile(r"[0-9]{1,18}(\.[0-9]{1,9})?")
RECORD_ID = re.compile(r"[0-9]{1,18}(\.[0-9]{1,9}(\.[0-9]{1,18})?)?")  # a counting record's, too: `actors.record_ids`

HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}

log = logging.getLogger(__name__)

_ASKING_ENDPOINTS = {f"POST {prefix}{path}" for prefix in PREFIXES for path in POSTS_THAT_CHANGE_NOTHING}

Handler = Callable[..., Awaitable[Response]]


def create_app(
    control: Control,
    *,
    hosts: Collection[str],
    token: str | None,
    token_for: TokenFor = "all",
    max_streams: int | None = None,
) -> QuartTrio:
    """The application. Who may do what: see `Access`. Who sent a request it learns from `scope["state"]["peer"]`, a
    `Peer`; while `scope["state"]["giving_way"]()` is held, the connection gives way to others."""
    app = QuartTrio("daemon.api", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = MAX_BODY_BYTES
    app.config["BODY_TIMEOUT"] = BODY_SECONDS
    _add_guards(app, Access(hosts, token, token_for))
    _add_error_handlers(app)
    _add_query_routes(app, control, max_streams)
    _add_action_routes(app, control)
    _add_learning_routes(app, control)
    _add_page_routes(app)
    return app


def _add_guards(app: QuartTrio, access: Access) -> None:
    @app.before_request
    async def check_request_access() -> None:
        # What no route takes changes nothing: it is answered 404 or 405.
        changes = request.url_rule is not None and request.method not in ("GET", "HEAD", "OPTIONS")
        await access.check_access(
            _request_peer(),
            request.headers.get,
            requested_path_text(),
            changes and request.endpoint not in _ASKING_ENDPOINTS,
            _giving_way(),
        )

    @app.after_request
    async def add_security_headers(response: Response) -> Response:
        response.headers.update(HEADERS)
        return response


def _add_error_handlers(app: QuartTrio) -> None:
    @app.errorhandler(ControlError)
    async def answer_control_error(error: ControlError) -> Response:
        response = _error_response(error.status, error.code, error.message)
        if error.status in (429, 503):
            response.headers["Retry-After"] = str(RETRY_SECONDS)
        if error.status == 401:
            # A browser prompts for Basic, so not for the page's token: that comes in the page's address.
            scheme = "Bearer" if error.code == "wrong_token" else "Basic"
            response.headers["WWW-Authenticate"] = f'{scheme} realm="vigild", charset="UTF-8"'
        return response

    @app.errorhandler(HTTPException)
    async def answer_framework_error(error: HTTPException) -> Response:
        status = error.code or 500
        code, message = _FRAMEWORK_ERRORS.get(status, (error.name.lower().replace(" ", "_"), error.name))
        response = _error_response(status, code, message)
        if isinstance(error, MethodNotAllowed) and error.valid_methods:
            response.headers["Allow"] = ", ".join(sorted(error.valid_methods))
        return response

    @app.errorhandler(Exception)
    async def answer_internal_error(error: Exception) -> Response:
        # A bug fails this one request; the traceback goes to the log, the sentence to the caller.
        log.error("%s %s failed", request.method, request.path, exc_info=error)
        return _error_response(500, "internal", "the daemon failed on this request; its log says why")


_FRAMEWORK_ERRORS = {
    404: ("not_found", "there is nothing at this path"),
    405: ("method_not_allowed", "this path does not answer that method"),
    408: ("too_slow", f"the body did not arrive within {BODY_SECONDS} s"),
    413: ("too_large", f"the body is over {MAX_BODY_BYTES} bytes"),
}


def _add_query_routes(app: QuartTrio, control: Control, max_streams: int | None) -> None:
    streams = Streams(control, max_streams)

    async def get_health() -> Response:
        answer = control.health()
        return _json_answer(answer, 200 if answer["serving"] else 503)

    async def get_status() -> Response:
        return _json_answer(control.status())

    async def get_metrics() -> Response:
        return Response(metrics.render_metrics(control.status()), content_type=metrics.CONTENT_TYPE)

    async def get_snapshots() -> Response:
        return _list_answer("snapshots", await control.snapshots())

    async def get_anomalies() -> Response:
        after = request.args.get("after")
        if after is not None and not RECORD_ID.fullmatch(after):
            raise ControlError(400, "bad_request", "after is the id of a record, such as 1207 or 1207.1")
        return _list_answer("anomalies", await control.anomalies(after, _limit_parameter(MAX_ANOMALIES)))

    async def get_anomaly(alert: str) -> Response:
        return _json_answer(await control.anomaly(_checked_alert_id(alert, 404, RECORD_ID)))

    async def get_incidents() -> Response:
        return _list_answer("incidents", await control.incidents(_limit_parameter(MAX_INCIDENTS)))

    async def get_answers() -> Response:
        return _list_answer("feedback", await control.answers())

    async def get_models() -> Response:
        return _list_answer("models", await control.models())

    async def get_events() -> Response:
        everything = _flag_parameter("all")
        # A HEAD request has no body, so its stream would never be read or ended.
        body = (
            b""
            if request.method == "HEAD"
            else streams.open_stream(everything=everything, unix=_request_peer().over_unix)
        )
        response = Response(body, content_type="text/event-stream")
        response.headers["X-Accel-Buffering"] = "no"  # a proxy in front must not wait for more
        # The framework would cut the stream after its RESPONSE_TIMEOUT.
        response.timeout = None
        return response

    _add_route(app, "/health", get_health)
    _add_route(app, "/status", get_status)
    _add_route(app, "/metrics", get_metrics)
    _add_route(app, "/snapshots", get_snapshots)
    _add_route(app, "/anomalies", get_anomalies)
    _add_route(app, "/anomalies/<alert>", get_anomaly)
    _add_route(app, "/incidents", get_incidents)
    _add_route(app, "/feedback", get_answers)
    _add_route(app, "/models", get_models)
    _add_route(app, "/events", get_events)


def _add_action_routes(app: QuartTrio, control: Control) -> None:
    waiting, judging = WaitingRequests("for a checkpoint"), trio.Lock()

    async def judge(lines: list[bytes], session_id: str | None, explain: bool = False) -> list[dict[str, Any]]:
        """One request at a time. Those that wait for their turn give way to requests of other kinds."""
        with _giving_way()():
            await judging.acquire()
        try:
            return await control.detect(lines, session_id, explain)
        finally:
            judging.release()

    async def post_detect() -> Response:
        explain = _flag_parameter("explain")
        wanted = decode_body(await _request_body(), DetectRequest)
        [answer] = await judge([line_bytes(wanted.log_line)], wanted.session_id, explain)
        return _json_answer(answer)

    async def post_detect_batch() -> Response:
        wanted = decode_body(await _request_body(), BatchRequest)
        if len(wanted.log_lines) > MAX_BATCH_LINES:
            raise ControlError(413, "too_many_lines", f"a batch holds at most {MAX_BATCH_LINES} lines")
        results = await judge([line_bytes(text) for text in wanted.log_lines], None)
        flagged = sum(bool(result["is_anomaly"]) for result in results)
        return _list_answer("results", results, total_logs=len(results), anomalies_detected=flagged)

    async def post_checkpoint() -> Response:
        peer = _request_peer()
        with waiting.waiting(peer, _giving_way()):
            return _json_answer(await control.checkpoint(extra=not peer.over_unix))

    async def post_flush() -> Response:
        return _json_answer(await control.flush())

    async def post_verify_snapshots() -> Response:
        return _list_answer("snapshots", await control.verify_snapshots())

    async def post_restore_snapshot(name: str) -> Response:
        return _json_answer(await control.restore_snapshot(_checked_snapshot_name(name)))

    async def post_pin_snapshot(name: str) -> Response:
        return _json_answer(await control.pin_snapshot(_checked_snapshot_name(name)))

    async def post_unpin_snapshot(name: str) -> Response:
        return _json_answer(await control.unpin_snapshot(_checked_snapshot_name(name)))

    _add_route(app, "/detect", post_detect, "POST")
    _add_route(app, "/detect/batch", post_detect_batch, "POST")
    _add_route(app, "/checkpoint", post_checkpoint, "POST")
    _add_route(app, "/flush", post_flush, "POST")
    _add_route(app, "/snapshots/verify", post_verify_snapshots, "POST")
    _add_route(app, "/snapshots/<name>/restore", post_restore_snapshot, "POST")
    _add_route(app, "/snapshots/<name>/pin", post_pin_snapshot, "POST")
    _add_route(app, "/snapshots/<name>/unpin", post_unpin_snapshot, "POST")


def _add_learning_routes(app: QuartTrio, control: Control) -> None:
    """Requests by which the operator changes what the daemon knows."""

    async def post_feedback() -> Response:
        given = decode_body(await _request_body(), FeedbackRequest)
        return _json_answer(
            await control.feedback(_checked_alert_id(given.id, 400), given.answer, note_text(given.note))
        )

    async def post_undo_feedback(alert: str) -> Response:
        return _json_answer(await control.undo_feedback(_checked_alert_id(alert, 404)))

    async def post_rollback_model(generation: str) -> Response:
        if not GENERATION.fullmatch(generation):
            raise ControlError(404, "not_found", f"{generation[:80]!a} is not the number of a model generation")
        return _json_answer(await control.rollback_model(int(generation)))

    async def post_train_from() -> Response:
        source = request.args.get("source", "")
        if not UPLOAD.fullmatch(source):
            raise ControlError(400, "bad_request", "source is a name of up to 64 letters, digits, dots and dashes")
        last = _flag_parameter("last")
        data = await _request_body()
        if len(data) > MAX_CHUNK_BYTES:
            raise ControlError(413, "too_large", f"a chunk is over {MAX_CHUNK_BYTES} bytes; send it in several")
        return _json_answer(await control.train_from(source, data, last))

    _add_route(app, "/feedback", post_feedback, "POST")
    _add_route(app, "/feedback/<alert>/undo", post_undo_feedback, "POST")
    _add_route(app, "/models/<generation>/rollback", post_rollback_model, "POST")
    _add_route(app, "/train-from", post_train_from, "POST")


def _add_page_routes(app: QuartTrio) -> None:
    for path, name, content_type in (
        ("/", "page.html", "text/html; charset=utf-8"),
        ("/page.css", "page.css", "text/css; charset=utf-8"),
        ("/page.js", "page.js", "text/javascript; charset=utf-8"),
        ("/incidents.js", "incidents.js", "text/javascript; charset=utf-8"),
    ):
        _add_route(app, path, _page_file_handler((files("daemon.api") / name).read_bytes(), content_type))


def _page_file_handler(content: bytes, content_type: str) -> Handler:
    async def serve_page_file() -> Response:
        return Response(content, content_type=content_type)

    return serve_page_file


def _request_peer() -> Peer:
    """Who sent the current request."""
    peer: Peer = request.scope.get("state", {}).get("peer", UNKNOWN_LOCAL)
    return peer


def _giving_way() -> GivingWay:
    """While it is held, the connection of the current request gives way to others."""
    giving_way: GivingWay = request.scope.get("state", {}).get("giving_way", NOBODY_ELSE)
    return giving_way


def _limit_parameter(most: int) -> int:
    limit = request.args.get("limit", "100")
    if not (limit.isascii() and limit.isdigit() and len(limit) < 10 and 1 <= int(limit) <= most):
        raise ControlError(400, "bad_request", f"limit is a number from 1 to {most}")
    return int(limit)


def _flag_parameter(name: str) -> bool:
    value = request.args.get(name, "0")
    if value not in ("0", "1"):
        raise ControlError(400, "bad_request", f"{name} is 0 or 1")
    return value == "1"


def _checked_alert_id(text: str, status: int, form: re.Pattern[str] = ALERT_ID) -> str:
    if not form.fullmatch(text):
        code = "bad_request" if status == 400 else "not_found"
        raise ControlError(status, code, f"{text[:80]!a} is not an alert's id, such as 1207 or 1207.1")
    return text


def _checked_snapshot_name(name: str) -> str:
    """`name` from the URL, if it can be a snapshot's; no other text is ever used as part of a path."""
    if not SNAPSHOT.fullmatch(name):
        raise ControlError(404, "not_found", f"{name[:80]!a} is not the name of a snapshot")
    return name


async def _request_body() -> bytes:
    body = await request.get_data(as_text=False)  # raises 408 and 413, answered in `_add_error_handlers`
    assert isinstance(body, bytes)
    return body


def _add_route(app: QuartTrio, path: str, handler: Handler, method: str = "GET") -> None:
    if method != "GET" and path not in POSTS_THAT_CHANGE_NOTHING:
        handler = audited_handler(handler, _request_peer)
    for prefix in PREFIXES:
        app.add_url_rule(prefix + path, endpoint=f"{method} {prefix}{path}", view_func=handler, methods=[method])


def _json_answer(answer: Any, status: int = 200) -> Response:
    return Response(encode_answer(answer) + b"\n", status=status, content_type="application/json")


def _list_answer(name: str, items: Sequence[Any], **rest: Any) -> Response:
    """`items`, called `name`, and the fields of `rest`."""
    return Response(ListBody(name, items, rest), content_type="application/json")


def _error_response(status: int, code: str, message: str) -> Response:
    return _json_answer({"error": {"code": code, "message": message}}, status)
