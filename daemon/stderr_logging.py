"""Our own log: lines on standard error, as a terminal or journald takes them."""

import logging
import os
import sys

_LEVELS = {logging.CRITICAL: 2, logging.ERROR: 3, logging.WARNING: 4, logging.INFO: 6, logging.DEBUG: 7}


def log_to_stderr() -> None:
    """One line an event; under journald with its level, which also knows the time."""
    journal = "JOURNAL_STREAM" in os.environ
    handler = logging.StreamHandler(sys.stderr)
    plain = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    handler.setFormatter(_JournalFormatter() if journal else plain)
    logging.basicConfig(level=logging.INFO, handlers=[handler])


class _JournalFormatter(logging.Formatter):
    """A level prefix on every line, as sd-daemon(3) reads it."""

    def format(self, record: logging.LogRecord) -> str:
        prefix = f"<{_LEVELS.get(record.levelno, 6)}>"
        return "\n".join(prefix + line for line in super().format(record).splitlines())
