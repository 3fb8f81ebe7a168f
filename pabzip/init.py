"""Draw a network's weights from a seed, and keep a record of how on the network.

The record (seed and one `InitSpec` a seeded weight) is a plain attribute of the network, so it
survives ``copy.deepcopy`` and pickling, and stays out of the ``state_dict``. Search, unmasking and
packing read it; none of them asks for the seed again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pabzip._optional import require
from pabzip.errors import SeedError
from pabzip.seeds import Frozen, InitSpec, check_seed, scheme_spec, weights
from pabzip.wrappers import RECORD, bare, check_whole, parameter_names, record_holders, unwrap

if TYPE_CHECKING:
    from torch import nn


Selection = Iterable[str] | Callable[["nn.Module", str], bool]
"""What ``only=`` and ``skip=`` take. Either names of weights or of modules (a module's name takes
its weight and all weights below it; one name may stand alone), or a predicate that is given each
module and its name in the network, as torchao's filters are."""


@dataclass(frozen=True)
class Seeding:
    """How a network's weights were drawn.

    Attributes:
        seed: the 64-bit Philox key, ``0 <= seed < 2**64``.
        specs: init spec of each seeded weight, by parameter name, in the order of the network.
        frozen: how much of a weight's mask the seed fixes for good, by parameter name; only of
            those where it fixes any.
    """

    seed: int
    specs: Mapping[str, InitSpec]
    frozen: Mapping[str, Frozen] = field(default_factory=dict)


def init_(
    net: nn.Module,
    seed: int,
    scheme: str = "kaiming_normal",
    *,
    only: Selection | None = None,
    skip: Selection | None = None,
    mode: str = "fan_in",
    gain: float | None = None,
) -> nn.Module:
    """Draw Conv and Linear weights of ``net`` from ``seed``, in place, and remember how.

    ``nn.Embedding`` weights are drawn only where ``only`` names them or chooses them.

    Each weight gets the next stream number in the order of ``net.named_modules()``, so the same
    network and selection always give the same weights. Biases and all other parameters stay as
    they are.

    Args:
        net: any module; every ``nn.Conv1d/2d/3d``, ``nn.ConvTranspose1d/2d/3d`` and ``nn.Linear``
            in it counts, and every ``nn.Embedding`` that ``only`` asks for. Weights may be of any
            floating dtype and on any device; they receive the float32 values, rounded to nearest
            even for shorter dtypes.
        seed: ``0 <= seed < 2**64``.
        scheme: one of `pabzip.seeds.SCHEMES`.
        only: the weights to seed; all others stay dense. An embedding is among them if it is named
            itself (its module or its weight, not one that holds it) or if the predicate takes it:
            ``only=lambda module, name: isinstance(module, nn.Embedding)``.
        skip: the weights to leave dense.
        mode: ``"fan_in"`` or ``"fan_out"`` for the kaiming schemes.
        gain: overrides the scheme's own gain (sqrt(2) for kaiming, 1 for xavier).

    Returns:
        ``net`` itself.

    Raises:
        SeedError: seed or scheme out of range, a name in ``only`` or ``skip`` that is no weight or
            module of ``net``, or nothing left to seed.

    Source: Peek-a-Boo, Section 3.2 (initialization) and Table 3 (schemes).
    """
    torch = require("torch", extra="torch", purpose="pabzip.init_")
    check_whole(net, "init_", "draw the network before fully_shard (or FSDP)", SeedError)
    check_seed(seed)
    if only is not None and not callable(only):
        only = [only] if isinstance(only, str) else list(only)  # read twice
    holders = _weight_holders(unwrap(net), only)
    expected = "a Conv or Linear weight, an Embedding itself (in only=)"
    chosen = _choose(net, holders, only, skip, expected)
    if not chosen:
        raise SeedError(
            f"init_: expected at least one Conv or Linear weight to seed, found none in "
            f"{type(net).__name__} after only= and skip=; widen the selection"
        )
    specs = {}
    for stream, name in enumerate(chosen):
        parameter: nn.Parameter = holders[name].weight  # type: ignore[assignment]
        spec = scheme_spec(scheme, tuple(parameter.shape), stream=stream, mode=mode, gain=gain)
        drawn = weights(seed, spec, 0, parameter.numel())
        with torch.no_grad():
            parameter.copy_(torch.from_numpy(drawn).view(parameter.shape))
        specs[name] = spec
    attach_seeding(net, Seeding(seed, specs))
    return net


def attach_seeding(net: nn.Module, seeding: Seeding) -> None:
    """Record on ``net`` that its weights follow ``seeding``; the weights are not touched.

    Of a wrapped network, the record and its names are those of the network inside.

    Raises:
        SeedError: ``seeding`` names a parameter that ``net`` does not have, or freezes the mask of
            a weight that it does not seed.
    """
    known = parameter_names(net)
    missing = [name for name in seeding.specs if name not in known]
    missing += [name for name in seeding.frozen if name not in seeding.specs]
    if missing:
        raise SeedError(
            f"attach_seeding: expected parameters of {type(bare(net)).__name__}, found unknown "
            f"names {', '.join(missing[:5])}; the seeding belongs to another network"
        )
    for holder in record_holders(net):
        object.__setattr__(holder, RECORD, seeding)


def seeding(net: nn.Module) -> Seeding:
    """Return how the weights of ``net`` were drawn.

    A wrapper (DataParallel, DistributedDataParallel, ``torch.compile``, FSDP) answers for the
    network inside, with the names that weights have there.

    Raises:
        SeedError: ``net`` was not initialized by `init_` nor loaded from a ticket.
    """
    inner = bare(net)
    found: Seeding | None = getattr(inner, RECORD, None)
    if found is None:
        raise SeedError(
            f"{type(inner).__name__}: expected a network drawn from a seed, found no record of "
            "one; call pabzip.init_(net, seed=...) first"
        )
    return found


def seeded_parameters(net: nn.Module) -> dict[str, nn.Parameter]:
    """Return the seeded weights of ``net`` by name, in the order of their streams.

    Raises:
        SeedError: ``net`` has no record of a seed (see `seeding`), or does not have a weight of it
            any more.
    """
    specs = seeding(net).specs
    parameters = dict(unwrap(net).named_parameters(remove_duplicate=False))
    for name in specs:
        if name not in parameters:
            raise SeedError(
                f"{name}: expected this seeded weight among the parameters, found "
                f"{', '.join(list(parameters)[:4]) or 'none'}; leave the network as init_ found "
                "it, and under FSDP use fully_shard, or FSDP with use_orig_params=True"
            )
    return {name: parameters[name] for name in specs}


def selected(
    net: nn.Module, only: Selection | None = None, skip: Selection | None = None
) -> dict[str, nn.Parameter]:
    """Return the seeded weights of ``net`` that ``only`` and ``skip`` leave.

    Args:
        net: a network drawn by `init_`.
        only: the weights to take; None takes all.
        skip: the weights to leave out.

    Returns:
        Parameters by name, in the order of their streams; none where the two leave none.

    Raises:
        SeedError: ``net`` has no record of a seed, or a name in ``only`` or ``skip`` is no seeded
            weight and no module that holds one.
    """
    parameters, net = seeded_parameters(net), unwrap(net)
    holders = {name: net.get_submodule(name.rpartition(".")[0]) for name in parameters}
    chosen = _choose(net, holders, only, skip, "a seeded weight")
    return {name: parameters[name] for name in chosen}


def _weight_holders(net: nn.Module, only: Selection | None) -> dict[str, nn.Module]:
    """Return the modules whose weights `init_` may draw, by the weights' names, each tensor once.

    Those are Conv and Linear, and an Embedding where ``only`` asks for it itself.
    """
    from torch.nn import Embedding, Linear
    from torch.nn.modules.conv import _ConvNd

    holders: dict[str, nn.Module] = {}
    seen: set[int] = set()
    for prefix, module in net.named_modules():
        name = f"{prefix}.weight" if prefix else "weight"
        counts = isinstance(module, Linear | _ConvNd)
        if isinstance(module, Embedding) and only is not None:
            counts = only(module, prefix) if callable(only) else bool({name, prefix} & set(only))
        if counts and id(module.weight) not in seen:
            seen.add(id(module.weight))
            holders[name] = module
    return holders


def _choose(
    net: nn.Module,
    holders: Mapping[str, nn.Module],
    only: Selection | None,
    skip: Selection | None,
    expected: str,
) -> list[str]:
    """Return the names of the weights that ``only`` and ``skip`` leave, as ``holders`` orders them.

    ``expected`` says what ``holders`` names, for the message about a name that matches none.
    """
    chosen = list(holders)
    for option, selection in (("only", only), ("skip", skip)):
        if selection is None:
            continue
        if callable(selection):
            found = {n for n, m in holders.items() if selection(m, n.rpartition(".")[0])}
        else:
            found = set()
            for wanted in [selection] if isinstance(selection, str) else selection:
                matches = {n for n in holders if n == wanted or n.startswith(f"{wanted}.")}
                if not matches:
                    raise SeedError(
                        f"{option}= names {wanted!r}, expected {expected} or a module that holds "
                        f"one; {type(net).__name__} has {', '.join(list(holders)[:8])}"
                    )
                found |= matches
        chosen = [name for name in chosen if (name in found) == (option == "only")]
    return chosen
