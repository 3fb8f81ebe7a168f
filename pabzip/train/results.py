"""What a training run reports: within an epoch, after each epoch, at its end; what a step costs."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Results:
    """Numbers that a command prints or that are saved."""

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers by name."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run stands within an epoch.

    Attributes:
        epoch: counted from 1.
        step: steps done in this epoch.
        loss: mean cross-entropy of the epoch so far.
        accuracy: training accuracy of the epoch so far.
        flips_per_step: mean number of signs flipped in a step of the epoch so far.
    """

    epoch: int
    step: int
    loss: float
    accuracy: float
    flips_per_step: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochStats(Results):
    """One epoch in numbers, measured on the validation images or, where there are none, the test's.

    Attributes:
        epoch: counted from 1.
        epochs: how many there will be.
        loss: mean cross-entropy over the epoch's training samples, as they were seen; 0 where every
            step of it was dropped.
        train_accuracy: fraction of them classified rightly, as they were seen.
        test_loss: mean cross-entropy over the test set, after the epoch; None in a run with
            validation images.
        test_accuracy: fraction of the test set classified rightly, after the epoch; likewise.
        validation_loss: mean cross-entropy over the validation images, after the epoch; None in a
            run without.
        validation_accuracy: fraction of these classified rightly, after the epoch; likewise.
        flips_per_step: mean number of signs flipped in a step.
        flipped: fraction of the surviving weights whose sign differs from the seed's.
        seconds: wall-clock time of the epoch, evaluation included.
        expected_bytes: size of the file that packing the network now would give, estimated
            (`ExpectedBytes`); None for methods that train magnitudes.
    """

    epoch: int
    epochs: int
    loss: float
    train_accuracy: float
    test_loss: float | None = None
    test_accuracy: float | None = None
    validation_loss: float | None = None
    validation_accuracy: float | None = None
    flips_per_step: float
    flipped: float
    seconds: float
    expected_bytes: float | None = None

    @property
    def part(self) -> str:
        """On which images it was measured: ``"validation"`` or ``"test"``."""
        return "test" if self.validation_loss is None else "validation"

    @property
    def measured(self) -> tuple[float, float]:
        """Loss and accuracy on these."""
        loss, accuracy = self.validation_loss, self.validation_accuracy
        if loss is None or accuracy is None:
            loss, accuracy = self.test_loss, self.test_accuracy
        assert loss is not None
        assert accuracy is not None
        return loss, accuracy

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers by name, without those of images that it was not measured on."""
        other = "test_" if self.part == "validation" else "validation_"
        values = dataclasses.asdict(self)
        return {name: value for name, value in values.items() if not name.startswith(other)}


@dataclass(frozen=True, slots=True)
class LayerCost:
    """What one Conv or Linear layer costs in one training step of one sample.

    Attributes:
        name: the layer's weight, by parameter name.
        macs: multiply-accumulates of the forward pass with all weights, zero or not.
        kept: fraction of its weights that the mask keeps, 1.0 without a mask.
        masked: whether there is a mask for it.
        forward: bit operations of the product of input and weight.
        input_gradient: bit operations of the product of output gradient and weight.
        weight_gradient: bit operations of the product of output gradient and input.
    """

    name: str
    macs: int
    kept: float
    masked: bool
    forward: float
    input_gradient: float
    weight_gradient: float

    @property
    def total(self) -> float:
        """Bit operations of all three products."""
        return self.forward + self.input_gradient + self.weight_gradient


@dataclass(frozen=True, slots=True)
class StepCosts:
    """What one training step of one sample costs, from some epoch of a run on.

    Attributes:
        epoch: the first epoch that it holds for, counted from 1.
        layers: the cost of each layer, from `pabzip.train.step_costs`.
        weights: number of seeded weights.
        survivors: how many of them are not pruned.
    """

    epoch: int
    layers: tuple[LayerCost, ...]
    weights: int
    survivors: int

    @property
    def bitops(self) -> float:
        """Bit operations of all layers together."""
        return sum(cost.total for cost in self.layers)

    @property
    def layer_bitops(self) -> dict[str, float]:
        """Bit operations of each layer, by name of its weight."""
        return {cost.name: cost.total for cost in self.layers}


@dataclass(frozen=True, slots=True)
class TrainResult(Results):
    """A finished run; the first nine are the stable keys of ``pabzip train --json``.

    Attributes:
        arch: the recipe's architecture.
        data: the recipe's dataset.
        method: the recipe's method.
        keep_ratio: the recipe's keep ratio; 1.0 where the network stays dense.
        epochs: epochs trained.
        test_accuracy: of the network as it was written, after the last epoch (no epoch is picked
            by its test accuracy).
        output: path of the checkpoint.
        seconds: wall-clock time of the run, search included.
        bitops: bit operations of one training step of one sample (`pabzip.train.step_costs`); the
            average over all steps where the recipe drops some, and those after the last search
            where it searches later.
        layer_bitops: the part of each layer in it, by parameter name of the layer's weight.
        test_loss: mean cross-entropy on the test set, after the last epoch.
        train_accuracy: as seen during the last epoch.
        weights: number of seeded weights (N).
        survivors: number of them that the mask kept (K).
        flipped: fraction of the survivors whose sign differs from the seed's.
        seed: the recipe's seed.
        validation: fraction of the training images that were held out; this and the next two are
            left out of a dictionary where there were no validation images.
        validation_loss: mean cross-entropy on these, after the last epoch.
        validation_accuracy: fraction of these classified rightly, likewise.
    """

    arch: str
    data: str
    method: str
    keep_ratio: float
    epochs: int
    test_accuracy: float
    output: str
    seconds: float
    bitops: float
    layer_bitops: dict[str, float]
    test_loss: float
    train_accuracy: float
    weights: int
    survivors: int
    flipped: float
    seed: int
    validation: float = 0.0
    validation_loss: float | None = None
    validation_accuracy: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers by name."""
        values = dataclasses.asdict(self)
        if self.validation_loss is None:
            del values["validation"], values["validation_loss"], values["validation_accuracy"]
        return values

    def lasting(self) -> dict[str, Any]:
        """Return what travels in the checkpoint: all but where it was written and how long it took.

        So the same recipe gives the same file, byte for byte, wherever and whenever it runs.
        """
        values = self.to_dict()
        del values["output"], values["seconds"]
        return values


@dataclass(frozen=True, slots=True)
class SearchResult(Results):
    """What a search without training found: the keys of ``pabzip train --search-only --json``.

    Attributes that `TrainResult` has too are what they are there.

    Attributes:
        search: the recipe's ``search.method``.
        epochs: 0, since nothing was trained.
        seconds: wall-clock time of the search.
    """

    arch: str
    data: str
    search: str
    keep_ratio: float
    epochs: int
    weights: int
    survivors: int
    bitops: float
    layer_bitops: dict[str, float]
    seed: int
    output: str
    seconds: float
