"""Formats as stories: lines as programs write them, and what is read from them."""

import gzip
import json
import math
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from detection.formats.fields import Fields
from detection.formats.kinds import KINDS, parse_as_kind, parse_each_by_own_kind, recognise
from detection.formats.requests import request_targets

MAY_2015 = 1_431_857_103.0  # 2015-05-17 10:05:03 UTC
DATA = Path("../shared/data")


def read(kind: str, *lines: bytes, clock: float = MAY_2015) -> Fields:
    assert recognise(lines) == kind
    return parse_as_kind(kind, lines, clock=clock)


# --- access logs ---


def test_a_combined_line_gives_client_time_request_and_agent() -> None:
    fields = read(
        "access",
        b'83.149.9.216 - - [17/May/2015:10:05:03 +0000] "GET /presentations/kibana-search.png HTTP/1.1" 200 '
        b'203023 "http://semicomplete.com/presentations/" "Mozilla/5.0 (Macintosh)"',
    )
    assert (fields.kind, fields.family) == ("access", "access")
    assert fields.times.tolist() == [MAY_2015]
    assert fields.keys == [b"83.149.9.216"]
    assert fields.contents == [b"GET /presentations/kibana-search.png 200"]
    assert fields.agents == [b"Mozilla/5.0 (Macintosh)"]
    assert fields.errors.tolist() == [False]


def test_query_and_fragment_stay_out_of_contents_but_reach_the_rules() -> None:
    fields = read("access", b'::1 - - [17/May/2015:12:05:03 +0200] "GET /a?id=1\'--#x HTTP/1.0" 404 -')
    assert fields.keys == [b"::1"]
    assert fields.contents == [b"GET /a 404"]
    assert fields.targets == [b"/a?id=1'--#x"]
    assert fields.times.tolist() == [MAY_2015]
    assert fields.errors.tolist() == [True]


@pytest.mark.parametrize(
    ("line", "client"),
    [
        (b'www.crowdsec.net 1.2.3.4 - - [08/Jun/2020:08:04:43 +0000] "GET / HTTP/1.1" 200 5', b"1.2.3.4"),
        (
            b'localhost:443 2001:db8::7 - jo [08/Jun/2020:08:04:43 +0000] "GET / HTTP/1.1" 200 5',
            b"2001:db8::7",
        ),
        (b'10.0.0.1 - mary ann [08/Jun/2020:08:04:43 +0000] "GET / HTTP/1.1" 200 5 "" ""', b"10.0.0.1"),
        (
            b'172.17.0.1 - - [08/Dec/2021:09:16:05 +0000] "GET / HTTP/1.1" 200 4 "-" "-" 500 "a@b" 0ms',
            b"172.17.0.1",
        ),
        (b'host.example.org - - [08/Jun/2020:08:04:43 +0000] "GET / HTTP/1.1" 304 -', b"host.example.org"),
    ],
)
def test_variants_of_the_access_log_keep_their_client(line: bytes, client: bytes) -> None:
    fields = read("access", line)
    assert fields.keys == [client]
    assert fields.contents[0].startswith(b"GET / ")


@pytest.mark.parametrize("request_", [b"-", b"", b"\\x16\\x03\\x01\\x02", b"GET", b"hello there"])
def test_a_broken_request_is_one_event_and_a_whole_target(request_: bytes) -> None:
    fields = read("access", b'1.2.3.4 - - [17/Oct/2023:05:57:49 +1100] "' + request_ + b'" 400 226 "-" "-"')
    assert fields.contents == [b"- - 400"]
    assert fields.targets == [request_.replace(b"\\x16\\x03\\x01\\x02", b"\x16\x03\x01\x02")]


def test_escaped_quotes_do_not_end_a_request_or_an_agent_and_are_undone() -> None:
    fields = read(
        "access",
        rb'1.2.3.4 - - [17/May/2015:10:05:03 +0000] "GET /?q=\"><script>\x22 HTTP/1.1" 200 1 "-" "a \"b\" c"',
    )
    assert fields.targets == [b'/?q="><script>"']
    assert fields.agents == [b'a "b" c']


def test_a_backslash_that_is_no_server_escape_stays() -> None:
    request = rb"GET /a\dir?q=\u0027\\u0027\x5cu0027\t HTTP/1.1"
    fields = read("access", b'::1 - - [17/May/2015:10:05:03 +0000] "' + request + rb'" 200 1 "-" "c\d \"e\""')
    assert fields.contents == [b"GET /a\\dir 200"]
    assert fields.targets == [b"/a\\dir?q=\\u0027\\u0027\\u0027 "]
    assert fields.agents == [b'c\\d "e"']


@pytest.mark.parametrize(
    ("behind_status", "agent"),
    [
        (b'1 "-" "curl/8"', b"curl/8"),
        (b'1 "-" "curl/8" ', b"curl/8"),
        (b'1 "-" "curl/8" "10.0.0.1, 10.0.0.2" rt=0.1 uct="0.000" - [web-80]', b"curl/8"),
        (b'1 "-" "curl/8" "a \\" b" "c"', b"curl/8"),
        (b"1", b""),
        (b'1 "-"', b""),
        (b'1 "-" "x" sqlmap/1"', b'x" sqlmap/1"'),
        (b'1 "-" ""><b>"', b'"><b>"'),
        (b'1 "-" "x"y" "10.0.0.1"', b'x"y" "10.0.0.1"'),
        (b'1 "a"b" "curl/8"', b' "a"b" "curl/8"'),
        (b'1 "-" "cut', b' "-" "cut'),
    ],
)
def test_a_quote_that_breaks_the_fields_leaves_all_that_follows_to_the_agent(
    behind_status: bytes, agent: bytes
) -> None:
    fields = read("access", b'::1 - - [17/May/2015:10:05:03 +0000] "GET /a HTTP/1.1" 200 ' + behind_status)
    assert fields.agents == [agent]
    assert (fields.keys, fields.targets) == ([b"::1"], [b"/a"])


def test_a_quote_left_unescaped_by_the_server_does_not_lose_the_line() -> None:
    fields = read("access", b'1.2.3.4 - - [17/May/2015:10:05:03 +0000] "GET /a"b HTTP/1.1" 404 1 "-" "x"')
    assert fields.contents == [b'GET /a"b 404']


def test_a_line_that_is_no_access_line_is_still_a_line() -> None:
    stray = b"[Fri Oct 08 17:08:41 2021] [core:error] AH00126: Invalid URI"
    fields = parse_as_kind("access", [stray], clock=MAY_2015)
    assert math.isnan(fields.times[0])
    assert (fields.keys, fields.contents, fields.targets) == ([b""], [stray], [stray])
    assert fields.errors.tolist() == [True]


# --- syslog ---


def test_syslog_without_a_year_takes_the_one_nearest_to_the_clock() -> None:
    december = b"Dec 31 23:59:59 combo sshd(pam_unix)[19939]: check pass; user unknown"
    new_year = 1_420_070_400.0  # 2015-01-01
    assert read("syslog", december, clock=new_year).times.tolist() == [new_year - 1]
    assert math.isnan(read("syslog", december, clock=math.nan).times[0])


def test_29_february_is_looked_for_in_leap_years_only() -> None:
    fields = read("syslog", b"Feb 29 00:00:00 combo cron: tick", clock=MAY_2015)
    assert fields.times.tolist() == [1_456_704_000.0]  # 2016


def test_syslog_contents_hold_the_program_and_the_key_has_no_pid() -> None:
    fields = read(
        "syslog",
        b"Jun  9 06:06:20 combo ftpd[23140]: connection from 192.0.2.9",
        b"Jun 9 06:06:20 h kernel: [ 12.5] oom",
    )
    assert fields.contents == [b"ftpd: connection from 192.0.2.9", b"kernel: oom"]
    assert fields.keys == [b"combo ftpd", b"h kernel"]
    assert fields.targets[0] == b"connection from 192.0.2.9"
    assert fields.times[0] == fields.times[1]


def test_the_priority_decides_what_is_an_error() -> None:
    error, notice = b"<11>Oct 11 22:14:15 mymachine su: fine", b"<13>Oct 11 22:14:15 mymachine su: error: not"
    assert read("syslog", error, notice).errors.tolist() == [True, False]


def test_rfc_5424_with_structured_data() -> None:
    line = (
        b"<165>1 2003-10-11T22:14:15.003-07:00 mymachine.example.com evntslog 111 ID47 "
        b'[exampleSDID@32473 iut="3" eventSource="App \\"x\\" ]"][b@1 c="d"] \xef\xbb\xbfAn application event'
    )
    fields = read("syslog", line)
    assert fields.contents == [b"evntslog: An application event"]
    assert fields.keys == [b"mymachine.example.com evntslog"]
    assert fields.times.tolist() == [1_065_935_655.003]


def test_rsyslog_writes_iso_times() -> None:
    fields = read("syslog", b"2023-08-17T16:55:35.689651+02:00 mono endlessh[34256]: ACCEPT host=::ffff:192.0.2.1")
    assert fields.keys == [b"mono endlessh"]
    assert fields.times.tolist() == [1_692_284_135.689651]


def test_an_access_line_sent_through_syslog_is_read_as_one() -> None:
    fields = read(
        "syslog",
        b'May 17 10:05:03 web nginx[7]: 192.0.2.1 - - [17/May/2015:10:05:03 +0000] "GET /a?b HTTP/1.1" 500 1 "-" "x"',
    )
    assert (fields.contents, fields.targets, fields.keys) == ([b"GET /a 500"], [b"/a?b"], [b"192.0.2.1"])
    assert fields.errors.tolist() == [True]


@pytest.mark.parametrize("head", [b"May 17 10:05:03 web nginx[7]: ", b"<190>May 17 10:05:03 web nginx: "])
def test_a_log_of_access_lines_through_syslog_is_syslog_and_each_is_its_client_s(head: bytes) -> None:
    request = b'192.0.2.1 - - [17/May/2015:10:05:03 +0000] "GET /a?b HTTP/1.1" 500 1 "-" "x"'
    fields = read("syslog", *[head + request] * 3)
    assert (fields.contents, fields.keys) == ([b"GET /a 500"] * 3, [b"192.0.2.1"] * 3)


# --- several logs on one connection ---

GET = b'192.0.2.1 - - [17/May/2015:10:05:03 +0000] "GET /a?b HTTP/1.1" 500 1 "-" "x"'
OF_A_HOST = b"May 17 10:05:03 web named[7]: starting BIND 9.2.3 -t /var/named/chroot"
OF_NGINX = b'2015/05/17 10:05:03 [error] 7#0: *1 open() "/srv/etc/passwd" failed'


def each(kind: str, *lines: bytes) -> list[tuple[bytes, bytes, float, bool]]:
    """Contents, key, time and whether it is a request, of each line."""
    found: dict[int, tuple[bytes, bytes, float, bool]] = {}
    for rows, fields in parse_each_by_own_kind(kind, lines, clock=MAY_2015):
        web, _ = request_targets(fields)
        for at, row in enumerate(rows.tolist()):
            assert row not in found
            found[row] = (fields.contents[at], fields.keys[at], float(fields.times[at]), bool(web[at]))
    return [found[row] for row in range(len(lines))]


@pytest.mark.parametrize("kind", ["access", "syslog", "timestamped", "plain", "json", "container"])
def test_an_access_line_is_one_whatever_else_its_connection_carries(kind: str) -> None:
    assert each(kind, OF_NGINX, GET, OF_NGINX)[1] == (b"GET /a 500", b"192.0.2.1", MAY_2015, True)


def test_other_lines_among_access_lines_are_no_requests_and_read_as_what_they_are() -> None:
    host, nginx, blank = each("access", GET, OF_A_HOST, OF_NGINX, b"")[1:]
    assert host == (b"named: starting BIND 9.2.3 -t /var/named/chroot", b"web named", MAY_2015, False)
    assert nginx == (b'[error] open() "/srv/etc/passwd" failed', b"", MAY_2015, False)
    assert blank[0] == b"" and not blank[3]


def test_an_access_line_that_was_cut_is_still_looked_at_as_a_request() -> None:
    assert each("access", GET[:60])[0][3]


# --- text with times ---


@pytest.mark.parametrize(
    ("line", "seconds", "contents"),
    [
        (b"2015-07-29 17:41:41,536 - INFO  [main] - hello", 1438191701.536, b"INFO  [main] - hello"),
        (b"081109 203615 148 INFO dfs.DataNode: going", 1226262975.0, b"INFO dfs.DataNode: going"),
        (b"17/06/09 20:10:40 INFO executor.Backend: go", 1497039040.0, b"INFO executor.Backend: go"),
        (b"[Sun Dec 04 04:47:44 2005] [error] mod_jk child", 1133671664.0, b"[error] mod_jk child"),
        (b"[Wed Jul 05 09:19:24.5 2023] [x:error] [pid 1:tid 2] AH1", 1688548764.5, b"[x:error] AH1"),
        (b"03-17 16:13:38.811  1702  2395 D Window: x", 1426608818.811, b"D Window: x"),
        (b"2023/09/23 09:58:51 [error] 298#298: *1093 open() failed", 1695463131.0, b"[error] open() failed"),
        (b"2022-08-27T14:22:01.613Z INFO up", 1661610121.613, b"INFO up"),
        (b"2022-08-27 14:22:01 +0200 INFO up", 1661602921.0, b"INFO up"),
        (b"2025-08-13 01:45:01.123 PDT [12345] LOG:  starting", 1755074701.123, b"LOG:  starting"),
        (b"28-Mar-2022 07:01:48.459 INFO [main] x", 1648450908.459, b"INFO [main] x"),
        (b"[10/Feb/2024:21:23:32 +0100] mx 0.227", 1707596612.0, b"mx 0.227"),
        (b"20120702.102240,672:DEBUG:foo", 1341224560.672, b"DEBUG:foo"),
        (b"1428634687123 Hello", 1428634687.123, b"Hello"),
        (b"[1427925600] CURRENT HOST STATE: up", 1427925600.0, b"CURRENT HOST STATE: up"),
        (b"E0517 15:04:22.619632 1952452992 log.cc:253] Log", 1431875062.619632, b"E log.cc:253] Log"),
        (b"(N) 2024-11-26T01:26:58 - WebAPI login success", 1732584418.0, b"(N) WebAPI login success"),
        (b"type=SYSCALL msg=audit(1684329817.579:2995): arch=c", 1684329817.579, b"type=SYSCALL arch=c"),
        (b"16:42:09.486 INFO  t.c.Travel#115 go", 1431880929.486, b"INFO  t.c.Travel#115 go"),
        (
            b"- 1117838570 2005.06.03 R02-M1 2005-06-03-15.42.50.675872 R02-M1 RAS KERNEL INFO parity error",
            1117838570.0,
            b"RAS KERNEL INFO parity error",
        ),
        (b"2021-11-09  5:13:11 8 [Warning] Access denied", 1636434791.0, b"[Warning] Access denied"),
        (b"2024-01-01 00:00:00 3 users logged in", 1704067200.0, b"3 users logged in"),
    ],
)  # fmt: skip
def test_times_of_every_kind_are_read_and_cut_out(line: bytes, seconds: float, contents: bytes) -> None:
    fields = read("timestamped", line)
    assert fields.times[0] == pytest.approx(seconds, abs=1e-6)
    assert fields.contents == [contents]
    assert fields.keys == [b""]


@pytest.mark.parametrize("line", [b"2015-02-30 10:00:00 x", b"2015-13-01 10:00:00 x", b"2015-01-01 29:00:00 x"])
def test_an_impossible_time_is_no_time(line: bytes) -> None:
    assert math.isnan(parse_as_kind("timestamped", [line], clock=MAY_2015).times[0])


@pytest.mark.parametrize(
    ("message", "error"),
    [
        (b"ERROR [main] boom", True),
        (b"INFO [main] no ERROR here", False),
        (b"[notice] workerEnv in error state 6", False),
        (b"local.ERROR: Target class", True),
        (b"E AndroidRuntime: FATAL EXCEPTION", True),
        (b"[ERR] no", True),
        (b"error: PAM: authentication failure", True),
        (b"an error may be anywhere in prose", False),
        (b"Interrupted while waiting", False),
    ],
)
def test_errors_are_told_by_the_first_level_word(message: bytes, error: bool) -> None:
    assert parse_as_kind("timestamped", [b"2015-07-29 17:41:41 " + message], clock=MAY_2015).errors.tolist() == [error]


# --- JSON, logfmt, containers ---


def test_a_container_line_in_json_is_templated_by_its_text_and_keyed_by_its_trace() -> None:
    fields = read(
        "json",
        b'{"time_unix_nano":1674981729487160534,"stream":"stdout","kubernetes":{"pod_name":"ts-travel2-service",'
        b'"container_name":"server","host":"33.33.33.167"},'
        b'"log":"16:42:09.486 INFO  t.c.Travel2Controller#115 '
        b'TraceID: 6f3cbf058c2765548a39ad724905d6a1 [query]"}',
        b'{"time_unix_nano":1674981729487160534,"kubernetes":{"pod_name":"p","host":"h"},"log":"started"}',
    )
    assert fields.contents[0].startswith(b"INFO  t.c.Travel2Controller#115 TraceID:")
    assert fields.keys == [b"6f3cbf058c2765548a39ad724905d6a1", b"p"]
    assert fields.times.tolist() == [1674981729.4871605] * 2


def test_docker_json_holding_an_access_line_is_read_as_a_request() -> None:
    fields = read(
        "json",
        b'{"log":"192.168.61.205 - - [24/Aug/2021:09:52:13 +0000] \\"GET /a?b=1 HTTP/1.1\\" 404 13 \\"-\\" '
        b'\\"curl\\"\\n","stream":"stdout","time":"2021-08-24T09:52:13.5Z"}',
    )
    assert fields.contents == [b"GET /a 404"]
    assert fields.targets == [b"/a?b=1"]
    assert (fields.keys, fields.agents) == ([b"192.168.61.205"], [b"curl"])
    assert fields.times.tolist() == [1629798733.5]
    assert fields.errors.tolist() == [True]


@pytest.mark.parametrize(
    ("line", "seconds", "contents", "error"),
    [
        (
            b'{"ts": "2013-09-06T20:00:48.124817Z", "logger": "a.b", "lvl": "ERROR", "msg": "trace test"}',
            *(1378497648.124817, b"ERROR a.b trace test", True),
        ),
        (b'{"level":30,"time":1745532517537,"msg":"hi"}', 1745532517.537, b"hi", False),
        (b'{"level":50,"time":1745532517,"msg":"hi\\nthere"}', 1745532517.0, b"hi there", True),
        (
            b'{"t":{"$date":"2022-07-28T18:00:00.903+02:00"},"s":"I","c":"NETWORK","msg":"conn"}',
            *(1659024000.903, b"I NETWORK conn", False),
        ),
        (
            b'{"ClientHost":"192.0.2.1","DownstreamStatus":404,"RequestMethod":"GET","RequestPath":"/x?y",'
            b'"time":"2021-12-08T09:16:05Z"}',
            *(1638954965.0, b"GET /x 404", True),
        ),
        (
            b'{"event_type":"alert","src_port":33270,"timestamp":"2022-07-12T06:22:33.415742+0000"}',
            *(1657606953.415742, b"event_type=alert src_port=33270", False),
        ),
    ],
)  # fmt: skip
def test_json_of_many_loggers(line: bytes, seconds: float, contents: bytes, error: bool) -> None:
    fields = read("json", line)
    assert fields.times[0] == pytest.approx(seconds, abs=1e-6)
    assert fields.contents == [contents]
    assert fields.errors.tolist() == [error]


@pytest.mark.parametrize(
    "line",
    [b'{"msg": ', b"[1]", b'{"msg": "\xff"}', b"[" * 65536, b'{"a":' * 30000, b'{"time": 1e999, "msg": "x"}'],
)
def test_json_that_is_broken_is_a_line_without_a_time(line: bytes) -> None:
    fields = parse_as_kind("json", [line], clock=MAY_2015)
    assert math.isnan(fields.times[0])
    assert len(fields.contents) == 1


def test_logfmt_gives_level_and_message_and_the_request_for_key() -> None:
    fields = read("logfmt", b'time="2021-09-15T21:17:10Z" level=error msg="no \\"pod\\" here" request_id=abc123 x=')
    assert fields.contents == [b'error no "pod" here']
    assert fields.keys == [b"abc123"]
    assert fields.times.tolist() == [1631740630.0]
    assert fields.errors.tolist() == [True]


def test_cri_lines_carry_whatever_the_program_wrote() -> None:
    fields = read(
        "container",
        b'2016-10-06T00:17:09.669794202Z stdout F {"level":"error","msg":"boom"}',
        b'2016-10-06T00:17:09.669794202Z stderr F 192.0.2.7 - - [06/Oct/2016:00:17:09 +0000] "GET / HTTP/1.1" 200 13',
        b"2016-10-06T00:17:09.669794202Z stdout F plain words",
        b"2016-10-06T00:17:09.669794202Z stdout F",
        b"not a container line",
    )
    assert fields.contents == [b"error boom", b"GET / 200", b"plain words", b"", b"not a container line"]
    assert fields.errors.tolist() == [True, False, False, False, False]
    assert fields.keys == [b"", b"192.0.2.7", b"", b"", b""]
    assert np.isnan(fields.times).tolist() == [False, False, False, False, True]


# --- recognising ---


def test_every_kind_but_plain_needs_lines_that_fit() -> None:
    assert recognise([b"", b"\x00\xff", b"hello"]) == "plain"
    assert recognise([b""]) == "plain"
    assert recognise([b"2015-07-29 17:41:41 a", b"\tat x", b"\tat y", b"\tat z"]) == "timestamped"


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(KeyError):
        parse_as_kind("xml", [b"x"], clock=0.0)


FOLDERS = ("formats_crowdsec", "formats_lnav", "formats_logstash", "formats_rfc5424")


@pytest.mark.skipif(not (DATA / FOLDERS[0]).exists(), reason="the collection of real formats is not beside the project")
def test_most_lines_of_500_real_formats_are_given_a_time() -> None:
    lines: defaultdict[str, int] = defaultdict(int)
    timed: defaultdict[str, int] = defaultdict(int)
    for folder in FOLDERS:
        families: defaultdict[str, list[bytes]] = defaultdict(list)
        for row in gzip.open(DATA / folder / "lines.jsonl.gz"):
            sample = json.loads(row)
            families[sample["fmt"]].append(sample["line"].encode().split(b"\n")[0])
        for family in families.values():
            kind = recognise(family[:64])
            lines[kind] += len(family)
            timed[kind] += int(np.isfinite(parse_as_kind(kind, family, clock=1.7e9).times).sum())
    assert set(lines) == set(KINDS)
    assert lines["plain"] < 0.08 * sum(lines.values())
    shares = {kind: timed[kind] / lines[kind] for kind in lines}
    assert shares["access"] > 0.99
    assert min(shares[kind] for kind in ("json", "syslog", "timestamped")) > 0.92
