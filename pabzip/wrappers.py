"""Wrappers: the network inside them, under its own names, and weights that are split over ranks.

``torch.compile``, DataParallel, DistributedDataParallel, FSDP and activation checkpointing put a
module around a network, or around parts of it, which runs it otherwise and prefixes its names.
Nothing of this is in a record, a mask, a message or a file: these have the names of the network
itself. No other module of pabzip knows wrappers. `unwrap` gives names and weights; whatever runs a
network runs `runnable`, which has the forward of another library's wrapper, or the caller's own.

FSDP also splits weights over the ranks. `unwrap` looks through it, and what goes by each weight
alone works on a rank's own part (`local`); packing gathers (`full_state`), loading scatters
(`load_full_state`), and what needs whole weights is refused (`check_whole`).
"""

from __future__ import annotations

import re
import sys
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary

from pabzip._optional import require
from pabzip.errors import PabzError, SeedError

if TYPE_CHECKING:
    from torch import Tensor, nn

    _Value = TypeVar("_Value")

RECORD = "_pabzip_seeding"
"""The attribute of a network that holds how it was drawn."""

_CHILDREN = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""The child of torch.compile's wrapper, of FSDP's first form, and of activation checkpointing's."""

_INSIDE = re.compile(rf"(?<![^.])(?:{'|'.join(_CHILDREN)})\.")
_OUTSIDE = "module."

_originals: WeakKeyDictionary[nn.Module, nn.Module] = WeakKeyDictionary()
"""By a view (`unwrap`), the network that it shows."""


def unwrap(net: nn.Module) -> nn.Module:
    """Return the network without wrappers, around it or around parts of it, in any order.

    A wrapper of another library that holds the network as ``.module``, and no parameter besides, is
    looked through if the network inside was drawn from a seed.

    Returns:
        The network itself where wrappers are only around it, or nowhere. Where a part has one, a
        view: containers of its own that hold the very layers, parameters and buffers, so that what
        is done to these is done to ``net``. A record that `pabzip.attach_seeding` puts on it goes
        to both.
    """
    return runnable(bare(net))


def runnable(net: nn.Module) -> nn.Module:
    """Return what runs as ``net`` does, without wrappers of torch's, around it or parts of it.

    Unlike `unwrap` it keeps any other module that holds a drawn network as ``.module``, whose
    forward may do more than call it. The weights are the same; their names may have a prefix.

    Returns:
        The network itself or a view, as of `unwrap`.
    """
    _check_network(net, SeedError)
    inner = net
    while (child := _child(inner)) is not None:
        inner = child
    for module in _fully_sharded(inner):
        module.reshard()  # after a forward pass alone, its parameters are gathered copies
    wrapped = any(_child(module) is not None for module in inner.modules())
    return _view(inner, {}) if wrapped else inner


def bare(net: nn.Module) -> nn.Module:
    """Return the network without the wrappers around it; parts of it may still have theirs."""
    _check_network(net, SeedError)
    while True:
        inner = _child(net)
        if inner is None:
            inner = _drawn_inside(net)
        if inner is None:
            return net
        net = inner


def record_holders(net: nn.Module) -> list[nn.Module]:
    """Return the modules that hold a network's record: itself, and what it is a view of."""
    inner = bare(net)
    return [inner, _originals[inner]] if inner in _originals else [inner]


def parameter_names(net: nn.Module) -> set[str]:
    """Return the names of all parameters of the network inside, second names of tied ones too.

    Of one whose weights FSDP has made flat, the names of all that `full_state` holds.
    """
    if _is_flat(net):
        return set(full_state(net))
    return {name for name, _ in unwrap(net).named_parameters(remove_duplicate=False)}


def inner_names(values: Mapping[str, _Value]) -> dict[str, _Value]:
    """Return values by the names of the network inside, from names as a wrapped one has them.

    ``module.`` goes where every name begins with it, as of DataParallel; a network of the caller's
    own that has a lone child of that name is not told from it. The other prefixes go wherever they
    stand.
    """
    found = {_INSIDE.sub("", name): value for name, value in values.items()}
    while found and all(name.startswith(_OUTSIDE) for name in found):
        found = {name.removeprefix(_OUTSIDE): value for name, value in found.items()}
    return found


@contextmanager
def uncompiled() -> Iterator[None]:
    """Run what ``torch.compile`` has compiled as it was written, within the block.

    That counts for networks compiled in place, too (``net.compile()``).
    """
    if "torch._dynamo" not in sys.modules:  # nothing can be compiled, and importing it takes long
        yield
        return
    import torch

    with torch.compiler.set_stance("force_eager"):
        yield


def is_sharded(net: nn.Module) -> bool:
    """Return whether FSDP holds weights of ``net``, on however many ranks."""
    return _sharded_name(net) is not None


def check_whole(net: nn.Module, what: str, way: str, error: type[PabzError]) -> None:
    """Refuse a network whose weights FSDP holds.

    Args:
        net: any network.
        what: what needs whole weights, for the message.
        way: what to do instead.
        error: the class to raise, also of what is no network.
    """
    _check_network(net, error)
    name = _sharded_name(net)
    if name is not None:
        raise error(f"{what}: {name}: expected a whole weight, found one that FSDP shards; {way}")


def _check_network(net: object, error: type[PabzError]) -> None:
    torch = require("torch", extra="torch", purpose="a network")
    if not isinstance(net, torch.nn.Module):
        what = f"the class {net.__name__}" if isinstance(net, type) else repr(net)
        raise error(f"net: expected a network, a torch.nn.Module, found {what}")


def is_split(tensor: Tensor) -> bool:
    """Return whether FSDP shards a tensor; without importing what would."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def local(tensor: Tensor) -> Tensor:
    """Return this rank's part of a sharded tensor, which shares its memory; others as they are."""
    part: Any = tensor
    return part.to_local() if is_split(tensor) else tensor


def full_state(net: nn.Module) -> dict[str, Any]:
    """Return the network's ``state_dict`` by its own names, with whole tensors.

    Under FSDP tensors are gathered, so every rank has to call it, and every rank gets all.
    """
    if not is_sharded(net):
        return unwrap(net).state_dict()
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    return inner_names(get_model_state_dict(net, options=StateDictOptions(full_state_dict=True)))


def load_full_state(net: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load what `full_state` gives into the network, every name of it; each rank takes its part."""
    if not is_sharded(net):
        inner, values = unwrap(net), OrderedDict(state)
        # Versions of modules, which some refuse to load without; values are those of now.
        values._metadata = inner.state_dict()._metadata  # type: ignore[attr-defined]
        inner.load_state_dict(values, strict=True)
        return
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

    set_model_state_dict(net, dict(state), options=StateDictOptions(full_state_dict=True))


def _child(module: nn.Module) -> nn.Module | None:
    """Return what a wrapper of torch's wraps; None of any other module."""
    torch = require("torch", extra="torch", purpose="a network")
    parallel = torch.nn.parallel
    if isinstance(module, parallel.DataParallel | parallel.DistributedDataParallel):
        inner: nn.Module = module.module
        return inner
    return next((child for name, child in module.named_children() if name in _CHILDREN), None)


def _drawn_inside(net: nn.Module) -> nn.Module | None:
    """Return the drawn network that another library's wrapper holds as ``.module``, if it is one.

    One that has parameters of its own is a network that has another as its part.
    """
    inner: Any = getattr(net, "module", None)
    if RECORD in vars(net) or not hasattr(inner, "named_parameters"):
        return None
    own = {id(parameter) for parameter in net.parameters()}
    if RECORD not in vars(bare(inner)) or own != {id(p) for p in inner.parameters()}:
        return None
    found: nn.Module = inner
    return found


def _view(module: nn.Module, known: dict[int, nn.Module]) -> nn.Module:
    """Return a module without wrappers below it: itself if it has none, or a view of it."""
    inner = _child(module)
    if inner is not None:
        return _view(inner, known)
    if id(module) not in known:
        children = {
            name: None if child is None else _view(child, known)
            for name, child in module._modules.items()
        }
        found = module
        if any(children[name] is not child for name, child in module._modules.items()):
            found = object.__new__(type(module))
            # A compiled call would run what is compiled: the module, and not its view.
            vars(found).update(vars(module), _modules=children, _compiled_call_impl=None)
            _originals[found] = module
        known[id(module)] = found
    return known[id(module)]


def _is_flat(net: nn.Module) -> bool:
    """Return whether FSDP's first form, which makes one flat tensor of weights, is anywhere."""
    return any("_fsdp_wrapped_module" in dict(module.named_children()) for module in net.modules())


def _sharded_name(net: nn.Module) -> str | None:
    """Return the name of the first weight that FSDP holds, in either form of it."""
    if _is_flat(net):
        return next(iter(inner_names(dict(net.named_parameters()))), type(bare(net)).__name__)
    for module in _fully_sharded(net):
        module.reshard()
    split = (name for name, value in net.named_parameters() if is_split(value))
    return next((next(iter(inner_names({name: None}))) for name in split), None)


def _fully_sharded(net: nn.Module) -> list[Any]:
    """Return the modules that ``fully_shard`` was called on; of FSDP's second form."""
    package = sys.modules.get("torch.distributed.fsdp")
    kind = getattr(package, "FSDPModule", ())
    return [module for module in net.modules() if isinstance(module, kind)]
