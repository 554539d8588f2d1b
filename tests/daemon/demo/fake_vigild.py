"""A program that answers like vigild, for the demonstration's tests: counts lines, trains at once, remembers."""

import hashlib
import json
import os
import signal
import socket
import socketserver
import sys
import threading
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

runtime, state = Path(os.environ["RUNTIME_DIRECTORY"]), Path(sys.argv[sys.argv.index("--state-dir") + 1])
state.mkdir(exist_ok=True)
memory = state / "lines"
lines = int(memory.read_text()) if memory.exists() else 0
tier = "full" if lines else "fresh"
asked_while_training = 0


def digest() -> str:
    return hashlib.sha256(str(lines).encode()).hexdigest()


def status() -> dict[str, Any]:
    global asked_while_training
    trained = lines >= 4000
    training = {"fraction": 0.25, "epoch": 1, "epochs": 4, "error": None}
    if trained and tier == "fresh" and asked_while_training < 2:
        asked_while_training, trained = asked_while_training + 1, False
    return {
        "logs_processed": lines,
        "phase": "ensemble" if trained else "training",
        "training": training,
        "vocabulary_size": 99,
        "recovery": {"tier": tier},
        "state_digest": digest(),
    }


FIND = {
    "line": 7,
    "verdict": "attack",
    "rules": [{"name": "sqli-quote", "type": "sql_injection", "severity": "high"}],
    "members": {"transformer": {"score": 9.0, "p": 0.001}, "rules": {"score": 0.9, "p": None}},
    "closed": False,
    "text": "GET /?id='\x1b[31m",
    "template": "GET / 200",
}


class Handler(BaseHTTPRequestHandler):
    def answer(self) -> dict[str, Any]:
        if self.path == "/status":
            return status()
        if self.path.startswith("/anomalies"):
            return {"anomalies": [FIND]}
        if self.path == "/detect/batch":
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["log_lines"]
            return {"results": [{"verdict": "normal", "anomaly_score": 1 / len(each), "p": 0.1} for each in asked]}
        return {"line": lines, "digest": digest()}

    def do_GET(self) -> None:
        body = json.dumps(self.answer()).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def address_string(self) -> str:
        return "unix"


class LogHandler(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        global lines
        lines += sum(1 for _ in self.rfile)


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True


def stop(number: int, frame: object) -> None:
    memory.write_text(str(lines))
    print("stopped", flush=True)
    os._exit(0)


signal.signal(signal.SIGTERM, stop)
if "refuse" in os.environ.get("FAKE_VIGILD", ""):
    sys.exit("vigild: the settings are wrong")
(runtime / "page.token").write_text("the-token\n")
for name, handler in (("log.sock", LogHandler), ("admin.sock", Handler)):
    (runtime / name).unlink(missing_ok=True)
    server = Server(str(runtime / name), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
    manager.connect(os.environ["NOTIFY_SOCKET"].replace("@", "\0", 1))
    manager.send(b"STATUS=starting")
    manager.send(b"READY=1\nSTATUS=serving")
signal.pause()
