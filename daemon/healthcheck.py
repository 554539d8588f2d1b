"""`python -m daemon.healthcheck`, the healthcheck of a container. Exits 0 while `GET /health` answers 200, else 1.

Prints the answer. A degraded daemon that still takes and judges lines answers 200, so it is not restarted.
"""

import socket
import sys
from http.client import HTTPConnection, HTTPException
from pathlib import Path

from daemon.default_directories import runtime_directory

ANSWER_SECONDS = 5.0


class _Connection(HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=ANSWER_SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def main() -> int:
    path = runtime_directory() / "admin.sock"
    connection = _Connection(path)
    try:
        connection.request("GET", "/health")
        answer = connection.getresponse()
        body = answer.read(4096).decode("utf-8", "replace").strip()
    except (OSError, HTTPException) as exc:
        print(f"{path}: {exc or type(exc).__name__}")
        return 1
    finally:
        connection.close()
    print(body)
    return 0 if answer.status == 200 else 1


if __name__ == "__main__":
    sys.exit(main())
