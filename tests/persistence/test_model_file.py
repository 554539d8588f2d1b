import errno
import hashlib
import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from persistence import model_file
from persistence.array_bytes import Value
from persistence.format_preamble import NewerFormatError
from persistence.model_file import ModelError, generation_of_model_file, hash_model, read_model, write_model
from tests.persistence.disks import FaultyDisk, fail_nth
from tests.persistence.test_snapshot_file import same

COLUMNS: dict[str, Value] = {
    "generation": 3,
    "weights.embedding": np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4).T,
    "rings.ensemble": np.array([0.5, np.nan]),
    "vocabulary": np.array([1, 5], dtype=np.int32),
    "scalar": np.array(7, dtype=np.int64),
    "empty": np.zeros((0, 3), np.float32),
    "ids": np.array([1 << 63], dtype=np.uint64),
    "small": np.array([1, 2], dtype=np.uint16),
    "flags": np.array([True, False]),
    "texts": np.array(["GET <*>", "ü"]),
    "keys": np.array([b"a\x00b"]),
    "meta.version": "2.13.0",
    "meta.raw": b"\x00\xff",
    "meta.loss": 0.25,
    "meta.yes": True,
    "none": None,
}


def named(directory: Path, data: bytes) -> Path:
    path = directory / f"model-1-{hashlib.sha256(data).hexdigest()[:16]}.pt"
    path.write_bytes(data)
    return path


def test_every_kind_of_column_comes_back_bit_for_bit(tmp_path: Path) -> None:
    model = write_model(tmp_path, COLUMNS)
    assert model.generation == 3
    assert model.name == f"model-3-{model.sha256[:16]}.pt"
    assert hashlib.sha256((tmp_path / model.name).read_bytes()).hexdigest() == model.sha256
    assert hash_model(tmp_path / model.name) == model
    for sha256 in (None, model.sha256):
        columns = read_model(tmp_path / model.name, sha256)
        assert columns.keys() == COLUMNS.keys()
        for name, value in COLUMNS.items():
            expected = np.array(value, order="C") if isinstance(value, np.ndarray) else value
            assert same(columns[name], expected), name


def test_plain_torch_can_read_it(tmp_path: Path) -> None:
    import torch

    content = torch.load(tmp_path / write_model(tmp_path, COLUMNS).name, weights_only=True)
    assert content["format"] == 1
    assert content["columns"]["weights.embedding"].shape == (4, 3)


def test_damage_is_found_before_anything_is_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    model = write_model(tmp_path, COLUMNS)
    whole = (tmp_path / model.name).read_bytes()

    def load(*_arguments: object, **_options: object) -> None:
        raise AssertionError("unpickled")

    monkeypatch.setattr(torch, "load", load)
    for at in range(0, len(whole), 97):
        data = bytearray(whole)
        data[at] ^= 4
        (tmp_path / model.name).write_bytes(data)
        with pytest.raises(ModelError, match="checksum mismatch"):
            read_model(tmp_path / model.name, None)
    for other in (b"", whole[:1], whole[:-1], whole + b"\0"):
        (tmp_path / model.name).write_bytes(other)
        with pytest.raises(ModelError, match="checksum mismatch"):
            read_model(tmp_path / model.name, model.sha256)
    (tmp_path / model.name).write_bytes(whole)
    with pytest.raises(ModelError, match="checksum mismatch"):
        read_model(tmp_path / model.name, "0" * 64)


def _saved(content: object) -> bytes:
    import torch

    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def _compressed(data: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    return buffer.getvalue()


class _Evil:
    def __reduce__(self) -> tuple[object, ...]:
        return print, ("unpickled",)


def _forgeries() -> dict[str, bytes]:
    import torch

    return {
        "not a zip": b"\x80\x02}.",
        "compressed": _compressed(_saved({"format": 1, "columns": {"a": torch.zeros(9)}})),
        "code": _saved({"format": 1, "columns": {"a": _Evil()}}),
        "a list": _saved([1]),
        "no format": _saved({"columns": {}}),
        "an object as column": _saved({"format": 1, "columns": {"a": [1]}}),
        "a tensor larger than its storage": _saved({"format": 1, "columns": {"a": torch.zeros(1).expand(1 << 30)}}),
        "a wrong shape": _saved(
            {"format": 1, "columns": {"a": {"dtype": "<u8", "shape": [9], "raw": torch.zeros(8, dtype=torch.uint8)}}}
        ),
        "a wrong dtype": _saved(
            {"format": 1, "columns": {"a": {"dtype": "|O8", "shape": [1], "raw": torch.zeros(8, dtype=torch.uint8)}}}
        ),
        "no text": _saved({"format": 1, "columns": {"a": {"text": torch.full((2,), 255, dtype=torch.uint8)}}}),
        "sparse": _saved({"format": 1, "columns": {"a": torch.eye(2).to_sparse()}}),
    }


def test_forgeries_under_their_right_name_are_refused(tmp_path: Path) -> None:
    for what, data in _forgeries().items():
        with pytest.raises(ModelError):
            read_model(named(tmp_path, data), None)
            pytest.fail(what)


def test_an_older_format_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = write_model(tmp_path, {"generation": 1})
    monkeypatch.setattr(model_file, "FORMAT", 2)
    assert read_model(tmp_path / written.name) == {"generation": 1}


def test_a_newer_format_is_refused_and_left_untouched(tmp_path: Path) -> None:
    data = _saved({"format": 2, "columns": {}})
    path = named(tmp_path, data)
    with pytest.raises(NewerFormatError, match="has format 2"):
        read_model(path, None)
    assert path.read_bytes() == data


@pytest.mark.parametrize("generation", [None, 0, -1, True, "1", 1.0])
def test_a_model_without_generation_is_refused(tmp_path: Path, generation: Value) -> None:
    with pytest.raises(ValueError, match="generation"):
        write_model(tmp_path, {"generation": generation})
    with pytest.raises(ValueError, match="name of a model file"):
        generation_of_model_file("model-0-0123456789abcdef.pt")


@pytest.mark.parametrize("call", ["create", "write", "sync file", "rename"])
def test_a_failed_write_leaves_nothing(tmp_path: Path, call: str) -> None:
    with pytest.raises(OSError):
        write_model(tmp_path, {"generation": 1}, disk=FaultyDisk(fail_nth(call, 1, errno.ENOSPC)))
    assert list(tmp_path.iterdir()) == []
