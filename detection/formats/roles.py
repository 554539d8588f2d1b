"""Roles of member names in structured logs: which key holds the message, the time, the level...

The names are those that loggers, containers, proxies and cloud services really use. Within a role the earlier
name wins. A name with a dot is a member of a nested object.
"""

import re

_NAMES = {
    "message": "log message msg MESSAGE short_message event_message fields.message @fields.message "
    "@fields.msg",
    "time": "eventtime time_unix_nano timestamp_ns @timestamp timestamp ts time t datetime asctime date_time "
    "eventTime StartUTC start_time started_at EdgeStartTimestamp EdgeEndTimestamp __REALTIME_TIMESTAMP "
    "requestReceivedTimestamp t.$date instant.epochSecond date",
    "level": "level lvl severity log.level levelname loglevel log_level severity_text @fields.lvl s",
    "priority": "PRIORITY",
    "component": "logger logger_name component target c name SYSLOG_IDENTIFIER",
    "trace": "trace_id traceId traceid TraceID trace.id request_id requestId requestid reqId req_id "
    "correlation_id correlationId session_id sessionId session",
    "pod": "kubernetes.pod_name kubernetes.pod.name kubernetes.pod k8s.pod.name pod_name pod",
    "host": "host hostname _HOSTNAME host.name host.hostname kubernetes.host agent.hostname node",
    "container": "kubernetes.container_name container_name container container.name container.id service "
    "service.name app SYSLOG_IDENTIFIER name",
    "request": "request",
    "method": "method request_method RequestMethod ClientRequestMethod http_method request.method",
    "target": "uri request_uri RequestPath ClientRequestURI http_path x-envoy-origin-path "
    "x-envoy-original-path path url request.uri request.url",
    "status": "status status_code statusCode DownstreamStatus EdgeResponseStatus "
    "http_status response_code response.status",
    "agent": "user_agent http_user_agent request_User-Agent ClientRequestUserAgent user-agent ua",
    "client": "remote_addr client_ip ClientHost ClientIP clientip remote_ip remoteAddr request.client_ip "
    "request.remote_ip",
}  # fmt: skip

ROLES: dict[str, list[tuple[str, int]]] = {}
"""Name -> the roles it can have, each with its rank in that role (the smaller wins)."""
for _role, _names in _NAMES.items():
    for _rank, _name in enumerate(_names.split()):
        ROLES.setdefault(_name, []).append((_role, _rank))

NESTED = frozenset(name.split(".")[0] for name in ROLES if "." in name)
"""Names of nested objects that have members with a role."""

BYTE_ROLES = {name.encode(): roles for name, roles in ROLES.items()}

_TRACE = re.compile(
    rb"(?i:trace|request|req|session|correlation)[-_ .]?(?:id|ID|Id)"
    rb"[\"']?\s?[:=]\s?[\"']?([0-9A-Za-z][\w-]{7,63})"
)
# Endings of those names: testing for them with `in` is far cheaper than the search.
_TRACE_HINTS = (b"ceID", b"ceId", b"ce_id", b"ceid", b"stId", b"st_id", b"q_id", b"qId", b"onId", b"on_id")
_TRACE_BYTES = 512


def trace_in(text: bytes) -> bytes:
    """The trace, request or session id in the head of a message, as in `TraceID: 6f3c...`; b"" if there is none."""
    head = text[:_TRACE_BYTES]
    for hint in _TRACE_HINTS:
        if hint in head:
            found = _TRACE.search(head)
            return found[1] if found else b""
    return b""
