"""Which weights of a network are drawn from the seed: the kinds that count, and choices by name.

A new kind of layer is one entry in `weights_of`, which finds it wherever networks are drawn,
searched by ``only=`` and ``skip=``, and reported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from torch import nn
from torch.nn.modules.conv import _ConvNd

from pabzip.errors import SeedError

Selection = Iterable[str] | Callable[[nn.Module, str], bool]
"""What ``only=`` and ``skip=`` take. Either names of weights or of modules (a module's name takes
its weights and all weights below it; one name may stand alone), or a predicate that is given each
module and its name in the network, as torchao's filters are."""

WEIGHT_KINDS = (
    "conv", "linear", "embedding", "bilinear", "recurrent", "attention", "hf_conv1d",
)  # fmt: skip
"""The kinds of weights that `pabzip.init_` knows: ``nn.Conv1d/2d/3d`` and their transposed forms;
``nn.Linear``; ``nn.Embedding`` and ``nn.EmbeddingBag``; ``nn.Bilinear``; the matrices of
``nn.RNN``, ``nn.LSTM`` and ``nn.GRU`` and of their cells; the input projections of
``nn.MultiheadAttention``; Hugging Face's ``Conv1D``, whose weight is [inputs, outputs]."""

DEFAULT_KINDS = tuple(kind for kind in WEIGHT_KINDS if kind != "embedding")
"""The kinds that are drawn without being asked for."""

_IN_ORDER = frozenset({"conv", "linear", "embedding"})
"""The kinds whose streams come first; see `drawable`."""

_HF_CONV1D = {"transformers.pytorch_utils.Conv1D", "transformers.modeling_utils.Conv1D"}
"""What releases of transformers call their ``Conv1D``."""


@dataclass(frozen=True)
class Weight:
    """A weight that the seed can draw.

    Attributes:
        module: that holds it.
        attribute: its name there.
        kind: one of `WEIGHT_KINDS`.
    """

    module: nn.Module
    attribute: str
    kind: str

    @property
    def parameter(self) -> nn.Parameter | None:
        """The weight itself; None where it is a buffer, or computed from other parameters."""
        return self.module._parameters.get(self.attribute)


def weights_of(module: nn.Module) -> tuple[str, tuple[str, ...]] | None:
    """Return the kind of a module's own weights, and their names in it; None where it has none."""
    names: tuple[str, ...] = ("weight",)
    if isinstance(module, _ConvNd):
        kind = "conv"
    elif isinstance(module, nn.Linear):
        kind = "linear"
    elif isinstance(module, nn.Embedding | nn.EmbeddingBag):
        kind = "embedding"
    elif isinstance(module, nn.Bilinear):
        kind = "bilinear"
    elif isinstance(module, nn.RNNBase):
        kind = "recurrent"
        names = tuple(name for name in module._flat_weights_names if name.startswith("weight"))
    elif isinstance(module, nn.RNNCellBase):
        kind, names = "recurrent", ("weight_ih", "weight_hh")
    elif isinstance(module, nn.MultiheadAttention):
        kind = "attention"
        apart = ("q_proj_weight", "k_proj_weight", "v_proj_weight")
        names = ("in_proj_weight",) if module._qkv_same_embed_dim else apart
    elif _HF_CONV1D & {f"{base.__module__}.{base.__name__}" for base in type(module).__mro__}:
        kind = "hf_conv1d"
    else:
        return None
    return kind, names


def names_of(option: str, names: str | Iterable[str]) -> list[str]:
    """Return the names that an argument holds, one or several.

    Raises:
        SeedError: it is neither; the message has the argument's name, ``option``.
    """
    if isinstance(names, str):
        return [names]
    if not isinstance(names, Iterable):
        raise SeedError(f"{option}: expected a name, or several in a list, found {names!r}")
    return list(names)


def checked_kinds(kinds: str | Iterable[str] | None) -> tuple[str, ...]:
    """Return the kinds that an argument names: one or several, ``"all"``, or None for the default.

    Raises:
        SeedError: a name that is no kind, or none at all.
    """
    if kinds is None:
        return DEFAULT_KINDS
    names = WEIGHT_KINDS if kinds == "all" else tuple(names_of("kinds", kinds))
    unknown = [repr(name) for name in names if name not in WEIGHT_KINDS] or ["none"]
    if unknown != ["none"] or not names:
        raise SeedError(
            f"kinds: expected 'all' or some of {', '.join(WEIGHT_KINDS)}, found {unknown[0]}"
        )
    return names


def drawable(
    net: nn.Module, kinds: Iterable[str] = WEIGHT_KINDS, only: Selection | None = None
) -> dict[str, Weight]:
    """Return the weights that the seed may draw by name, each tensor once, in stream order.

    Conv, Linear and Embedding weights come first, as the network orders them, then those of the
    other kinds: so whether these are drawn changes no stream of the first.

    Args:
        net: the network.
        kinds: of `WEIGHT_KINDS`.
        only: an embedding that it asks for itself, by its module's name or its own or as a
            predicate, counts though ``kinds`` does not have it.
    """
    kinds, found, seen = set(kinds), dict[str, Weight](), set[int]()
    for first in (True, False):
        for prefix, module in net.named_modules():
            kind, names = weights_of(module) or ("", ())
            if (kind in _IN_ORDER) != first:
                continue
            for attribute in names:
                name = f"{prefix}.{attribute}" if prefix else attribute
                weight = Weight(module, attribute, kind)
                asked = kind in kinds or (kind == "embedding" and _asks(only, module, prefix, name))
                # Computed weights are not read: of spectral norm, that would change its state.
                absent = weight.parameter is None and attribute in module._parameters
                if asked and not absent and id(weight.parameter) not in seen:
                    found[name] = weight
                    if weight.parameter is not None:
                        seen.add(id(weight.parameter))
    return found


def _asks(only: Selection | None, module: nn.Module, prefix: str, name: str) -> bool:
    """Return whether ``only`` asks for a module's weight itself, not for what holds it."""
    if only is None:
        return False
    return only(module, prefix) if callable(only) else bool({name, prefix} & set(only))


def oriented(module: nn.Module | None, shape: Iterable[int]) -> tuple[int, ...]:
    """Return the shape of a module's weight as (outputs, inputs, ...), as fans are read.

    None stands for the module of a buffer.
    """
    kind, _ = (module is not None and weights_of(module)) or ("", ())
    sizes = tuple(shape)
    return sizes[::-1] if kind == "hf_conv1d" else sizes


def choose(
    net: nn.Module,
    holders: Mapping[str, nn.Module],
    only: Selection | None,
    skip: Selection | None,
    expected: str,
) -> list[str]:
    """Return the names of the weights that ``only`` and ``skip`` leave, as ``holders`` orders them.

    A tied weight is also known by the names it has elsewhere, and by those of the modules that hold
    it there.

    Args:
        net: the network.
        holders: by name of each weight the module that holds it.
        only: the weights to take; None takes all.
        skip: the weights to leave out.
        expected: what ``holders`` names, for the message about a name that matches none.

    Raises:
        SeedError: a name that is none of a weight in ``holders`` or of a module that holds one.
    """
    chosen = list(holders)
    for option, selection in (("only", only), ("skip", skip)):
        if selection is None:
            continue
        if callable(selection):
            found = {n for n, m in holders.items() if selection(m, n.rpartition(".")[0])}
        else:
            found = set()
            for wanted in names_of(option, selection):
                matches = {n for n in holders if n == wanted or n.startswith(f"{wanted}.")}
                matches = matches or set(_by_second_name(net, holders, wanted))
                if not matches:
                    raise SeedError(
                        f"{option}= names {wanted!r}, expected {expected} or a module that holds "
                        f"one; {type(net).__name__} has {', '.join(list(holders)[:8])}"
                    )
                found |= matches
        chosen = [name for name in chosen if (name in found) == (option == "only")]
    return chosen


def _by_second_name(net: nn.Module, holders: Mapping[str, nn.Module], wanted: str) -> Iterator[str]:
    """Yield the weights that ``wanted`` names, or its module's name does, by another of theirs."""
    parameters = dict(net.named_parameters(remove_duplicate=False))
    meant = {
        id(value) for name, value in parameters.items()
        if wanted in (name, name.rpartition(".")[0])
    }  # fmt: skip
    yield from (name for name in holders if id(parameters.get(name)) in meant)
