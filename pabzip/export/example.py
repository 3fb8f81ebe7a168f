"""Export of any network by an example: its inputs and outputs by name, open axes, and the check.

Importing this module imports torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from pabzip.calls import EXAMPLE, Call, Output, guarded, named_tensors, shown
from pabzip.errors import ExportError
from pabzip.export.graph import BATCH, trace
from pabzip.export.parity import Case

if TYPE_CHECKING:
    import onnx_ir as ir

OUTPUT = "output"
"""Name of the only output, and the first part of the names of a tuple's."""

Axes = Mapping[str, Mapping[int, str]]
"""Names of open axes by the input's name and the axis; what has one name has one size."""

_REFUSALS = (RuntimeError, ValueError, TypeError, IndexError, AssertionError)
_TRACED = 2  # torch.export takes a dimension of 0 or 1 for a constant


@dataclass(frozen=True)
class Example:
    """An example call of a network, with names for what the model takes.

    Attributes:
        net: a float32 network on the CPU, in evaluation mode.
        call: its arguments, floating tensors as float32.
        inputs: names of the model's inputs, in the order of the call's tensors.
        axes: open axes of each input by its name, by number from 0.
        output: from what the network returns to what the model does; None for all of it.
        output_names: names of the model's outputs; None takes those that the network's have.
    """

    net: nn.Module
    call: Call
    inputs: tuple[str, ...]
    axes: Axes
    output: Output | None = None
    output_names: tuple[str, ...] | None = None

    @classmethod
    def of(
        cls,
        net: nn.Module,
        example_inputs: Any,
        *,
        input_names: Sequence[str] | None = None,
        output_names: Sequence[str] | None = None,
        output: Output | None = None,
        dynamic_axes: Axes | None = None,
        dynamic_batch: bool = True,
    ) -> Example:
        """Check what `pabzip.export.build_onnx` was given.

        Raises:
            ExportError: it is no example, or names and axes do not fit it.
        """
        call = read_example(net, example_inputs)
        found = tuple(name for name, _ in call.tensors())
        names = found if input_names is None else tuple(input_names)
        _check_names("input_names", names, len(found), f"the inputs {', '.join(found)}")
        tensors = dict(zip(names, (tensor for _, tensor in call.tensors()), strict=True))
        output = guarded(output, "output", "what the network returns", ExportError)
        return cls(
            net, call, names, _open_axes(tensors, dynamic_axes, dynamic_batch), output,
            None if output_names is None else tuple(output_names),
        )  # fmt: skip

    @property
    def sizes(self) -> dict[str, int]:
        """The example's sizes of all open axes, by the axes' names."""
        return {
            name: tensor.shape[axis]
            for input_name, tensor in self._tensors(self.call)
            for axis, name in self.axes[input_name].items()
        }

    @property
    def shapes(self) -> dict[str, list[int | str]]:
        """The inputs' shapes, open axes by their names."""
        return {
            name: [self.axes[name].get(axis, size) for axis, size in enumerate(tensor.shape)]
            for name, tensor in self._tensors(self.call)
        }

    def sized(self, sizes: Mapping[str, int]) -> Call:
        """Return the call with some open axes at other sizes: cut, or repeated from the start."""
        names = iter(self.inputs)

        def change(_: str, tensor: Tensor) -> Tensor:
            for axis, name in self.axes[next(names)].items():
                places = torch.arange(sizes.get(name, tensor.shape[axis])) % tensor.shape[axis]
                tensor = tensor.index_select(axis, places)
            return tensor

        return self.call.map(change)

    def cases(self, samples: Iterable[Any] | None) -> list[Case]:
        """Return what to compare: the example, each open axis at other sizes, and ``samples``.

        Of the other sizes of an axis (half and double; one less and one more; of the batch 1 and
        3) those are left out that the network itself refuses.

        Raises:
            ExportError: the network refuses the example or a sample, gives no finite numbers or
                no tensors, other outputs at another size, or takes an open axis at one size alone.
        """
        cases = [self._case(self.call)]
        for name, size in self.sizes.items():
            other = 3 if size == 1 else 1
            rounds = [(1, 3)] if name == BATCH else [(size // 2, size * 2), (size - 1, size + 1)]
            taken = 0
            for candidates in rounds:
                for wanted in {*candidates} - {0, size}:
                    sizes = {name: wanted} if name == BATCH else {BATCH: other, name: wanted}
                    try:
                        self._returned(self.sized(sizes))
                    except _REFUSALS:
                        continue
                    cases.append(self._case(self.sized(sizes)))
                    taken += 1
                if taken:
                    break
            if not taken:
                fixed = "dynamic_batch=False" if name == BATCH else "it left out of dynamic_axes"
                raise ExportError(
                    f"{self._name}: expected a network that takes the axis {name!r} at other sizes "
                    f"than {size}, found that it refuses all that were tried; export with {fixed}"
                )
        for number, sample in enumerate(samples or ()):
            call = read_example(self.net, sample, f"samples[{number}]")
            if [name for name, _ in call.tensors()] != [name for name, _ in self.call.tensors()]:
                raise ExportError(
                    f"samples[{number}]: expected the same arguments as in example_inputs "
                    f"({self.call.shown}), found {call.shown}"
                )
            cases.append(self._case(call))
        return cases

    def trace(self, opset: int) -> ir.Model:
        """Return the ONNX graph; errors are those of `pabzip.export.build_onnx`."""
        sizes = {name: max(size, _TRACED) for name, size in self.sizes.items()}
        outputs = list(self._case(self.call).outputs)
        tensors = tuple(tensor.contiguous() for _, tensor in self._tensors(self.sized(sizes)))
        axes = [dict(self.axes[name]) for name in self.inputs]
        model = trace(
            _Flat(self), tensors, inputs=self.inputs, outputs=outputs, opset=opset,
            axes=axes, name=self._name,
            dynamic_shapes=(tuple(named or None for named in axes),) if any(axes) else None,
        )  # fmt: skip
        known = {*self.inputs, *outputs, *model.graph.initializers}
        for value in list(model.graph.initializers.values()):
            own = (value.name or "").removeprefix("net.")
            if own not in known:
                value.name = own
        return model

    def feed(self, call: Call) -> dict[str, np.ndarray]:
        """Return a call's tensors as arrays by the names of the model's inputs."""
        return {name: tensor.numpy() for name, tensor in self._tensors(call)}

    def named_outputs(self, returned: Any) -> dict[str, Tensor]:
        """Return the tensors in what the network returned, by the model's names."""
        returned = returned if self.output is None else self.output(returned)
        start = OUTPUT if isinstance(returned, Tensor | tuple | list) else ""
        found = list(named_tensors(returned, start))
        if not found:
            raise ExportError(
                f"{self._name}: expected tensors in what the network returns, found "
                f"{shown(returned)}; pass output=, which takes them from there"
            )
        names = [f"{name}.out" if name in self.inputs else name for name, _ in found]
        if self.output_names is not None:
            what = f"the outputs {', '.join(names)}"
            _check_names("output_names", self.output_names, len(found), what, self.inputs)
            names = list(self.output_names)
        return dict(zip(names, (tensor for _, tensor in found), strict=True))

    def _case(self, call: Call) -> Case:
        try:
            returned = self._returned(call)
        except _REFUSALS as error:
            raise ExportError(
                f"{self._name}: expected a network that takes {call.shown}, found: "
                f"{(str(error).splitlines() or [type(error).__name__])[0]}; check example_inputs"
            ) from error
        outputs = {
            name: (tensor.float() if tensor.is_floating_point() else tensor).numpy()
            for name, tensor in self.named_outputs(returned).items()
        }
        for name, array in outputs.items():
            if array.dtype.kind == "f" and np.isnan(array).any():
                raise ExportError(
                    f"{self._name}: expected numbers in the output {name!r}, found NaN from torch "
                    "itself; pass example_inputs= of the kind the network was trained on"
                )
        return Case(self.feed(call), outputs)

    def _returned(self, call: Call) -> Any:
        with torch.no_grad():
            # A copy: some networks write to their inputs.
            copied = call.map(lambda _, tensor: tensor.clone())
            return self.net(*copied.args, **copied.kwargs)

    def _tensors(self, call: Call) -> Iterator[tuple[str, Tensor]]:
        """Yield a call's tensors by the names of the model's inputs."""
        yield from zip(self.inputs, (tensor for _, tensor in call.tensors()), strict=True)

    @property
    def _name(self) -> str:
        return type(self.net).__name__


class _Flat(nn.Module):
    """A network that takes its example's tensors one by one, and returns a tuple of tensors."""

    def __init__(self, example: Example):
        super().__init__()
        self.net = example.net
        self._example = example

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Call the network with the tensors in their places, and all else as in the example."""
        given = iter(tensors)
        call = self._example.call.map(lambda _name, _tensor: next(given))
        returned = self.net(*call.args, **call.kwargs)
        return tuple(self._example.named_outputs(returned).values())


def read_example(net: nn.Module, example: Any, where: str = "example_inputs") -> Call:
    """Return example inputs as a call on the CPU, in float32 where they are floating."""
    call = Call.of(example, net)
    if call is None:
        raise ExportError(
            f"{where}: expected {EXAMPLE}, with a tensor in it, found {shown(example)}"
        )
    return call.map(
        lambda _, tensor: tensor.detach().to(
            "cpu", torch.float32 if tensor.is_floating_point() else None
        )
    )


def _open_axes(
    tensors: Mapping[str, Tensor], dynamic_axes: Axes | None, dynamic_batch: bool
) -> dict[str, dict[int, str]]:
    """Return the open axes of each input: those asked for, and the batch."""
    axes: dict[str, dict[int, str]] = {name: {} for name in tensors}
    given = {} if dynamic_axes is None else dynamic_axes
    if not isinstance(given, Mapping) or not all(isinstance(v, Mapping) for v in given.values()):
        raise ExportError(
            "dynamic_axes: expected names of axes by input and axis, such as "
            f"{{{next(iter(tensors))!r}: {{1: 'tokens'}}}}, found {dynamic_axes!r}"
        )
    for name, named in given.items():
        if name not in tensors:
            raise ExportError(
                f"dynamic_axes: expected names among {', '.join(tensors)}, found {name!r}"
            )
        for axis, label in named.items():
            dims = tensors[name].dim()
            fits = isinstance(axis, int) and -dims <= axis < dims
            if not fits or not isinstance(label, str) or not label.isidentifier():
                raise ExportError(
                    f"dynamic_axes: expected axes of {name!r}, which has {dims}, with identifiers "
                    f"as names, found {axis!r}: {label!r}"
                )
            axes[name][axis % dims] = label
    if dynamic_batch:
        batch = next((tensor.shape[0] for tensor in tensors.values() if tensor.dim()), None)
        for name, tensor in tensors.items():
            if tensor.dim() and tensor.shape[0] == batch:
                axes[name].setdefault(0, BATCH)
    sizes: dict[str, int] = {}
    for name, named in axes.items():
        for axis, label in named.items():
            size = tensors[name].shape[axis]
            if sizes.setdefault(label, size) != size or size == 0:
                raise ExportError(
                    f"dynamic_axes: expected one size above 0 for the axis {label!r}, found "
                    f"{sizes[label]} and, in {name!r}, {size}; give axes of other sizes other names"
                )
    return {name: dict(sorted(named.items())) for name, named in axes.items()}


def _check_names(
    where: str, names: Sequence[str], count: int, what: str, taken: Sequence[str] = ()
) -> None:
    """Refuse names that are not as many as needed, or not all different."""
    if len(names) != count or len({*names, *taken}) != count + len(taken) or "" in names:
        raise ExportError(
            f"{where}: expected {count} different names for {what}, which no input has, found "
            f"{', '.join(names)}"
            if taken
            else f"{where}: expected {count} different names for {what}, found {', '.join(names)}"
        )
