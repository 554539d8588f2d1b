"""Bytes of a log as text to be shown."""

TEXT_BYTES = 8192


def shown_text(text: bytes) -> str:
    """`text` as any JSON reader takes it: bytes that are not UTF-8 become \\xNN. The first TEXT_BYTES of it."""
    return text[:TEXT_BYTES].decode("utf-8", "backslashreplace")
