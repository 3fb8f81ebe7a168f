"""What a setting is: one field with its type, bounds, default, flag and help.

Validation, messages, the command line's flags and help, and ``--list-settings`` read that one
declaration::

    class BopRecipe(Section, table="bop"):
        threshold: float = setting(1e-6, "Moving average that flips a sign.", ge=0)

Nothing here imports torch.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import NoneType
from typing import Any, ClassVar, Self, get_args, get_origin

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo

from pabzip.errors import RecipeError

Names = Iterable[str] | Callable[[], Iterable[str]]


def setting(
    default: Any,
    help: str,  # noqa: A002  # what click and argparse call it
    *,
    flag: str | None = None,
    choices: Names | None = None,
    expected: str | Callable[[], str] | None = None,
    place: bool = False,
    **bounds: Any,
) -> Any:
    """Declare a setting: the value of a field of `Settings`.

    Args:
        default: taken where nothing else is given.
        help: one sentence or two, for ``--help`` and ``--list-settings``.
        flag: of the command line, such as ``"--epochs"``; None leaves it to ``--set``.
        choices: the values there are, or a function that returns them (a registry's names, which
            grow when a user's package is imported).
        expected: what to say is expected, where type, bounds and choices do not say it.
        place: whether it says where a run happens (a device, a folder) and not what it does; a
            resumed run may change it.
        **bounds: as of `pydantic.Field`: ``ge``, ``gt``, ``le``, ``lt``, ``pattern``.
    """
    facts: Any = {"flag": flag, "choices": choices, "expected": expected, "place": place}
    return Field(default, description=help, json_schema_extra=facts, **bounds)


class Settings(BaseModel):
    """Settings that belong together, as plain data that cannot be changed.

    Class keyword ``table``: what stands before their names, such as ``"bop"``. A value out of range
    is a `RecipeError`, which names the setting.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
    table: ClassVar[str] = ""

    def __init_subclass__(cls, *, table: str = "", **extra: Any):
        super().__init_subclass__(**extra)
        cls.table = table

    def replace(self, **changes: Any) -> Self:
        """Return a copy with some settings changed, all of it checked again.

        Raises:
            RecipeError: an unknown name, or a value out of range.
        """
        return type(self).model_validate({**dict(self), **changes})

    @model_validator(mode="wrap")
    @classmethod
    def _explained(cls, values: Any, handler: ValidatorFunctionWrapHandler) -> Self:
        """Turn pydantic's error into one message in the words of the command line."""
        if not isinstance(values, Mapping | cls):
            raise RecipeError(f"{cls.table}: expected a table, found {values!r}")
        try:
            return handler(values)  # type: ignore[no-any-return]
        except ValidationError as error:
            name = str(error.errors(include_url=False)[0]["loc"][0])
        found = values[name] if isinstance(values, Mapping) else getattr(values, name)
        key = f"{cls.table}.{name}".lstrip(".")
        if name not in cls.model_fields:
            raise unknown(key, [declared.key for declared in settings_of(cls)])
        found = list(found) if isinstance(found, tuple) else found
        expected = Setting(key, cls.model_fields[name]).expected
        raise RecipeError(f"{key}: expected {expected}, found {found!r}")

    @field_validator("*", mode="after")
    @classmethod
    def _chosen(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse what is not one of the choices, and empty texts."""
        name = str(info.field_name)
        choices = Setting(name, cls.model_fields[name]).choices
        if value == "" or (choices and value not in choices):
            raise ValueError(value)  # `_explained` finds the words
        return value


class Section(Settings):
    """Settings of one table of a recipe.

    A subclass is a table of every recipe from its declaration on, also one of a user's package.
    """

    sections: ClassVar[dict[str, type[Section]]] = {}

    def __init_subclass__(cls, *, table: str, **extra: Any):
        super().__init_subclass__(table=table, **extra)
        other = Section.sections.get(table)
        if other is not None and other._origin() != cls._origin():
            raise RecipeError(
                f"{table}: expected a name that is free, found one that {other._origin()} has as "
                "its table of settings; choose another"
            )
        Section.sections[table] = cls

    @classmethod
    def _origin(cls) -> str:
        """Return where the class is declared, dotted."""
        return f"{cls.__module__}.{cls.__qualname__}"


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting, as the command line lists it.

    Attributes:
        key: its name with that of its table, such as ``"bop.threshold"``.
        field: its declaration.
    """

    key: str
    field: FieldInfo

    @property
    def flag(self) -> str | None:
        """The flag of the command line; None where ``--set`` serves."""
        return self._fact("flag")  # type: ignore[no-any-return]

    @property
    def place(self) -> bool:
        """Whether it says where a run happens and not what it does."""
        return bool(self._fact("place"))

    @property
    def choices(self) -> tuple[str, ...]:
        """The values there are now; none where any in its bounds will do."""
        choices: Names | None = self._fact("choices")
        return tuple((choices() if callable(choices) else choices) or ())

    @property
    def help(self) -> str:
        """What it does."""
        return self.field.description or ""

    @property
    def kind(self) -> Any:
        """The type of its values, other than None."""
        kinds = [kind for kind in get_args(self.field.annotation) if kind is not NoneType]
        optional = NoneType in get_args(self.field.annotation)
        return kinds[0] if optional else self.field.annotation

    @property
    def expected(self) -> str:
        """What its values are, such as ``"a number at least 0"``."""
        told = self._fact("expected")
        if told is not None:
            return str(told() if callable(told) else told)
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        limits = {
            bound: getattr(limit, bound)
            for bound in ("ge", "gt", "le", "lt")
            for limit in self.field.metadata
            if hasattr(limit, bound)
        }
        if self.kind is bool:
            return "true or false"
        if self.kind is int and "le" in limits:
            return f"a whole number from {limits['ge']} to {limits['le']}"
        if self.kind is int:
            return f"a whole number of {limits['ge']} or more"
        if self.kind is float:
            words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
            bounds = [f"{words[bound]} {limit:g}" for bound, limit in limits.items()]
            return f"a number {' and '.join(bounds) or 'that is finite'}"
        return "a non-empty text"

    @property
    def is_table(self) -> bool:
        """Whether its value is a table with names of the user's."""
        return self.kind is dict or get_origin(self.kind) is Mapping

    def parse(self, text: str) -> Any:
        """Return the value that a text of the command line stands for: TOML, bare words as text.

        What is wrong for this setting is left to its validation.
        """
        value = parse_value(text)
        return text if self.kind is str and not isinstance(value, str) else value

    def _fact(self, name: str) -> Any:
        """Return what `setting` was told."""
        facts = self.field.json_schema_extra
        return facts.get(name) if isinstance(facts, dict) else None


def parse_value(text: str) -> Any:
    """Return what a text is in TOML; a text that is no TOML stands for itself."""
    try:
        found = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        try:
            return float(text)  # such as .5, which TOML wants as 0.5
        except ValueError:
            return text
    return found["value"] if len(found) == 1 else text


def settings_of(group: type[Settings]) -> Iterator[Setting]:
    """Yield the settings that a class declares itself, without those of the tables in it."""
    for name, field in group.model_fields.items():
        declared = Setting(f"{group.table}.{name}".lstrip("."), field)
        if not (isinstance(declared.kind, type) and issubclass(declared.kind, Settings)):
            yield declared


def unknown(key: str, keys: Iterable[str]) -> RecipeError:
    """Return the error for a setting that there is not; it names the nearest one.

    That is one of the same table with a similar name, else of the same name in another table, else
    the most similar of all.
    """
    keys = list(keys)
    table, _, last = key.rpartition(".")
    own = [valid for valid in keys if valid.rpartition(".")[0] == table]
    close = difflib.get_close_matches(key, own, n=1, cutoff=0.8)
    same = [valid for valid in keys if valid.rpartition(".")[2] == last]
    near = (close or same or difflib.get_close_matches(key, keys, n=1, cutoff=0.0))[0]
    return RecipeError(
        f"{key}: expected the name of a setting, found an unknown one; did you mean {near}?"
    )
