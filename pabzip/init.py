"""Draw a network's weights from a seed, and keep a record of how on the network.

The record (seed and one `InitSpec` a seeded weight) is a plain attribute of the network, so it
survives ``copy.deepcopy`` and pickling, and stays out of the ``state_dict``. Search, unmasking and
packing read it; none of them asks for the seed again.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pabzip._optional import require
from pabzip.errors import PackError, SeedError
from pabzip.seeds import Frozen, InitSpec, check_seed, scheme_spec, weights
from pabzip.wrappers import RECORD, bare, check_whole, parameter_names, record_holders, unwrap

if TYPE_CHECKING:
    import torch
    from torch import nn

    from pabzip.coverage import InitReport
    from pabzip.selection import Selection


_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Seeding:
    """How a network's weights were drawn.

    Attributes:
        seed: the 64-bit Philox key, ``0 <= seed < 2**64``.
        specs: init spec of each seeded weight, and of each buffer that `init_` drew, by name, in
            the order of their streams.
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
    kinds: str | Iterable[str] | None = None,
    buffers: str | Iterable[str] = (),
) -> nn.Module:
    """Draw the weight matrices of ``net`` from ``seed``, in place, and remember how.

    Biases, norms and all other parameters stay as they are, and are stored dense. What share of
    the network was drawn, and why the rest was not, is logged (level INFO); `init_report` has it
    in full.

    Everything that `pabzip.pack` would refuse is refused here, in the whole network, also in what
    stays dense: a tensor that is complex, sparse, quantized, empty, on the meta device or lazy, a
    value that is not finite, a name or extra state that no file holds. No weight has changed then.

    Streams are numbered in the order of ``net.named_modules()``, so the same network and arguments
    always give the same weights: first Conv, Linear and Embedding weights, then those of other
    kinds, then buffers. So what is drawn of the others changes no Conv or Linear weight.

    Args:
        net: any module, on any device. Weights to draw are float32 parameters: of a bfloat16,
            float16 or float64 network call ``net.float()`` first, and keep it so until it is
            packed; the file fills a network of any dtype
            (``pabzip.load_into(MyNet().bfloat16(), file)``). A weight that its module computes
            from others (``torch.nn.utils.parametrize``, ``weight_norm``, ``spectral_norm``,
            ``prune``) cannot be drawn.
        seed: ``0 <= seed < 2**64``.
        scheme: one of `pabzip.seeds.SCHEMES`.
        only: the weights to seed; all others stay dense. An embedding is among them if it is named
            itself (its module or its weight, not one that holds it) or if the predicate takes it:
            ``only=lambda module, name: isinstance(module, nn.Embedding)``.
        skip: the weights to leave dense.
        mode: ``"fan_in"`` or ``"fan_out"`` for the kaiming schemes. Fans are of the tensor as it
            is stored: a recurrent weight with all its gates, ``in_proj_weight`` with queries, keys
            and values. Hugging Face's ``Conv1D`` has its inputs first, and its fans are read so.
        gain: overrides the scheme's own gain (sqrt(2) for kaiming, 1 for xavier). A recurrent
            network without ReLU wants 1.
        kinds: what is drawn, some of `pabzip.selection.WEIGHT_KINDS`, or ``"all"``. By default all
            but ``"embedding"``, as ternary language models keep theirs in full precision.
            ``kinds="all"`` draws them too, padding rows as well. One that is tied to a Linear
            layer is drawn with that; ``skip=["lm_head"]`` leaves it dense.
        buffers: names of float32 buffers of two or more dimensions to draw as well, such as random
            projections, which nothing trains or prunes. Only those in the ``state_dict``.

    Returns:
        ``net`` itself.

    Raises:
        SeedError: seed, scheme or kind out of range, a name in ``only``, ``skip`` or ``buffers``
            that is none of ``net``, nothing left to seed, or a tensor that no file could hold; the
            message names the tensor and the way out.

    Source: Peek-a-Boo, Section 3.2 (initialization) and Table 3 (schemes).
    """
    require("torch", extra="torch", purpose="pabzip.init_")
    import torch

    from pabzip.selection import checked_kinds, choose, drawable, names_of, oriented
    from pabzip.storable import check_network

    check_whole(net, "init_", "draw the network before fully_shard (or FSDP)", SeedError)
    check_seed(seed)
    if only is not None and not callable(only):
        only = names_of("only", only)  # read twice
    kinds = checked_kinds(kinds)
    inner = unwrap(net)
    found = drawable(inner, kinds, only)
    holders = {name: weight.module for name, weight in found.items()}
    listed = ", ".join(kinds)
    expected = f"a weight to draw ({listed}, or an Embedding itself in only=)"
    chosen = choose(inner, holders, only, skip, expected)
    also = _buffers(inner, names_of("buffers", buffers))
    if not chosen and not also:
        raise SeedError(
            f"init_: expected at least one weight to seed ({listed}), found none in "
            f"{type(net).__name__} after only= and skip=; widen the selection, or kinds="
        )
    tensors: dict[str, torch.Tensor] = {}
    for name in chosen:
        parameter = found[name].parameter
        if parameter is None:
            raise SeedError(
                f"init_: {name}: expected a parameter to draw, found a buffer, or a weight that is "
                "computed from others (parametrize, weight_norm, spectral_norm, prune); remove "
                "what computes it before init_, or leave it out with skip="
            )
        tensors[name] = parameter
    tensors |= also
    try:
        check_network(inner, tensors)
    except PackError as error:
        raise SeedError(f"init_: {error}") from None
    specs = {}
    for stream, (name, tensor) in enumerate(tensors.items()):
        shape = oriented(holders.get(name), tensor.shape)
        try:
            specs[name] = scheme_spec(scheme, shape, stream=stream, mode=mode, gain=gain)
        except SeedError as error:
            raise SeedError(f"init_: {name}: {error}") from None
    with torch.no_grad():
        for name, tensor in tensors.items():
            drawn = weights(seed, specs[name], 0, tensor.numel())
            tensor.copy_(torch.from_numpy(drawn).view(tensor.shape))
    attach_seeding(net, Seeding(seed, specs))
    if _log.isEnabledFor(logging.INFO):
        _log.info("init_: %s", init_report(net))
    return net


def _buffers(net: nn.Module, names: Iterable[str]) -> dict[str, torch.Tensor]:
    """Return the buffers of these names; refuse a name that is none, or of one that is not kept."""
    known, kept = dict(net.named_buffers(remove_duplicate=False)), net.state_dict().keys()
    found = {}
    for name in names:
        if name not in known or name not in kept:
            what = "one that is not persistent" if name in known else "none"
            raise SeedError(
                f"buffers= names {name!r}, expected a buffer in the state_dict of "
                f"{type(net).__name__}, found {what}; it has "
                f"{', '.join([name for name in known if name in kept][:8]) or 'none'}"
            )
        found[name] = known[name]
    return found


def attach_seeding(net: nn.Module, seeding: Seeding) -> None:
    """Record on ``net`` that its weights follow ``seeding``; the weights are not touched.

    Of a wrapped network, the record and its names are those of the network inside.

    Raises:
        SeedError: ``seeding`` names no parameter or buffer of ``net``, or freezes the mask of a
            weight that it does not seed.
    """
    known = parameter_names(net)
    known |= {name for name, _ in unwrap(net).named_buffers(remove_duplicate=False)}
    missing = [name for name in seeding.specs if name not in known]
    missing += [name for name in seeding.frozen if name not in seeding.specs]
    if missing:
        raise SeedError(
            f"attach_seeding: expected parameters and buffers of {type(bare(net)).__name__}, found "
            f"unknown names {', '.join(missing[:5])}; the seeding belongs to another network"
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
    """Return the seeded weights of ``net`` by name, each once, in the order of their streams.

    With `dense_parameters` they are all of ``net.parameters()``. Seeded buffers are not among them.

    Raises:
        SeedError: ``net`` has no record of a seed (see `seeding`), or does not have a weight of it
            any more.
    """
    inner, specs = unwrap(net), seeding(net).specs
    parameters = dict(inner.named_parameters(remove_duplicate=False))
    buffers = {name for name, _ in inner.named_buffers(remove_duplicate=False)}
    for name in specs:
        if name not in parameters and name not in buffers:
            raise SeedError(
                f"{name}: expected this seeded weight among the parameters, found "
                f"{', '.join(list(parameters)[:4]) or 'none'}; leave the network as init_ found "
                "it, and under FSDP use fully_shard, or FSDP with use_orig_params=True"
            )
    return _each_once({name: parameters[name] for name in specs if name in parameters})


def dense_parameters(net: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters of ``net`` that are not seeded by name, each once, in its order.

    They are what an ordinary optimizer trains beside the one that flips signs::

        sgd = torch.optim.SGD(pabzip.dense_parameters(net).values(), lr=0.1)

    Parameters are told apart by identity: a tied weight that is seeded under one name is dense
    under none.

    Raises:
        SeedError: ``net`` has no record of a seed (see `seeding`).
    """
    seeded = {id(parameter) for parameter in seeded_parameters(net).values()}
    named = unwrap(net).named_parameters()
    return {name: value for name, value in named if id(value) not in seeded}


def _each_once(parameters: Mapping[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    """Return the parameters, each under the first of its names alone."""
    first = {id(value): name for name, value in reversed(list(parameters.items()))}
    return {name: value for name, value in parameters.items() if first[id(value)] == name}


def init_report(net: nn.Module) -> InitReport:
    """Return what share of ``net`` is seeded, and of each other tensor why it is dense.

    Args:
        net: a network drawn by `init_` or loaded from a ticket.

    Raises:
        SeedError: ``net`` has no record of a seed (see `seeding`).
    """
    from pabzip.coverage import report

    return report(unwrap(net), seeding(net))


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
    from pabzip.selection import choose

    parameters, net = seeded_parameters(net), unwrap(net)
    holders = {name: net.get_submodule(name.rpartition(".")[0]) for name in parameters}
    chosen = choose(net, holders, only, skip, "a seeded weight")
    return {name: parameters[name] for name in chosen}
