"""From settings to data, device and a network whose weights are drawn from the seed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from pabzip import data, models
from pabzip.data import Splits, batches, hold_out
from pabzip.data.registry import Geometry
from pabzip.errors import ArchitectureError, RecipeError
from pabzip.init import init_
from pabzip.train.config import Recipe
from pabzip.train.distributed import ProcessGroup


@contextmanager
def evaluation_mode(net: nn.Module) -> Iterator[None]:
    """Run the block with ``net`` in evaluation mode; each module gets its own mode back after."""
    before = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


@contextmanager
def isolated(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the generators of the CPU and of ``device``, in float32 and with gradients on.

    A network of the caller's own may draw at random (dropout) or create tensors in the default
    dtype; within the block both are fixed, and afterwards the caller's random states, default
    dtype and gradient mode are as they were, also on an exception. Threads and deterministic flags
    are left alone.
    """
    cuda = device.type == "cuda"
    dtype = torch.get_default_dtype()
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[device] if cuda else []))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.callback(torch.set_default_dtype, dtype)
        torch.default_generator.manual_seed(seed)
        if cuda:
            stack.enter_context(torch.cuda.device(device))
            torch.cuda.manual_seed(seed)
        torch.set_default_dtype(torch.float32)
        yield


def pick_device(name: str, local_rank: int | None = None) -> torch.device:
    """Return the device that a recipe names; ``"auto"`` takes CUDA where there is one.

    With ``"auto"`` and ``"cuda"``, each process of a machine takes the device of its number, its
    ``local_rank``.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and local_rank is not None:
        name = f"cuda:{local_rank}"
    device = torch.device(name)
    if device.type != "cuda":
        return device
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if (device.index or 0) >= count:
        raise RecipeError(
            f"device: expected one of this machine's {count} CUDA devices, found {name!r}; "
            "use auto or cpu"
        )
    return torch.device("cuda", device.index or 0)


def build_network(recipe: Recipe, splits: Splits | Geometry) -> nn.Module:
    """Build the recipe's architecture for its data and draw its weights from the seed.

    A registered architecture gets the number of classes, the channels and the image size from the
    data, unless the recipe's ``arch_options`` say otherwise. The caller's own ``module:callable``
    gets exactly the recipe's ``arch_options``. Dense parameters start as the architecture draws
    them, from the recipe's seed.

    Args:
        recipe: ``arch``, ``arch_options``, ``seed``, ``scheme`` and ``classifier`` matter.
        splits: the data; one image is passed through to check that the network fits. Or a
            `Geometry`, and none is.

    Returns:
        The network on the CPU, in float32 and training mode, with its seeding on record.

    Raises:
        ArchitectureError: options that do not fit, or a network that does not turn the data's
            images into one logit a class.
        SeedError: nothing in the network can be seeded.
    """
    if recipe.own_architecture:
        net = models.resolve(recipe.arch, recipe.arch_options, dense_seed=recipe.seed)
        net.to("cpu", torch.float32).train()
    else:
        options = {
            "num_classes": splits.num_classes,
            "in_channels": splits.in_channels,
            "image_size": splits.image_size,
            **recipe.arch_options,
        }
        net = models.build(recipe.arch, options, dense_seed=recipe.seed)
    net = seed_network(net, recipe)
    if isinstance(splits, Splits):
        _check_fit(net, splits, recipe.arch)
    return net


def seed_network(net: nn.Module, recipe: Recipe) -> nn.Module:
    """Draw the weights of ``net`` that the recipe seeds; returns ``net``.

    With ``classifier = "dense"`` the classifier of a network that has convolutions stays dense.
    All other weights that `init_` draws are seeded.

    Raises:
        SeedError: nothing is left to seed.

    Source: the published code of Peek-a-Boo, which seeds every convolution and trains the
    classifier by SGD.
    """
    classifier = classifier_name(net)
    convolutional = any(isinstance(module, _ConvNd) for module in net.modules())
    dense = recipe.classifier == "dense" and convolutional and classifier is not None
    skip = [f"{classifier}.weight"] if dense else None
    return init_(net, recipe.seed, recipe.scheme, skip=skip)


def classifier_name(net: nn.Module) -> str | None:
    """Return the name of the classifier: the last ``nn.Linear`` in module order, if any."""
    names = [name for name, module in net.named_modules() if isinstance(module, nn.Linear)]
    return names[-1] if names else None


def _check_fit(net: nn.Module, splits: Splits, arch: str) -> None:
    """Pass one image through, so that a network that does not fit fails before the search."""
    inputs, _ = next(batches(splits.train, 1, device="cpu"))
    wanted = f"architecture {arch!r}: expected logits [1, {splits.num_classes}] for an image "
    wanted += f"{list(inputs.shape)} of {splits.name}"
    with evaluation_mode(net), torch.no_grad():
        try:
            logits = net(inputs)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise ArchitectureError(f"{wanted}, found {type(error).__name__}: {error}") from error
    found = list(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
    if found != [1, splits.num_classes]:
        raise ArchitectureError(f"{wanted}, found {found}; set num_classes in arch_options")


def sharded(recipe: Recipe, group: ProcessGroup) -> Recipe:
    """Return ``recipe`` with the number of its shards, where it leaves that to the processes."""
    if recipe.shards:
        return recipe
    try:
        return recipe.replace(shards=group.size)
    except RecipeError as error:
        raise RecipeError(
            f"{error}, one for each process; start torchrun with --nproc-per-node of 1, 2, 4, ..., "
            "at most the batch size"
        ) from error


def held_out(recipe: Recipe, splits: Splits) -> Splits:
    """Return ``splits`` with the validation images that the recipe asks for.

    Raises:
        RecipeError: no image would be held out, or less than a batch be left to train on.
    """
    if not recipe.validation:
        return splits
    parted = hold_out(splits, recipe.validation, seed=recipe.seed)
    if len(parted.train) < recipe.batch_size:
        raise RecipeError(
            f"validation: expected at least a batch of {recipe.batch_size} training images left, "
            f"found {len(parted.train)} of {len(splits.train)} with {recipe.validation}; lower "
            "validation or batch_size"
        )
    return parted


def prepare_data(
    recipe: Recipe,
    device: torch.device,
    group: ProcessGroup,
    *,
    splits: Splits | None,
    download: bool,
) -> Splits:
    """Return the data of a run, on its device, once it is sure that the run can use it.

    Validation images are held out where the recipe says so. The first process downloads before the
    others read. ``splits`` and ``download`` are as for `pabzip.train.train`.
    """
    if splits is None:
        load = partial(data.load, recipe.data, root=recipe.data_root, download=download)
        if download and group.size > 1:
            group.from_first(lambda: load().name)
        splits = load()
    splits = held_out(recipe, splits)
    if recipe.augment and splits.augmentation is None:
        raise RecipeError(
            f"augment: expected false for {splits.name}, which has no augmentation, found true"
        )
    if recipe.shards % group.size:
        raise RecipeError(
            f"shards: expected a multiple of the {group.size} processes, which must be a power of "
            f"two, found {recipe.shards}; leave it out, set shards = "
            f"{1 << (group.size - 1).bit_length()}, or start torchrun with --nproc-per-node of "
            "1, 2, 4, ... processes"
        )
    if len(splits.train) < recipe.shards:
        raise RecipeError(
            f"shards: expected at most the {len(splits.train)} training images, found "
            f"{recipe.shards}"
        )
    return dataclasses.replace(
        splits,
        train=splits.train.to(device),
        test=splits.test.to(device),
        validation=None if splits.validation is None else splits.validation.to(device),
    )
