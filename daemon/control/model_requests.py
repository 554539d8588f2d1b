"""Model generations for the operator: what the state remembers of them, and the files that are there."""

from collections.abc import Mapping, Sequence
from typing import Any

from daemon.control.control_interface import ControlError
from detection.columns.state_columns import OtherVersionError
from detection.frames import ModelFrame
from detection.models.model import Model
from persistence.format_preamble import NewerFormatError
from persistence.model_file import ModelError, generation_of_model_file
from persistence.store import Store


def listed_generations(store: Store, known: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """`known` generations, and those of files that the state knows nothing of, as `Control.models` has them.

    Blocking.
    """
    files = {}
    for file in store.models():
        try:
            files[file.name] = store.model_path(file.name).stat()
        except FileNotFoundError:
            continue  # pruned since
    strangers = [
        {"generation": generation_of_model_file(name), "name": name, "line": None, "in_force": False, "members": []}
        | {"promoted": True, "reason": None}
        for name in files.keys() - {entry["name"] for entry in known}
    ]
    entries = [
        {
            **entry,
            "bytes": files[entry["name"]].st_size if entry["name"] in files else None,
            "time": files[entry["name"]].st_mtime if entry["name"] in files else None,
        }
        for entry in (*known, *strangers)
    ]
    return sorted(entries, key=lambda entry: (entry["generation"], entry["name"]), reverse=True)


def earlier_model(store: Store, known: Sequence[Mapping[str, Any]], generation: int) -> tuple[ModelFrame, Model]:
    """The frame that lets `generation` judge again, and its model. Blocking; raises `ControlError`."""
    from daemon.startup.detector_recovery import load_model  # heavy imports, which a start must not wait for

    of_it = [entry for entry in known if entry["generation"] == generation]
    if any(entry["in_force"] for entry in of_it):
        raise ControlError(409, "in_force", f"model generation {generation} is the one in force")
    refused = {entry["name"]: entry["reason"] for entry in of_it if not entry["promoted"]}
    files = [file for file in store.models() if file.generation == generation]
    usable = [file for file in files if file.name not in refused]
    if not usable:
        if refused:
            reason = next(iter(refused.values()))
            raise ControlError(409, "refused", f"model generation {generation} was refused: {reason}")
        raise ControlError(404, "not_found", f"there is no model file of generation {generation}; see the list")
    if len(usable) > 1:
        names = " and ".join(file.name for file in usable)
        raise ControlError(409, "ambiguous", f"there are {names}; move one of them out of the state directory")
    [file] = usable
    try:
        model = load_model(store, file.name, file.sha256)
    except (ModelError, NewerFormatError, OtherVersionError) as exc:
        if isinstance(exc.__cause__, FileNotFoundError):
            raise ControlError(404, "not_found", f"the file of model generation {generation} is gone") from exc
        raise ControlError(409, "damaged", f"the model in force stays: {exc}") from exc
    except OSError as exc:
        raise ControlError(503, "not_read", f"{file.name} cannot be read: {exc.strerror}") from exc
    return ModelFrame(generation, file.name, file.sha256), model
