"""Checkpoints (model.pt): a network with its seeding, settings and results, saved and loaded.

A checkpoint is what ``torch.save`` writes for a dictionary of plain values and tensors, nothing
else, so it is always read with ``weights_only=True``: no checkpoint, whoever wrote it, runs code.
Settings and results are plain values here; `pabzip.train.from_dict` makes a recipe of settings.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NoReturn, TypeVar

import torch
from torch import nn

from pabzip.errors import ArchitectureError, CheckpointError, SeedError
from pabzip.formats.atomic import open_atomic
from pabzip.formats.limits import ARCHITECTURES
from pabzip.init import Seeding, attach_seeding, seeding
from pabzip.models import build
from pabzip.seeds import Frozen, InitSpec, check_seed, weights
from pabzip.torch_files import HOW, File, describe, read_torch_file, table_of_tensors
from pabzip.wrappers import bare, full_state, inner_names, load_full_state

FORMAT = "pabzip-checkpoint"
VERSION = 1

_KEYS = (
    "arch", "arch_options", "state_dict", "seed", "init", "recipe", "results",
)  # fmt: skip
_IN_METADATA = ("data", "method", "keep_ratio", "epochs", "test_accuracy", "validation")

_Value = TypeVar("_Value")


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds, all of it checked.

    Attributes:
        arch: name of a registered architecture, or ``"custom"``.
        arch_options: its options, plain values.
        state_dict: tensors on the CPU by name, without a ``module.`` prefix.
        seeding: the seed, the init spec of each seeded weight, and what of the masks it fixes.
        settings: how it was trained, as plain values, or None; the file's key is ``recipe``.
        results: how well, as plain values, or None.
        drawn: the init spec of each weight whose magnitudes were trained since it was drawn.
        scores: by name of the weight, what a score method learned; empty for all others.
        drawn_frozen: what of the masks of weights in ``drawn`` the seed fixed.
    """

    arch: str
    arch_options: Mapping[str, Any]
    state_dict: Mapping[str, torch.Tensor]
    seeding: Seeding
    settings: Mapping[str, Any] | None
    results: Mapping[str, Any] | None
    drawn: Mapping[str, InitSpec] = field(default_factory=dict)
    scores: Mapping[str, torch.Tensor] = field(default_factory=dict)
    drawn_frozen: Mapping[str, Frozen] = field(default_factory=dict)

    @property
    def seed(self) -> int:
        """The seed."""
        return self.seeding.seed

    @property
    def init(self) -> Mapping[str, InitSpec]:
        """The init spec of each seeded weight, by name."""
        return self.seeding.specs

    def at_initialization(self) -> Checkpoint:
        """Return the ticket before training: the weights as drawn, under the mask of now.

        All other tensors stay as trained, and signs that were learned before are not known any
        more. The results keep no test accuracy, which is not the ticket's.

        Raises:
            SeedError: the checkpoint does not say how any weight was drawn.
        """
        specs = {**self.init, **self.drawn}
        if not specs:
            raise SeedError(
                "the ticket at initialization: expected a checkpoint that says how its weights "
                "were drawn, found none, as after training a ticket with flipped signs; pack the "
                "checkpoint without --ticket, or pack the ticket that it was trained from"
            )
        state = dict(self.state_dict)
        for name, spec in specs.items():
            values = torch.from_numpy(weights(self.seed, spec, 0, state[name].numel()))
            state[name] = values.view(state[name].shape).masked_fill_(state[name] == 0, 0.0)
        results = dict(self.results or {})
        results.pop("test_accuracy", None)
        return replace(
            self,
            state_dict=state,
            seeding=Seeding(self.seed, specs, {**self.seeding.frozen, **self.drawn_frozen}),
            results=results,
            drawn={},
            scores={},
            drawn_frozen={},
        )

    def metadata(self) -> dict[str, str | int | float | bool | None]:
        """Return what of the results a packed file keeps, as flat plain values.

        Data that was named by the path of a folder becomes ``"folder"``: a file that travels has
        no business with the paths of the machine that wrote it.
        """
        results = self.results or {}
        kept = {
            key: results[key]
            for key in _IN_METADATA
            if isinstance(results.get(key), str | int | float)
        }
        if os.sep in str(kept.get("data", "")):
            kept["data"] = "folder"
        return kept


def save_checkpoint(
    net: nn.Module,
    file: File,
    *,
    settings: Mapping[str, Any] | None = None,
    results: Mapping[str, Any] | None = None,
    drawn: Mapping[str, InitSpec] | None = None,
    scores: Mapping[str, torch.Tensor] | None = None,
    drawn_frozen: Mapping[str, Frozen] | None = None,
) -> None:
    """Write ``net`` as a checkpoint; an existing file is replaced only by a complete one.

    Args:
        net: a network drawn by `pabzip.init_`, on any device, wrapped or not (`pabzip.wrappers`);
            under FSDP every rank has to call this.
        file: path of the file, usually ``model.pt``, or a binary stream.
        settings: how it was trained, as plain values.
        results: how well, as plain values.
        drawn: how weights that the network's seeding does not name were drawn (`Checkpoint`).
        scores: what a score method learned.
        drawn_frozen: what of the masks of weights in ``drawn`` the seed fixed.

    Raises:
        SeedError: ``net`` has no record of its seed.
        CheckpointError: the state holds something that is no tensor, or settings or results hold
            something that is no plain value.
        OSError: the file cannot be written.
    """
    record, state = seeding(net), full_state(net)
    arch, options = getattr(bare(net), "pabzip_arch", ("custom", {}))
    extra = [name for name, value in state.items() if not isinstance(value, torch.Tensor)]
    if extra:
        raise CheckpointError(
            f"{extra[0]}: expected a tensor in the network's state, found "
            f"{type(state[extra[0]]).__name__}; keep extra state outside the state_dict"
        )
    content = {
        "format": FORMAT,
        "version": VERSION,
        "arch": arch,
        "arch_options": _plain("arch_options", options),
        "state_dict": {name: value.detach().cpu().contiguous() for name, value in state.items()},
        # Readers in other languages take integers of 64 bits with a sign.
        "seed": record.seed if record.seed < 2**63 else str(record.seed),
        "init": {name: asdict(spec) for name, spec in record.specs.items()},
        "recipe": _plain("settings", settings),
        "results": _plain("results", results),
    }
    if drawn:
        content["drawn"] = {name: asdict(spec) for name, spec in drawn.items()}
    if scores:
        content["scores"] = {name: score.detach().cpu() for name, score in scores.items()}
    frozen = {**record.frozen, **(drawn_frozen or {})}
    parts = {name: asdict(part) for name, part in frozen.items() if part != Frozen(0, 0)}
    if parts:
        content["frozen"] = parts
    if isinstance(file, str | os.PathLike):
        with open_atomic(file) as stream:
            torch.save(content, stream)
    else:
        torch.save(content, file)


def load_checkpoint(source: File) -> Checkpoint:
    """Read a checkpoint, onto the CPU, and never run code that it holds.

    Args:
        source: a file that `save_checkpoint` wrote, on whatever device, or a seekable stream of
            its bytes.

    Raises:
        CheckpointError: the file is no checkpoint of ours, is damaged, is newer than this pabzip,
            or asks to run code; the message says what was found and how to make a checkpoint.
        OSError: the file cannot be opened.
    """
    return _checked(*read_torch_file(source))


def load_state(source: File) -> Checkpoint | dict[str, torch.Tensor]:
    """Read a checkpoint, or tensors by name without a seed, and never run code that it holds.

    The latter are what ``torch.save`` made of a ``state_dict()``, or of a table that holds one
    under a name of `pabzip.torch_files.NESTED`; all else in such a table is left out. Tensors of a
    file that is given by its path are mapped into memory, not read.
    """
    content, name = read_torch_file(source, mapped=True)
    if not isinstance(content, Mapping) or "format" in content:
        return _checked(content, name)
    tensors = table_of_tensors(content, name)
    if tensors is None:
        return _checked(content, name)
    return inner_names(_tensors(name, "state_dict", tensors))


def network_from_checkpoint(checkpoint: Checkpoint, net: nn.Module | None = None) -> nn.Module:
    """Build the network of a checkpoint, load its state and put its seed on record.

    A checkpoint of a custom architecture needs ``net``, your own network, on whatever device; by
    default the registered architecture is built, on the CPU. It is ready to be evaluated or packed,
    in evaluation mode.
    """
    if net is None:
        if checkpoint.arch == "custom":
            raise ArchitectureError(
                "this checkpoint is of a custom architecture, expected a registered one; build the "
                "network yourself and pass it as net= (on the command line: --arch module:callable)"
            )
        net = build(checkpoint.arch, checkpoint.arch_options)
    try:
        load_full_state(net, checkpoint.state_dict)
    except RuntimeError as error:
        raise ArchitectureError(
            f"the checkpoint does not fit {type(bare(net)).__name__}: "
            f"{' '.join(str(error).split())}; "
            "build the network with the options it was trained with"
        ) from error
    attach_seeding(net, checkpoint.seeding)
    return net.eval()


def _checked(content: object, place: str) -> Checkpoint:
    """Return what a file holds as a checkpoint; ``place`` is the file's name for messages."""
    if not isinstance(content, Mapping) or content.get("format") != FORMAT:
        raise CheckpointError(f"{place}: expected a checkpoint, found {describe(content)}; {HOW}")
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
            f"{', '.join(missing)}; {HOW}"
        )
    arch = content["arch"]
    if not isinstance(arch, str) or arch not in ARCHITECTURES:
        _refuse(place, "arch", f"one of {', '.join(ARCHITECTURES)}", arch)
    state = _tensors(place, "state_dict", content["state_dict"])
    specs = _made(place, "init", content["init"], InitSpec)
    drawn = _made(place, "drawn", content.get("drawn", {}), InitSpec)
    frozen = _made(place, "frozen", content.get("frozen", {}), Frozen)
    scores = _tensors(place, "scores", content.get("scores", {}))
    seeded = {**specs, **drawn}
    state, specs, drawn, frozen, scores = (
        _without_prefix(arch, values, seeded) for values in (state, specs, drawn, frozen, scores)
    )
    for key, names in (("init", specs), ("drawn", drawn), ("scores", scores)):
        unknown = [name for name in names if name not in state]
        if unknown:
            expected = "the name of a tensor in state_dict"
            _refuse(place, f"{key}: {unknown[0]}", expected, "none such")
    for name, part in frozen.items():
        if name not in specs and name not in drawn:
            _refuse(place, f"frozen: {name}", "the name of a weight in init or drawn", "none such")
        if part == Frozen(0, 0):
            _refuse(place, f"frozen: {name}", "pruned or kept above 0", "neither")
    for name, score in scores.items():
        if score.shape != state[name].shape:
            expected = f"the shape of the weight, {list(state[name].shape)}"
            _refuse(place, f"scores: {name}", expected, list(score.shape))
    settings, results = (
        None if content[key] is None else _table(place, key, content[key])
        for key in ("recipe", "results")
    )
    return Checkpoint(
        arch=arch,
        arch_options=_table(place, "arch_options", content["arch_options"]),
        state_dict=state,
        seeding=Seeding(
            _seed(place, content["seed"]),
            specs,
            {name: part for name, part in frozen.items() if name in specs},
        ),
        settings=settings,
        results=results,
        drawn=drawn,
        scores=scores,
        drawn_frozen={name: part for name, part in frozen.items() if name not in specs},
    )


def _tensors(place: str, key: str, values: object) -> dict[str, torch.Tensor]:
    """Return the tensors by name; refuse all but plain ones."""
    for name, value in _table(place, key, values).items():
        plain = (
            isinstance(value, torch.Tensor)
            and value.layout is torch.strided
            and value.device.type == "cpu"
            and not value.is_quantized
        )
        if not plain:
            _refuse(place, f"{key}: {name}", "a dense tensor", type(value).__name__)
    return dict(values)  # type: ignore[call-overload, no-any-return]


def _made(place: str, key: str, values: object, kind: Callable[..., _Value]) -> dict[str, _Value]:
    """Return what tables of fields, by name, make of a kind."""
    made = {}
    for name, value in _table(place, key, values).items():
        fields = _table(place, f"{key}: {name}", value)
        try:
            made[name] = kind(**fields)
        except (SeedError, TypeError) as error:
            raise CheckpointError(f"{place}: {key}: {name}: {error}") from error
    return made


def _seed(place: str, seed: object) -> int:
    """Return the seed, which is a text from 2**63 upwards."""
    if isinstance(seed, str) and seed.isascii() and seed.isdigit() and len(seed) <= 20:
        seed = int(seed)
    try:
        return check_seed(seed)  # type: ignore[arg-type]
    except SeedError as error:
        raise CheckpointError(f"{place}: seed: {error}") from error


def _without_prefix(arch: str, values: dict[str, Any], specs: dict[str, Any]) -> dict[str, Any]:
    """Drop the prefixes of wrappers, but keep the names of a network that has a child ``module``.

    Registered architectures have none. A custom one may, and then its init specs say so too.
    """
    genuine = arch == "custom" and all(name.startswith("module.") for name in specs)
    return values if genuine else inner_names(values)


def _table(place: str, what: str, value: object) -> Mapping[str, Any]:
    """Return ``value`` if it is a table with texts as keys."""
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        _refuse(place, what, "a table", type(value).__name__)
    return value


def _refuse(place: str, what: str, expected: str, found: object) -> NoReturn:
    """Raise for one part of a checkpoint."""
    raise CheckpointError(f"{place}: {what}: expected {expected}, found {found!r}; {HOW}")


def _plain(what: str, values: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return a copy of nested plain values; refuse what a safe reader could not take back."""
    try:
        copied: dict[str, Any] | None = json.loads(json.dumps(values))
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"{what}: expected texts, numbers, lists and tables alone: {error}"
        ) from error
    return copied
