"""Choose the fields that make a record's text and id, and the records that are wanted."""

import json
import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from string import Formatter
from typing import Any

from lastword.cli.read.kinds import Source
from lastword.cli.read.record import Record, missing_field
from lastword.cli.read.value import find_value, kind_of_value, text_of, value_of
from lastword.errors import InputError, lone_surrogate

_CONDITION = re.compile(r"(.+?)(!=|<=|>=|=|<|>)(.*)", re.DOTALL)
_Number = int | float | Decimal
_ORDERS: Mapping[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


class Template:
    """Makes a text from several fields: "{title}: {doc.body}".

    Args:
        text: the template; {NAME} stands for a field, {{ and }} for braces.

    Raises:
        InputError: the template names no field, or is not valid.
    """

    def __init__(self, text: str) -> None:
        self._parts: list[tuple[str, str | None]] = []
        try:
            parts = list(Formatter().parse(text))
        except ValueError as error:
            remedy = "Double each brace that is part of the text: {{ or }}."
            raise _wrong_template(f"is not valid ({error})", text, remedy) from error
        for literal, name, spec, conversion in parts:
            if name is not None and (not name or spec or conversion is not None):
                remedy = "Write only the name of a field between braces: {NAME}."
                what = "has a field without a name" if not name else "has a format or conversion"
                raise _wrong_template(what, text, remedy)
            if name is not None and "[" in name:
                remedy = "Name a field of an object with a dot: {OUTER.INNER}."
                raise _wrong_template("has a field with an index", text, remedy)
            self._parts.append((literal, name))
        if not self.names:
            raise _wrong_template("names no field", text, "Write a field as {NAME}.")

    @property
    def names(self) -> list[str]:
        """The names of the fields, in order."""
        return list(dict.fromkeys(name for _, name in self._parts if name is not None))

    def fill(self, found: Mapping[str, object], where: str) -> str:
        """Return the text of a record.

        Args:
            found: the record's fields.
            where: the record's place, for errors.

        Raises:
            InputError: a field is missing, null, an object or a list.
        """
        remedy = "Change --template."
        return "".join(
            literal + ("" if name is None else plain_text(value_of(found, name, where, remedy), name, where))
            for literal, name in self._parts
        )  # fmt: skip


def _wrong_template(what: str, text: str, remedy: str) -> InputError:
    return InputError("--template", what, got=repr(text), remedy=remedy)


def plain_text(value: object, name: str, where: str) -> str:
    """Return a field's value as text: a number or boolean as in JSON.

    Raises:
        InputError: the value is null, an object, a list or a number that is not finite, or has a lone surrogate.
    """
    if isinstance(value, str):
        if not value.isascii() and lone_surrogate(value) is not None:
            raise InputError(
                where, f"field {name!r} contains a lone surrogate", remedy="Remove it."
            )
        return value
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(where, f"wrong field {name!r}", got=str(value), expected="a number")
    if value is None or isinstance(value, dict | list):
        got, expected = kind_of_value(value), "a string or a number"
        raise InputError(where, f"wrong field {name!r}", got=got, expected=expected)
    # Parquet also has values such as dates.
    return json.dumps(value) if isinstance(value, bool | int | float) else str(value)


@dataclass(frozen=True, slots=True)
class Condition:
    """A condition on a field, as --where gives it.

    Args:
        name: the field; as for the field of a text, OUTER.INNER is allowed.
        sign: =, !=, <, <=, > or >=.
        value: the value to compare with, as written, without white space around it.
    """

    name: str
    sign: str
    value: str

    @staticmethod
    def parse(given: str) -> "Condition":
        """Return the condition that the text FIELD=VALUE means.

        Raises:
            InputError: the text is not a condition.
        """
        found = _CONDITION.fullmatch(given)
        expected = "FIELD=VALUE, or with !=, <, <=, > or >= instead of ="
        if found is None:
            raise InputError("--where", "is not a condition", got=repr(given), expected=expected)
        name, sign, value = (each.strip() for each in found.groups())
        if value.startswith("="):
            raise InputError("--where", "has a wrong sign", got=repr(given), expected=expected)
        if sign in _ORDERS and _number(value) is None:
            what, got = f"{sign} compares numbers", repr(given)
            raise InputError("--where", what, got=got, expected="a number as VALUE")
        return Condition(name, sign, value)

    def holds(self, found: Mapping[str, object]) -> bool:
        """Return whether a record with these fields satisfies the condition. A missing field counts as null."""
        value = find_value(found, self.name)
        if self.sign in _ORDERS:
            number = None if isinstance(value, bool) else _number(value)
            wanted = _number(self.value, exact=isinstance(value, Decimal))
            return None not in (number, wanted) and _ORDERS[self.sign](number, wanted)
        return self._equals(value) == (self.sign == "=")

    def _equals(self, value: object) -> bool:
        if value is None or isinstance(value, bool):
            return json.dumps(value) == self.value
        if isinstance(value, _Number):
            return _number(self.value, exact=isinstance(value, Decimal)) == value
        return not isinstance(value, dict | list) and str(value) == self.value


def _number(value: object, *, exact: bool = False) -> _Number | None:
    """Return a number, or the number in a string (with `exact`, as a Decimal); None for anything else."""
    if isinstance(value, str):
        kinds: Sequence[Callable[[str], _Number]] = (Decimal,) if exact else (int, float)
        text = value
        for kind in kinds:
            try:
                value = kind(text)
            except (InvalidOperation, ValueError):
                continue
            break
    if isinstance(value, int):  # math.isfinite fails for an int too large for a float
        return value
    return value if isinstance(value, float | Decimal) and math.isfinite(value) else None


def _text(found: Mapping[str, object], text: str | Template, where: str) -> str:
    return text.fill(found, where) if isinstance(text, Template) else text_of(found, text, where)


class Fields:
    """The fields of a record that make its text and id, and its conditions. Counts the records that are skipped.

    Args:
        text: the field or column that holds the text, or the template that makes it. In JSON lines and Parquet, `a.b`
            means the field named "a.b" or, if there is none, the field b of the object a.
        id: the field that holds the id; None for no ids.
        where: the conditions that a record must satisfy; a record that does not is skipped.
    """

    def __init__(
        self,
        text: str | Template = "text",
        id: str | None = None,  # noqa: A002  what it is
        where: Sequence[Condition] = (),
    ) -> None:
        self.text, self.id, self.where = text, id, tuple(where)
        self.skipped = 0

    @property
    def text_names(self) -> list[str]:
        """The fields that make the text."""
        return self.text.names if isinstance(self.text, Template) else [self.text]

    def check_columns(self, columns: Iterable[str], where: str, remedy: str | None = None) -> None:
        """Check that a table has all columns that are used.

        Args:
            columns: the names of the table's columns.
            where: the place of the header, for the error.
            remedy: the advice if the text's column is missing; None for the usual advice.

        Raises:
            InputError: a column is missing.
        """
        names = list(columns)
        if isinstance(self.text, Template):
            remedy = "Change --template."
        wanted = [(name, remedy) for name in self.text_names]
        if self.id is not None:
            wanted.append((self.id, "Name the column of the ids with --id-field."))
        wanted += [(each.name, "Change --where.") for each in self.where]
        for name, advice in wanted:
            if name not in names:
                raise missing_field(where, name, names, advice)

    def record(
        self,
        found: Mapping[str, object],
        source: Source,
        line: int,
        carried: Callable[[], str],
    ) -> Record | None:
        """Return the record that has the fields `found`; if a condition skips it, count it and return None.

        Args:
            found: the fields.
            source: the file.
            line: the number of the line or row.
            carried: returns what becomes `Record.fields`.

        Raises:
            InputError: the record has no text, or no id where it needs one.
        """
        if self.where and not all(each.holds(found) for each in self.where):
            self.skipped += 1
            return None
        place = f"{source.name}:{line}"
        text = _text(found, self.text, place)
        name = None if self.id is None else self._id(found, place)
        return Record(text, source.name, line, frozenset(found), carried(), id=name)

    def _id(self, found: Mapping[str, object], place: str) -> str | int | float:
        assert self.id is not None
        remedy = "Name the field that holds the id with --id-field."
        value = value_of(found, self.id, place, remedy)
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            got, expected = kind_of_value(value), "a string or a number as id"
            raise InputError(place, f"wrong field {self.id!r}", got=got, expected=expected)
        plain_text(value, self.id, place)  # refuses what cannot be written
        return value
