"""The admin API's contract, against a fake daemon: what each path answers and what it refuses."""

import json
import math
from typing import Any

import pytest
import trio
import trio.testing
from quart.wrappers import Response

from daemon.api import event_streams
from daemon.api.access_control import TokenFor
from daemon.api.app import create_app
from daemon.api.json_bodies import MAX_BODY_BYTES, decode_body, encode_answer
from daemon.api.list_body import PIECE_BYTES, ListBody
from daemon.control.control_interface import ControlError
from daemon.control.degraded_reasons import CODES
from daemon.control.vouched_uploads import MAX_CHUNK_BYTES
from tests.daemon.fake_control import FakeControl, incident, record, unavailable

OWN = "a-token-of-the-daemon-s-own"


class Caller:
    """The app's test client, with a Host that is served and JSON out. Without a `token` of the operator's it sends the
    daemon's own."""

    def __init__(self, control: FakeControl, hosts: tuple[str, ...] = (), token: str | None = None) -> None:
        self._headers = {"Host": "localhost"} | ({"Authorization": f"Bearer {OWN}"} if token is None else {})
        token_for: TokenFor = "changes" if token is None else "all"
        self._client = create_app(control, hosts=hosts, token=token or OWN, token_for=token_for).test_client()

    async def raw(self, method: str, path: str, body: bytes = b"", **headers: str) -> Response:
        sent = self._headers | {name.replace("_", "-"): value for name, value in headers.items()}
        # A form type on purpose: it is what `curl -d` sends.
        sent.setdefault("Content-Type", "application/x-www-form-urlencoded")
        answer = await self._client.open(path, method=method, data=body, headers=sent)  # type: ignore[call-arg]
        assert isinstance(answer, Response)
        return answer

    async def __call__(self, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, Any]:
        answer = await self.raw(method, path, body, **headers)
        assert answer.content_type == "application/json", answer.content_type
        return answer.status_code, json.loads(await answer.get_data(as_text=True), parse_constant=pytest.fail)


@pytest.fixture
def control() -> FakeControl:
    return FakeControl()


@pytest.fixture
def call(control: FakeControl) -> Caller:
    return Caller(control)


@pytest.mark.parametrize("prefix", ["", "/anomaly"])
async def test_every_path_answers_with_and_without_the_prefix(call: Caller, prefix: str) -> None:
    for path in ("/health", "/status", "/snapshots", "/anomalies", "/incidents", "/feedback", "/models"):
        assert (await call("GET", prefix + path))[0] == 200, path
    told = ("/feedback/7/undo", "/models/1/rollback", "/train-from?source=a")
    for path in ("/checkpoint", "/flush", "/snapshots/verify", *told):
        assert (await call("POST", prefix + path))[0] == 200, path
    assert (await call("POST", prefix + "/feedback", b'{"id": "7", "answer": "normal"}'))[0] == 200
    assert (await call("POST", prefix + "/detect", b'{"log_line": "a"}'))[0] == 200
    assert (await call("POST", prefix + "/detect/batch", b'{"log_lines": []}'))[0] == 200
    assert (await call.raw("GET", prefix + "/metrics")).status_code == 200
    for asset in ("/", "/page.css", "/page.js", "/incidents.js"):
        assert (await call.raw("GET", prefix + asset)).status_code == 200, asset


async def test_health_is_200_for_as_long_as_lines_are_taken_and_judged(control: FakeControl, call: Caller) -> None:
    assert await call("GET", "/health") == (200, control.health())
    control.health_status = "degraded"
    control.reasons = [{"code": "training", "text": "training failed: no space"}]
    status, answer = await call("GET", "/health")
    assert (status, answer["status"], answer["reasons"]) == (200, "degraded", control.reasons)
    control.serving = False  # lines wait
    assert (await call("GET", "/health"))[0] == 503
    for other in ("starting", "stopping"):
        control.health_status = other
        assert (await call("GET", "/health"))[0] == 503, other


async def test_status_passes_every_field_on_and_nan_becomes_null(control: FakeControl, call: Caller) -> None:
    control.status_extra = {"training": {"loss": math.nan, "all": [math.inf, (-math.inf, 1.5)]}}
    status, answer = await call("GET", "/status")
    assert status == 200
    assert answer["training"] == {"loss": None, "all": [None, [None, 1.5]]}
    assert answer["recovery"] == control.status()["recovery"]


async def test_detect_passes_bytes_to_the_control_and_answers_one_object(control: FakeControl, call: Caller) -> None:
    body = json.dumps({"log_line": "é UNION\n", "session_id": "10.0.0.1"}).encode()
    status, answer = await call("POST", "/detect", body)
    assert (status, answer["verdict"]) == (200, "attack")
    assert control.asked == [("detect", ["é UNION".encode()], "10.0.0.1")]


async def test_bytes_that_are_not_utf8_come_back_as_they_went_out(control: FakeControl, call: Caller) -> None:
    line = b"\xff\x00 \xc3\xa9 \x80"
    body = encode_answer({"log_line": line.decode("utf-8", "surrogateescape")})
    status, answer = await call("POST", "/detect", body)
    assert (status, control.asked) == (200, [("detect", [line], None)])
    assert answer["details"]["log_data"].encode("utf-8", "surrogateescape") == line


async def test_batch_counts_and_keeps_the_order(control: FakeControl, call: Caller) -> None:
    status, answer = await call("POST", "/detect/batch", b'{"log_lines": ["a", "UNION", "c"]}')
    assert status == 200
    assert (answer["total_logs"], answer["anomalies_detected"]) == (3, 1)
    assert [one["details"]["log_data"] for one in answer["results"]] == ["a", "UNION", "c"]


DEEP = b"[" * 200_000


@pytest.mark.parametrize(
    ("path", "body", "says"),
    [
        ("/detect", b"", "needs a JSON body"),
        ("/detect", b"{", "not JSON"),
        ("/detect", b"log_line=a", "not JSON"),
        ("/detect", b'{"log_line": "a"} x', "not JSON"),
        ("/detect", DEEP, "nested too deeply"),
        ("/detect", b'{"log_line": "a", "x": ' + DEEP, "nested too deeply"),
        ("/detect", b'{"log_line": NaN}', "NaN is not a JSON value"),
        ("/detect", b'{"log_line": "a", "x": -Infinity}', "-Infinity is not a JSON value"),
        ("/detect", b'{"x": ' + b"1" * 10_000 + b"}", "not JSON"),
        ("/detect", b'{"log_line": "\xff"}', "not UTF-8 at byte 14"),
        ("/detect", b'{"log_line": "\\ud800"}', "lone surrogate at character 0"),
        ("/detect", b'{"log_line": 1}', "Expected `str`, got `int`"),
        ("/detect", b'{"log_line": null}', "Expected `str`, got `null`"),
        ("/detect", b'{"line": "a"}', "missing required field `log_line`"),
        ("/detect", b'{"log_line": "a", "session_id": 7}', "session_id"),
        ("/detect", b'{"log_line": "a\\nb"}', "newline"),
        ("/detect", b'["a"]', "Expected `object`, got `array`"),
        ("/detect?explain=yes", b'{"log_line": "a"}', "explain is 0 or 1"),
        ("/detect/batch", b'{"log_lines": "a"}', "Expected `array`, got `str`"),
        ("/detect/batch", b'{"log_lines": ["a", 1]}', "$.log_lines[1]"),
        ("/feedback", b"", "needs a JSON body"),
        ("/feedback", b'{"id": "7"}', "missing required field `answer`"),
        ("/feedback", b'{"id": 7, "answer": "normal"}', "Expected `str`, got `int`"),
        ("/feedback", b'{"id": "7", "answer": "undo"}', "Invalid enum value 'undo'"),
        ("/feedback", b'{"id": "../7", "answer": "normal"}', "is not an alert's id"),
        ("/feedback", b'{"id": "7", "answer": "normal", "note": 1}', "Expected `str`, got `int`"),
        ("/feedback", b'{"id": "7", "answer": "normal", "note": "%s"}' % (b"a" * 1001), "at most 1000 bytes"),
        ("/feedback", b'{"id": "7", "answer": "normal", "note": "\\udcff"}', "lone surrogate at character 0"),
        ("/feedback", b'{"id": "7", "answer": "a\\udcff"}', "lone surrogate at character 1"),
        ("/train-from", b"a line\n", "source is a name"),
        ("/train-from?source=a/b", b"a line\n", "source is a name"),
        ("/train-from?source=a&last=", b"a line\n", "last is 0 or 1"),
    ],
)
async def test_a_bad_body_gets_400_and_one_clear_sentence(
    control: FakeControl, call: Caller, path: str, body: bytes, says: str, caplog: pytest.LogCaptureFixture
) -> None:
    status, answer = await call("POST", path, body)
    assert status == 400, answer
    assert says in answer["error"]["message"] and "\n" not in answer["error"]["message"]
    assert control.asked == [] and caplog.text == ""


async def test_an_oversized_body_gets_413(control: FakeControl, call: Caller) -> None:
    status, answer = await call("POST", "/detect", b'"' + b"a" * MAX_BODY_BYTES + b'"')
    assert (status, answer["error"]["code"]) == (413, "too_large")
    many = json.dumps({"log_lines": [""] * 10_001}).encode()
    assert (await call("POST", "/detect/batch", many))[1]["error"]["code"] == "too_many_lines"
    assert control.asked == []


async def test_a_post_that_needs_no_body_takes_any(control: FakeControl, call: Caller) -> None:
    assert (await call("POST", "/checkpoint", b"{not json"))[0] == 200
    assert (await call("POST", "/flush", b""))[0] == 200
    assert control.asked == ["checkpoint", "flush"]


async def test_get_never_changes_state(control: FakeControl, call: Caller) -> None:
    told = ("/feedback/7/undo", "/models/1/rollback", "/train-from?source=a&last=1")
    for path in ("/checkpoint", "/flush", "/detect", "/detect/batch", "/snapshots/verify", *told):
        response = await call.raw("GET", path)
        assert response.status_code == 405 and "POST" in response.headers["Allow"], path
    assert control.asked == []


async def test_errors_of_the_framework_have_the_form_of_the_api(call: Caller) -> None:
    assert await call("GET", "/nothing") == (
        404,
        {"error": {"code": "not_found", "message": "there is nothing at this path"}},
    )
    assert (await call("POST", "/status"))[1]["error"]["code"] == "method_not_allowed"
    assert (await call("GET", "/snapshots/..%2f..%2fetc%2fpasswd"))[0] == 404


async def test_the_daemon_s_own_refusals_pass_through(control: FakeControl, call: Caller) -> None:
    control.error = unavailable()
    assert await call("POST", "/detect", b'{"log_line": "a"}') == (
        503,
        {"error": {"code": "starting", "message": "the daemon is still loading what it knows"}},
    )


async def test_a_bug_is_answered_500_without_its_text_and_logged(
    control: FakeControl, call: Caller, caplog: pytest.LogCaptureFixture
) -> None:
    control.error = KeyError("internal matter")
    status, answer = await call("GET", "/status")
    assert (status, answer["error"]["code"]) == (500, "internal")
    assert "internal matter" not in json.dumps(answer) and "internal matter" in caplog.text


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:8765", "127.0.0.1:8765", "127.8.9.1", "[::1]:8765", "logs.example"]
)
async def test_hosts_that_are_served(control: FakeControl, host: str) -> None:
    call = Caller(control, hosts=("Logs.Example",))
    assert (await call("GET", "/status", Host=host))[0] == 200


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "localhost.evil.example", "10.0.0.1", "", "a@localhost", "localhost/x"),
        *("localhost:x", "0.0.0.0", "localhost:80:80", "2130706433"),
    ],
)
async def test_foreign_hosts_are_refused(control: FakeControl, host: str) -> None:
    status, answer = await Caller(control, hosts=("logs.example",))("POST", "/checkpoint", Host=host)
    assert (status, answer["error"]["code"]) == (421, "foreign_host")
    assert control.asked == []


@pytest.mark.parametrize(
    ("origin", "host", "status"),
    [
        ("http://127.0.0.1:8765", "127.0.0.1:8765", 200),
        ("https://logs.example", "127.0.0.1:8765", 200),
        ("http://127.0.0.1:3000", "127.0.0.1:8765", 403),
        ("https://evil.example", "127.0.0.1:8765", 403),
        ("null", "127.0.0.1:8765", 403),
        ("http://[", "127.0.0.1:8765", 403),
        ("", "127.0.0.1:8765", 403),
    ],
)
async def test_foreign_origins_are_refused(control: FakeControl, origin: str, host: str, status: int) -> None:
    call = Caller(control, hosts=("logs.example",))
    assert (await call("POST", "/checkpoint", Host=host, Origin=origin))[0] == status
    assert control.asked == (["checkpoint"] if status == 200 else [])


async def test_a_token_is_asked_for_as_bearer_or_basic(
    control: FakeControl, autojump_clock: trio.testing.MockClock
) -> None:
    call = Caller(control, token="s3cret")
    refused = await call.raw("GET", "/status")
    assert (refused.status_code, refused.headers["WWW-Authenticate"].split()[0]) == (401, "Basic")
    for wrong in (
        "Bearer",
        "Bearer nope",
        "Bearer s3cret2",
        "Basic czNjcmV0",
        "Basic !",
        "Digest s3cret",
        "é",
    ):
        assert (await call("GET", "/status", Authorization=wrong))[0] == 401, wrong
    assert (await call("GET", "/status", Authorization="Bearer s3cret"))[0] == 200
    assert (await call("GET", "/status", Authorization="Basic YW55OnMzY3JldA=="))[0] == 200  # any:s3cret


async def test_anomalies_take_an_id_and_a_limit(control: FakeControl, call: Caller) -> None:
    control.flagged = [record(n) for n in range(5)]
    assert [r["line"] for r in (await call("GET", "/anomalies?limit=2"))[1]["anomalies"]] == [3, 4]
    await call("GET", "/anomalies?after=1207.1")
    assert control.asked == [("anomalies", None, 2), ("anomalies", "1207.1", 100)]
    for bad in ("limit=0", "limit=1001", "limit=x", "limit=-1", "limit=%C2%B2", "after=../x", "after="):
        assert (await call("GET", f"/anomalies?{bad}"))[0] == 400, bad


async def test_a_long_list_is_encoded_in_small_pieces_and_is_the_same_json(control: FakeControl, call: Caller) -> None:
    control.flagged = [record(n, text="\x01" * 2500, score=math.nan) for n in range(1000)]
    control.grouped = [incident(n) for n in range(4096)]
    for name, items, path in (
        ("anomalies", control.flagged, "/anomalies?limit=3"),
        ("incidents", control.grouped, "/incidents?limit=200"),
    ):
        pieces = [piece async for piece in ListBody(name, items, {"more": 1})]
        whole = encode_answer({name: items, "more": 1})
        assert b"".join(pieces) == whole + b"\n"
        longest = max(len(encode_answer(each)) for each in items)
        assert max(map(len, pieces)) < PIECE_BYTES + longest + 2 and len(whole) > 20 * PIECE_BYTES
        answer = await call.raw("GET", path)
        assert answer.content_type == "application/json"
        some = items[-3:] if name == "anomalies" else items[:200]
        assert await answer.get_data() == encode_answer({name: some}) + b"\n"
    assert b"".join([piece async for piece in ListBody("x", [], {})]) == b'{"x":[]}\n'


async def test_one_alert_is_read_by_its_id(control: FakeControl, call: Caller) -> None:
    assert await call("GET", "/anomalies/1207.1") == (200, {"id": "1207.1", "flagged": True})
    assert control.asked == [("anomaly", "1207.1")]
    assert (await call("GET", "/anomalies/..%2Fstatus"))[0] == 404
    assert (await call("GET", "/anomalies/x"))[0] == 404


async def test_snapshots_are_listed_and_verified(control: FakeControl, call: Caller) -> None:
    control.broken_snapshot = "checksum mismatch"
    listed = (await call("GET", "/snapshots"))[1]["snapshots"]
    verified = (await call("POST", "/snapshots/verify"))[1]["snapshots"]
    assert [one["name"] for one in listed] == [one["name"] for one in verified]
    assert [one["error"] for one in verified] == ["checksum mismatch", None]


async def test_snapshots_are_pinned_and_restored_by_names_that_are_names(control: FakeControl, call: Caller) -> None:
    name = "snapshot-00000000000000000812.msgpack"
    assert (await call("POST", f"/snapshots/{name}/pin"))[1] == {"name": name, "pinned": True}
    assert (await call("POST", f"/anomaly/snapshots/{name}/unpin"))[1] == {"name": name, "pinned": False}
    assert (await call("POST", f"/snapshots/{name}/restore"))[1]["line"] == 51234
    assert [asked for asked in control.asked if asked != "checkpoint"] == [
        ("pin", name), ("unpin", name), ("restore", name)
    ]  # fmt: skip
    control.asked.clear()
    for bad in ("..%2f" + name, "%2e%2e", "lock", name + ".pin", name + "%00", name + "%0a", "x" * 5000):
        for action in ("pin", "unpin", "restore"):
            status, body = await call("POST", f"/snapshots/{bad}/{action}")
            assert (status, body["error"]["code"]) == (404, "not_found"), bad
    assert (await call("GET", f"/snapshots/{name}/restore"))[0] == 405
    assert control.asked == []
    control.error = ControlError(409, "damaged", "nothing was restored: checksum mismatch")
    assert (await call("POST", f"/snapshots/{name}/restore"))[0] == 409


async def test_detect_explains_when_it_is_asked_to(control: FakeControl, call: Caller) -> None:
    status, answer = await call("POST", "/detect?explain=1", b'{"log_line": "a"}')
    assert status == 200 and [one["p"] for one in answer["explain"]["expected"]] == [0.71, 0.2, 0.0004]
    assert "explain" not in (await call("POST", "/detect?explain=0", b'{"log_line": "a"}'))[1]
    assert control.asked == [("detect", [b"a"], None, "explain"), ("detect", [b"a"], None)]


async def test_an_alert_is_answered_and_the_answer_undone(control: FakeControl, call: Caller) -> None:
    body = b'{"id": "1207.1", "answer": "normal", "note": "deploy of \xc3\xa9"}'
    status, answer = await call("POST", "/feedback", body)
    assert (status, answer["answer"], answer["kind"], answer["line"]) == (200, "normal", "new", 51234)
    assert (await call("GET", "/feedback"))[1]["feedback"][0]["id"] == "1207.1"
    assert (await call("POST", "/feedback/1207.1/undo"))[1]["answer"] == "undo"
    assert control.asked == [("feedback", "1207.1", "normal", "deploy of é"), ("undo", "1207.1")]
    for bad in ("x", "1.", "1.2.3", "-1", "1" * 40, "%2e%2e"):
        status, answer = await call("POST", f"/feedback/{bad}/undo")
        assert (status, answer["error"]["code"]) == (404, "not_found"), bad
    control.error = ControlError(404, "gone", "its record was rotated away")
    assert (await call("POST", "/feedback", body)) == (
        404,
        {"error": {"code": "gone", "message": "its record was rotated away"}},
    )


async def test_a_page_of_another_site_cannot_answer_for_the_operator(control: FakeControl, call: Caller) -> None:
    body = b'{"id": "7", "answer": "normal"}'
    for path in ("/feedback", "/feedback/7/undo", "/models/1/rollback", "/train-from?source=a"):
        assert (await call("POST", path, body, Origin="https://evil.example"))[0] == 403, path
    assert control.asked == []


async def test_incidents_are_listed_newest_first_up_to_a_limit(control: FakeControl, call: Caller) -> None:
    control.grouped = [incident(900), incident(7, digest=True)]
    assert (await call("GET", "/incidents"))[1] == {"incidents": control.grouped}
    assert [one["id"] for one in (await call("GET", "/incidents?limit=1"))[1]["incidents"]] == ["900"]
    assert control.asked == [("incidents", 100), ("incidents", 1)]
    for bad in ("0", "4097", "x"):
        assert (await call("GET", f"/incidents?limit={bad}"))[0] == 400, bad


async def test_models_are_listed_and_rolled_back_by_generation(control: FakeControl, call: Caller) -> None:
    listed = (await call("GET", "/models"))[1]["models"]
    assert [(one["generation"], one["in_force"], one["promoted"]) for one in listed] == [
        (3, True, True), (2, False, False), (1, False, True),
    ]  # fmt: skip
    assert (await call("POST", "/models/1/rollback"))[1]["name"] == "model-1-a.pt"
    for bad in ("0", "x", "-1", "9" * 5000, "model-1-a.pt", "%2e%2e"):
        status, answer = await call("POST", f"/models/{bad}/rollback")
        assert (status, answer["error"]["code"]) == (404, "not_found"), bad
    assert control.asked == [("rollback", 1)]


async def test_vouched_lines_are_raw_bytes_in_chunks(control: FakeControl, call: Caller) -> None:
    first = await call("POST", "/train-from?source=train-1", b"one\n\xff union\nha")
    last = await call("POST", "/train-from?source=train-1&last=1", b"lf")
    assert (first, last) == (
        (200, {"lines": 2, "rule_hits": 1, "sessions": 1}),
        (200, {"lines": 1, "rule_hits": 0, "sessions": 0}),
    )
    assert control.vouched == b"one\n\xff union\nhalf"
    assert (await call("POST", "/train-from?source=a", b"x" * (MAX_CHUNK_BYTES + 1)))[1]["error"]["code"] == "too_large"
    assert len(control.asked) == 2


async def test_metrics_count_incidents_answers_refusals_and_evictions(control: FakeControl, call: Caller) -> None:
    text = await (await call.raw("GET", "/metrics")).get_data(as_text=True)
    for sample in (
        "vigild_incidents_opened_total 9.0", "vigild_incidents_open 2.0", "vigild_incidents_digest_total 3.0",
        "vigild_incidents_evicted_total 1.0", "vigild_answers 4.0", "vigild_admitted_causes 5.0",
        "vigild_templates_evicted_total 6.0", "vigild_sessions_evicted_total 7.0", "vigild_sources_evicted_total 8.0",
        "vigild_answers_dropped_total 11.0", "vigild_admitted_dropped_total 12.0",
        "vigild_models_refused_total 1.0", "vigild_vouched_rule_hits_total 3.0", "vigild_model_generation 3.0",
    ):  # fmt: skip
        assert f"{sample}\n" in text, sample


async def test_metrics_come_from_the_status(control: FakeControl, call: Caller) -> None:
    control.status_extra = {"recovery": {"lost_lines": None}}
    response = await call.raw("GET", "/metrics")
    text = await response.get_data(as_text=True)
    assert response.content_type.startswith("text/plain; version=0.0.4")
    assert "vigild_lines_total 51234.0\n" in text and "vigild_lines_future_total 2.0\n" in text
    assert 'vigild_phase{phase="training"} 1.0\n' in text
    assert "vigild_checkpoint_lines_at_risk" not in text and "vigild_lines_at_risk 1234.0\n" in text
    assert "lost_lines" not in text  # null has no sample


async def test_metrics_have_every_reason_to_be_degraded_and_serving_is_what_health_says(
    control: FakeControl, call: Caller
) -> None:
    async def samples() -> list[str]:
        return (await (await call.raw("GET", "/metrics")).get_data(as_text=True)).splitlines()

    assert "vigild_serving 1.0" in await samples()
    assert {f'vigild_degraded{{reason="{code}"}} 0.0' for code in CODES} <= set(await samples())
    control.health_status, control.reasons = "degraded", [{"code": "limits", "text": "all are taken"}]
    control.status_extra = {
        "training": {"failures_total": 4, "withdrawals": 2}, "checkpoint": {"failures": 3},
        "alarms": {"records_lost": 5, "records_waiting": 6},
        "ingest": {"connections_waiting": True, "connections_gave_way": 7, "accept_errors": 8},
    }  # fmt: skip
    found = await samples()
    for sample in (
        'vigild_degraded{reason="limits"} 1.0', 'vigild_degraded{reason="training"} 0.0', "vigild_serving 1.0",
        "vigild_training_failures_total 4.0", "vigild_member_withdrawals_total 2.0",
        "vigild_checkpoint_failures_total 3.0", "vigild_records_lost_total 5.0", "vigild_records_waiting 6.0",
        "vigild_connections_waiting 1.0", "vigild_connections_gave_way_total 7.0", "vigild_accept_errors_total 8.0",
    ):  # fmt: skip
        assert sample in found, sample
    control.serving = False
    assert "vigild_serving 0.0" in await samples()


async def test_while_the_state_is_read_unknown_values_have_no_sample(control: FakeControl, call: Caller) -> None:
    control.health_status = "starting"
    control.status_extra = {"logs_processed": 0, "vocabulary_size": 0, "training": {}, "alarms": {}}
    text = await (await call.raw("GET", "/metrics")).get_data(as_text=True)
    assert "vigild_lines_total" not in text and "vigild_templates " not in text
    assert "vigild_serving 0.0\n" in text and 'vigild_phase{phase="training"} 0.0\n' in text
    control.status_extra = {"logs_processed": 700, "reading": {"percent": 40.0, "lines_to_replay": 300}}
    text = await (await call.raw("GET", "/metrics")).get_data(as_text=True)
    assert "vigild_lines_total 700.0\n" in text and "vigild_lines_to_replay 300.0\n" in text


async def test_every_answer_forbids_what_the_page_does_not_need(call: Caller) -> None:
    for path in ("/", "/status", "/nothing"):
        headers = (await call.raw("GET", path)).headers
        assert headers["Content-Security-Policy"].startswith("default-src 'none'")
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert "Access-Control-Allow-Origin" not in headers


async def test_events_send_heartbeats_records_and_the_end(
    control: FakeControl, autojump_clock: trio.testing.MockClock
) -> None:
    streams = event_streams.Streams(control)
    async with streams.open_stream(everything=True, unix=False) as stream:
        assert control.asked == [("events", True)]
        assert await anext(stream) == b"retry: 2000\n: connected\n\n"
        before = trio.current_time()
        assert await anext(stream) == b": still here\n\n"
        assert trio.current_time() - before == pytest.approx(event_streams.HEARTBEAT_SECONDS)
        control.publish(record(1, text="\u2028\n\udcff", score=math.nan))
        control.publish({"left_out": 3})
        first, second, rest = (await anext(stream)).split(b"\n\n")
        assert first.startswith(b'id: 1\ndata: {"id":"1"') and first.count(b"\n") == 1
        assert decode_body(first.partition(b"data: ")[2], dict[str, Any])["score"] is None
        assert (second, rest) == (b'data: {"left_out":3}', b"")
        control.stop()
        with pytest.raises(StopAsyncIteration):
            await anext(stream)
    assert control.streams == 0


async def test_head_of_events_does_not_open_a_stream(control: FakeControl, call: Caller) -> None:
    assert (await call.raw("HEAD", "/events")).status_code == 200
    assert (await call("GET", "/events?all=yes"))[0] == 400
    assert control.asked == []
