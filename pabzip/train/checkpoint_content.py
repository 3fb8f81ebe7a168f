"""Read what a checkpoint holds and check every part of it, trusting none."""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Mapping
from typing import Any, BinaryIO, NoReturn

import torch

from pabzip.errors import CheckpointError, SeedError
from pabzip.formats.magic import MAGIC
from pabzip.init import Seeding
from pabzip.models import names
from pabzip.seeds import InitSpec, check_seed

FORMAT = "pabzip-checkpoint"
VERSION = 1

_KEYS = (
    "arch", "arch_options", "state_dict", "seed", "init", "recipe", "results",
)  # fmt: skip
_HOW = "save the network with pabzip.save_checkpoint(net, path), or train one with `pabzip train`"
_PREFIX = "module."


def read_content(file: BinaryIO, name: str) -> object:
    """Unpickle a file by torch's safe reader, onto the CPU; there is no second try without it.

    Args:
        file: a seekable stream of the whole file.
        name: the file's name, for messages.

    Raises:
        CheckpointError: torch's safe reader refuses the file.
    """
    head = file.read(max(len(MAGIC), 4))
    if not head:
        raise CheckpointError(f"{name}: expected a checkpoint, found an empty file; {_HOW}")
    if head.startswith(MAGIC):
        raise CheckpointError(
            f"{name}: expected a checkpoint, found a .pabz file; read it with pabzip.load or "
            "pabzip.open"
        )
    file.seek(0)
    try:
        return torch.load(file, weights_only=True, map_location="cpu")
    except pickle.UnpicklingError as error:
        # torch's own message recommends to load without the protection, so it is not repeated.
        raise CheckpointError(
            f"{name}: expected plain values and tensors, found a file that is no checkpoint or "
            f"that asks to run code{_culprit(error)}; it was not run. Do not load it by other "
            f"means unless you trust its author; {_HOW}"
        ) from None
    except Exception as error:
        found = "a zip archive that holds none" if head.startswith(b"PK") else "something else"
        raise CheckpointError(
            f"{name}: expected a checkpoint, found {found} or a damaged file "
            f"({type(error).__name__}); {_HOW}"
        ) from error


def check_content(content: object, name: str) -> dict[str, Any]:
    """Check what `read_content` returned and return the fields of `Checkpoint`.

    Args:
        content: anything that torch's safe reader can make.
        name: the file's name, for messages.

    Raises:
        CheckpointError: it is no checkpoint of ours; the message says what it is.
    """
    place = os.fspath(name)
    if not isinstance(content, Mapping) or content.get("format") != FORMAT:
        raise CheckpointError(f"{place}: expected a checkpoint, found {_describe(content)}; {_HOW}")
    version = content.get("version")
    if type(version) is not int or version < 1:
        _refuse(place, "version", f"{VERSION}", version)
    if version > VERSION:
        raise CheckpointError(
            f"{place}: version: expected {VERSION} or less, found {version}; upgrade pabzip"
        )
    missing = [key for key in _KEYS if key not in content]
    if missing:
        raise CheckpointError(
            f"{place}: expected the keys {', '.join(_KEYS)}, found none called "
            f"{', '.join(missing)}; {_HOW}"
        )
    arch = content["arch"]
    if not isinstance(arch, str) or arch not in (*names(), "custom"):
        _refuse(place, "arch", f"one of {', '.join(names())} or custom", arch)
    state = _state(place, content["state_dict"])
    specs = _specs(place, content["init"])
    state = _without_prefix(arch, state, specs)
    specs = _without_prefix(arch, specs, specs)
    unknown = [weight for weight in specs if weight not in state]
    if unknown:
        _refuse(place, f"init: {unknown[0]}", "the name of a tensor in state_dict", "none such")
    return {
        "arch": arch,
        "arch_options": _table(place, "arch_options", content["arch_options"]),
        "state_dict": state,
        "seeding": Seeding(_seed(place, content["seed"]), specs),
        "recipe": _optional_table(place, "recipe", content["recipe"]),
        "results": _optional_table(place, "results", content["results"]),
    }


def is_state(content: object) -> bool:
    """Return whether a file holds tensors by name, and nothing else."""
    return (
        isinstance(content, Mapping)
        and bool(content)
        and all(isinstance(value, torch.Tensor) for value in content.values())
    )


def check_state(content: object, name: str) -> dict[str, torch.Tensor]:
    """Return the tensors by name that `is_state` found, all of them plain ones.

    Where every name begins with ``module.``, as ``DataParallel`` makes them, they do without.

    Raises:
        CheckpointError: one is sparse, quantised or not on the CPU, or a name is no text.
    """
    state = _state(name, content)
    if all(key.startswith(_PREFIX) for key in state):
        return {key.removeprefix(_PREFIX): value for key, value in state.items()}
    return state


def _state(place: str, state: object) -> dict[str, torch.Tensor]:
    """Return the tensors by name; refuse all but plain ones."""
    for name, value in _table(place, "state_dict", state).items():
        plain = (
            isinstance(value, torch.Tensor)
            and value.layout is torch.strided
            and value.device.type == "cpu"
            and not value.is_quantized
        )
        if not plain:
            _refuse(place, f"state_dict: {name}", "a dense tensor", type(value).__name__)
    return dict(state)  # type: ignore[call-overload, no-any-return]


def _specs(place: str, init: object) -> dict[str, InitSpec]:
    """Return the init specs by name; none where training moved magnitudes."""
    specs = {}
    for name, spec in _table(place, "init", init).items():
        fields = _table(place, f"init: {name}", spec)
        try:
            specs[name] = InitSpec(**fields)
        except (SeedError, TypeError) as error:
            raise CheckpointError(f"{place}: init: {name}: {error}") from error
    return specs


def _seed(place: str, seed: object) -> int:
    """Return the seed, which is a text from 2**63 upwards."""
    if isinstance(seed, str) and seed.isascii() and seed.isdigit() and len(seed) <= 20:
        seed = int(seed)
    try:
        return check_seed(seed)  # type: ignore[arg-type]
    except SeedError as error:
        raise CheckpointError(f"{place}: seed: {error}") from error


def _without_prefix(arch: str, values: dict[str, Any], specs: dict[str, Any]) -> dict[str, Any]:
    """Drop DataParallel's prefix, but keep the names of a network that has a child ``module``.

    Registered architectures have none. A custom one may, and then its init specs say so too.
    """
    prefixed = all(name.startswith(_PREFIX) for name in values)
    genuine = arch == "custom" and all(name.startswith(_PREFIX) for name in specs)
    if not prefixed or genuine:
        return values
    return {name.removeprefix(_PREFIX): value for name, value in values.items()}


def _table(place: str, what: str, value: object) -> Mapping[str, Any]:
    """Return ``value`` if it is a table with texts as keys."""
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        _refuse(place, what, "a table", type(value).__name__)
    return value


def _optional_table(place: str, what: str, value: object) -> Mapping[str, Any] | None:
    """Return ``value`` if it is a table or None."""
    return None if value is None else _table(place, what, value)


def _refuse(place: str, what: str, expected: str, found: object) -> NoReturn:
    """Raise for one part of a checkpoint."""
    raise CheckpointError(f"{place}: {what}: expected {expected}, found {found!r}; {_HOW}")


def _describe(content: object) -> str:
    """Say what a file holds instead of a checkpoint."""
    if not isinstance(content, Mapping):
        return f"a {type(content).__name__}"
    tensors = sum(isinstance(value, torch.Tensor) for value in content.values())
    if tensors and tensors == len(content):
        return f"a bare state dict of {tensors} tensors, without the seed that drew them"
    listed = ", ".join(repr(key) for key in list(content)[:6])
    return f"a table with the keys {listed or 'none'}"


def _culprit(error: pickle.UnpicklingError) -> str:
    """Return what the file wanted to import, as far as torch says."""
    found = re.search(r"GLOBAL ([\w.]+)", str(error))
    return f" ({found[1]})" if found else ""
