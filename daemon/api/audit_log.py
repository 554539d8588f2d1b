"""One line in the log for each request that changes the state: who, from where, what, and what came of it."""

import logging
from collections.abc import Awaitable, Callable
from urllib.parse import quote

from quart import Response, request

from daemon.api.peers import Peer
from daemon.control.control_interface import ControlError

SHOWN_CHARACTERS = 400  # of the result

log = logging.getLogger(__name__)

Handler = Callable[..., Awaitable[Response]]


def audited_handler(handler: Handler, peer: Callable[[], Peer]) -> Handler:
    """`handler`, whose requests are logged when they have ended, however they end.

    `peer` gives who sent the current one; over TCP it has shown the token.
    """

    async def handle_and_audit(**arguments: str) -> Response:
        outcome = "left before the answer; it may have been done all the same"  # unless it ends
        try:
            response = await handler(**arguments)
            body = await response.get_data(as_text=True)
            outcome = f"{response.status_code} {body.strip()}"
            return response
        except ControlError as error:
            outcome = f"{error.status} {error.code}: {error.message}"
            raise
        except Exception as error:
            outcome = f"failed: {type(error).__name__}"
            raise
        finally:
            who = peer()
            by = who.name if who.over_unix else f"the token from {who.name}"
            log.info("audit: %s: %s: %s", by, requested_path_text(), _audit_result_text(outcome))

    return handle_and_audit


def requested_path_text() -> str:
    """Method, path and query of the current request, as one word each; a body is not in it."""
    query = request.query_string.decode("ascii", "replace")
    path = quote(request.path, errors="replace")[:200]
    return f"{request.method} {path}" + (f"?{quote(query[:100], safe='=&-._')}" if query else "")


def _audit_result_text(text: str) -> str:
    line = text.encode("unicode_escape").decode("ascii")
    return line if len(line) <= SHOWN_CHARACTERS else line[: SHOWN_CHARACTERS - 3] + "..."
