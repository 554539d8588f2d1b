"""A log source that knows nothing of vigild: sends a file's lines over a Unix socket, again and again, until its input
ends; then half-closes, waits for the end of the other side, and prints how many lines it sent.

    client.py SOCKET FILE LINES_A_SECOND

Runs in the machine by the machine's own Python.
"""

import itertools
import select
import socket
import sys

PIECE_SECONDS = 0.05


def main() -> None:
    path, file, rate = sys.argv[1:]
    with open(file, "rb") as log:
        lines = itertools.cycle(log.read().splitlines(keepends=True))
    piece = max(int(float(rate) * PIECE_SECONDS), 1)
    sent = 0
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(120.0)
        connection.connect(path)
        while not select.select([sys.stdin], [], [], PIECE_SECONDS)[0]:
            connection.sendall(b"".join(itertools.islice(lines, piece)))
            sent += piece
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1) == b"", "what follows the last line should be the end"
    print(sent)


if __name__ == "__main__":
    main()
