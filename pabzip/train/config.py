"""All settings of a training run: the recipe, its tables, and the way to plain values.

A recipe is plain data. It can be written to TOML or JSON, travels in the checkpoint, and the same
recipe on the same machine gives the same network bit for bit on a CPU.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, field_validator, model_validator

from pabzip.errors import RecipeError
from pabzip.registry import DATASETS, METHODS, NETWORKS, SEARCHES, constant
from pabzip.seeds import SCHEMES
from pabzip.train.methods import Method
from pabzip.train.score_settings import ScoreSections
from pabzip.train.settings import Section, Setting, setting, settings_of, unknown

Table = Mapping[str, Any]

_IMPORTABLE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


def _names(value: object) -> tuple[str, ...]:
    """Return names from one or from a list of them; none may be empty."""
    names = (value,) if isinstance(value, str) else value
    if isinstance(names, list | tuple) and all(type(name) is str and name for name in names):
        return tuple(names)
    raise ValueError(value)


class SearchRecipe(Section, table="search"):
    """How the mask is searched; the dense methods do without.

    Source: Tanaka et al. 2020; Peek-a-Boo, Sections 3.2 and 4.1 (SynFlow, 100 iterations),
    Appendix C (``epoch``, Figure 5; ``shots``, Table 4).
    """

    method: str = setting("synflow", "What scores the weights.", choices=lambda: SEARCHES)
    iterations: int | None = setting(
        None,
        "Pruning steps; the published number if left out: 100 for SynFlow, else 1. Few steps of "
        "SynFlow risk layer collapse.",
        ge=1,
    )
    schedule: str = setting(
        "exponential",
        "How the kept fraction falls over the iterations.",
        choices=lambda: constant("pabzip.search", "schedule", "SCHEDULES"),
    )
    scope: str = setting(
        "global",
        "One threshold over all weights, or one for each layer; not where layers have ratios.",
        choices=lambda: constant("pabzip.search", "schedule", "SCOPES"),
    )
    epoch: int = setting(
        0, "Epoch of the last search, less than epochs; 0 searches at initialization.", ge=0
    )
    shots: int = setting(
        1, "Searches, one every search.epoch / shots epochs (rounded down), none at epoch 0.", ge=1
    )
    precision: str = setting(
        "float64",
        "In which SynFlow computes: as published, or the fast form.",
        choices=("float64", "float32"),
    )
    samples: int = setting(100, "Training images that SNIP and GraSP measure on.", ge=1)
    batch_norm: str = setting(
        "published",
        "What batch norm normalizes by while SNIP or GraSP scores: each batch's statistics or the "
        "running ones; as the authors' code does if left out: running for SNIP, batch for GraSP.",
        choices=("published", "batch", "running"),
    )
    skip: Annotated[tuple[str, ...], BeforeValidator(_names)] = setting(
        (),
        "Weights, or layers by name, that no search prunes and keep_ratio does not count.",
        expected='names of layers or weights, such as ["conv1", "layer1.0.conv1.weight"]',
    )
    ratios: Mapping[str, Any] = setting(
        {},
        "For layerwise-random: the fraction to keep by name of the weight; keep_ratio for others.",
        expected="a table of numbers by name",
    )
    ratio_form: str = setting(
        "resnet",
        "For smart-ratio: how fast the kept fraction falls with depth.",
        choices=lambda: constant("pabzip.search", "baselines", "RATIO_FORMS"),
    )
    linear_keep_ratio: float = setting(
        0.3, "For smart-ratio: the fraction to keep of Linear layers.", gt=0, le=1
    )

    @field_validator("ratios", mode="after")
    @classmethod
    def _fractions(cls, ratios: Mapping[str, Any]) -> Mapping[str, float]:
        """Refuse what is no fraction."""
        for name, ratio in ratios.items():
            if isinstance(ratio, Mapping):
                raise RecipeError(
                    f"search.ratios.{name}: expected a number, found a table; quote a name that "
                    'has dots, as in "layer1.conv.weight" = 0.1'
                )
            if type(ratio) not in (int, float) or not 0 < ratio <= 1:
                raise RecipeError(
                    f"search.ratios.{name}: expected a number above 0 and at most 1, found "
                    f"{ratio!r}"
                )
        return {name: float(ratio) for name, ratio in ratios.items()}

    @model_validator(mode="after")
    def _consistent(self) -> SearchRecipe:
        """Refuse values that contradict each other."""
        if self.shots > max(self.epoch, 1):
            raise RecipeError(
                f"search.shots: expected at most {max(self.epoch, 1)}, one after each epoch "
                f"up to search.epoch = {self.epoch}, found {self.shots}; raise search.epoch"
            )
        if self.ratios and not self.reads["ratios"]:
            own = [name for name in SEARCHES if "ratios" in SEARCHES.facts(name).get("takes", ())]
            raise RecipeError(
                f"search.ratios: expected none for search.method = {self.method!r}, found "
                f"{len(self.ratios)}; they are for {', '.join(own)}"
            )
        return self

    @property
    def reads(self) -> dict[str, bool]:
        """Whether the method reads each of the settings that some searches do not read."""
        facts = SEARCHES.facts(self.method)
        takes, needs_data = facts.get("takes", ()), bool(facts.get("needs_data", False))
        own = ("ratios", "batch_norm", "ratio_form", "linear_keep_ratio")
        return {
            "samples": needs_data,
            "precision": "dtype" in takes and not needs_data,
            **{name: name in takes for name in own},
        }

    @property
    def rounds(self) -> int:
        """Pruning steps of the schedule: ``iterations``, or the published number."""
        return _published(self.method) if self.iterations is None else self.iterations


def _published(method: object) -> int:
    """Return how many pruning steps a search was published with."""
    facts = SEARCHES.facts(method) if isinstance(method, str) and method in SEARCHES else {}
    return int(facts.get("rounds", 1))


class Recipe(ScoreSections):
    """One training run: what is trained, on what, and how.

    Every `Section` is a table of it, those of users' packages too (`Recipe.section`). ``shards``:
    batch norm sees one part of a batch at a time, as it does where several processes train
    together; their number must divide ``shards``, and each such number gives the same bits. In
    float32 on CUDA, torch's own switches decide, by which convolutions use TF32.

    Raises:
        RecipeError: a value out of range, or an unknown name.

    Source: Peek-a-Boo, Algorithm 1 and Sections 4.1 and 4.2 (``drop_ratio``).
    """

    model_config = ConfigDict(extra="allow")

    arch: str = setting(
        "lenet-300-100",
        "Network, such as resnet18 (--list-settings names all), or your own module:callable.",
        flag="--arch",
        expected=lambda: f"one of {', '.join(NETWORKS)}, or your own module:callable",
    )
    arch_options: Mapping[str, Any] = setting(
        {},
        "Arguments of the network, such as arch_options.width = 32; classes and image size follow "
        "the data.",
        expected="a table of options",
    )
    data: str = setting(
        "digits",
        "Dataset, such as digits (built in) or cifar10, or a folder of images.",
        flag="--data",
        expected=lambda: f"one of {', '.join(DATASETS)}, or a folder",
    )
    data_root: str | None = setting(
        None, "Folder of downloaded datasets.", flag="--data-root", place=True
    )
    augment: bool = setting(False, "Crop training images, and mirror them where that fits.")
    seed: int = setting(
        0,
        "Random seed of the weights, the order of the samples and all else.",
        flag="--seed",
        ge=0,
        le=2**64 - 1,
    )
    validation: float = setting(
        0.0,
        "Fraction of the training images held out to measure epochs on, not on the test images.",
        flag="--validation",
        ge=0,
        lt=1,
    )
    scheme: str = setting("kaiming_normal", "How seeded weights are drawn.", choices=SCHEMES)
    classifier: str = setting(
        "dense",
        "The last Linear layer of a convolutional network: trained by SGD, or seeded too.",
        choices=("dense", "seeded"),
    )
    method: str = setting(
        "pab-bop", "What is trained, and how.", flag="--method", choices=lambda: METHODS
    )
    keep_ratio: float = setting(
        0.1, "Fraction of the seeded weights that survive.", flag="--keep-ratio", gt=0, le=1
    )
    epochs: int = setting(20, "Passes over the training images.", flag="--epochs", ge=1)
    batch_size: int = setting(64, "Images a step.", flag="--batch-size", ge=1)
    shards: int = setting(
        0, "Parts that a batch is computed in, a power of two; 0 is one for each process.", ge=0
    )
    drop_ratio: float = setting(0.0, "Fraction of the steps left out at random.", ge=0, lt=1)
    precision: str = setting(
        "float32",
        "Precision of the forward and backward passes; weights stay float32.",
        choices=("float32", "bfloat16", "float16"),
    )
    channels_last: bool = setting(
        False, "Lay images and convolutions out pixel by pixel, which some devices prefer."
    )
    device: str = setting(
        "auto",
        "auto is CUDA where there is one, else the CPU.",
        flag="--device",
        expected="auto, cpu, cuda or cuda:<number>",
        place=True,
        pattern=r"^(auto|cpu|cuda(:[0-9]+)?)$",
    )
    search: SearchRecipe = SearchRecipe()

    @model_validator(mode="before")
    @classmethod
    def _tables(cls, values: Any) -> Any:
        """Refuse unknown names, and add the tables of users' packages."""
        if not isinstance(values, Mapping):
            return values
        for table, kind in Section.sections.items():
            field = cls.model_fields.get(table)
            if hasattr(cls, table) or (field and getattr(field.annotation, "table", "") != table):
                raise RecipeError(
                    f"{table}: expected a table of settings with a name that is free, found "
                    f"{kind.__module__}.{kind.__qualname__} with a name that recipes use "
                    "themselves; choose another"
                )
        for key, value in values.items():
            section = Section.sections.get(key)
            if section is None and key not in cls.model_fields:
                raise unknown(key, _keys())
            if section is not None and isinstance(value, Mapping):
                for name in value:
                    if name not in section.model_fields:
                        raise unknown(f"{key}.{name}", _keys())
        own = {
            name: kind.model_validate(values.get(name, {}))
            for name, kind in Section.sections.items()
            if name not in cls.model_fields
        }
        return {**values, **own}

    @field_validator("arch", mode="after")
    @classmethod
    def _buildable(cls, arch: str) -> str:
        """Refuse what is neither registered nor of the form ``module:callable``."""
        if arch not in NETWORKS and not _IMPORTABLE.fullmatch(arch):
            raise ValueError(arch)
        return arch

    @field_validator("arch_options", mode="after")
    @classmethod
    def _plain_options(cls, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """Refuse options without plain values."""
        for name, value in options.items():
            if not isinstance(value, bool | int | float | str):
                raise RecipeError(
                    f"arch_options.{name}: expected a text, a number, true or false, found "
                    f"{value!r}"
                )
        return options

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        """Refuse values that contradict each other."""
        if self.shards > self.batch_size:
            raise RecipeError(
                f"shards: expected a whole number from 0 to {self.batch_size}, the batch size, "
                f"found {self.shards}"
            )
        if self.shards & (self.shards - 1):
            raise RecipeError(
                f"shards: expected a power of two, such as 2, 4 or 8, found {self.shards}"
            )
        method = method_of(self)
        if method.masked and not method.rounds and self.search.epoch >= self.epochs:
            raise RecipeError(
                f"search.epoch: expected less than the {self.epochs} epochs of the run, found "
                f"{self.search.epoch}; what the last search leaves has to be trained"
            )
        return self

    @property
    def own_architecture(self) -> bool:
        """Whether ``arch`` is the caller's own ``module:callable``."""
        return ":" in self.arch


def method_of(recipe: Recipe) -> Method:
    """Return the method that a recipe names.

    Source: Peek-a-Boo, Section 4.1 ("Comparison Methods").
    """
    return Method(recipe.method, **METHODS.facts(recipe.method))


def unused(recipe: Recipe, keys: Iterable[str]) -> dict[str, str]:
    """Return the settings, of those named, that a recipe has no use for, and what ignores each.

    Keys are dotted, such as ``"bop.threshold"``, in the order given; what ignores them
    is ``"method sgd"``, say, or ``"search synflow"``.
    """
    methods = [Method(name, **METHODS.facts(name)) for name in METHODS]
    particular = frozenset[str]().union(*(method.reads for method in methods))
    idle = dict.fromkeys(particular - method_of(recipe).reads, f"method {recipe.method}")
    if "search" not in idle:
        reads, search = recipe.search.reads, f"search {recipe.search.method}"
        idle |= {f"search.{name}": search for name, read in reads.items() if not read}
    without = {key: idle.get(key, idle.get(key.partition(".")[0])) for key in keys}
    return {key: what for key, what in without.items() if what is not None}


def all_settings() -> Iterator[Setting]:
    """Yield every setting: those outside of tables, then table by table, users' at the end."""
    yield from settings_of(Recipe)
    for section in sorted(Section.sections.values(), key=lambda kind: kind is not SearchRecipe):
        yield from settings_of(section)


def _keys() -> list[str]:
    """Return the names of all settings, and of all tables."""
    return [*(declared.key for declared in all_settings()), *Section.sections]


def merge(recipe: Recipe, overrides: Table) -> Recipe:
    """Return ``recipe`` with some values replaced, all of it checked again.

    Args:
        recipe: stays as it is.
        overrides: new values, nested as the recipe is, such as
            ``{"epochs": 5, "bop": {"threshold": 0.0}}``. A None stands for a flag that was not
            given and changes nothing.

    Raises:
        RecipeError: an unknown key (the message gives the nearest valid one) or a value out of
            range.
    """
    values = dict(recipe)
    for key, value in overrides.items():
        current = values.get(key)
        if isinstance(current, Section) and isinstance(value, Mapping):
            given = {name: one for name, one in value.items() if one is not None}
            values[key] = {**dict(current), **given}
        elif value is not None:
            values[key] = value
    return Recipe.model_validate(values)


def to_dict(recipe: Recipe) -> dict[str, Any]:
    """Return ``recipe`` as nested plain values that JSON and a checkpoint can hold.

    TOML can hold them but for None, for which it has no word. A run that holds nothing out says
    nothing of ``validation``.
    """
    values = recipe.model_dump(mode="json")
    if not recipe.validation:
        del values["validation"]
    single = [declared.key for declared in settings_of(Recipe) if declared.key in values]
    return {key: values[key] for key in dict.fromkeys((*single, *values))}


def from_dict(values: Table, *, allow_import: bool = False) -> Recipe:
    """Rebuild a recipe from `to_dict`; missing keys take the defaults of `Recipe`.

    Args:
        values: nested plain values.
        allow_import: accept ``module:callable`` as the architecture. Only for values that the
            caller wrote, never for a file's.

    Raises:
        RecipeError: an unknown key, a value out of range, or a ``module:callable``.
    """
    if not allow_import:
        refuse_import(values)
    return merge(Recipe(), values)


def refuse_import(values: Table) -> None:
    """Refuse an architecture that would have to be imported."""
    arch = values.get("arch")
    if isinstance(arch, str) and ":" in arch:
        raise RecipeError(
            f"arch: expected a registered architecture, found {arch!r}; nothing is imported "
            "because a file says so: give your own with --arch on the command line"
        )


def comparable(recipe: Recipe | Table) -> dict[str, Any]:
    """Return what a recipe does, without where it does it, for comparing two.

    These are plain values by dotted key; a number of iterations left out is the published one, and
    no word of validation is none held out. The values of `to_dict`, which a file may have held,
    serve as well as the recipe.
    """
    given = to_dict(recipe) if isinstance(recipe, Recipe) else recipe
    values: dict[str, Any] = {"validation": 0.0, **given}
    search = values.get("search")
    if isinstance(search, Mapping) and search.get("iterations") is None:
        values["search"] = {**search, "iterations": _published(search.get("method"))}
    places = {declared.key for declared in all_settings() if declared.place}
    return {key: value for key, value in flat(values) if key not in places}


def flat(table: Table, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values of nested tables by dotted key."""
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
