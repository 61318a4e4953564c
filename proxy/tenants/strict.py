"""What the forms of the plan file and of the API share."""

from __future__ import annotations

import re
from typing import Annotated, Any, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationInfo,
    field_validator,
)

from proxy.numbers import MOST

_NAME = r"^[a-z0-9][a-z0-9_-]{0,62}$"
Name = Annotated[str, Field(pattern=_NAME)]
T = TypeVar("T", bound=str)
#: Written down in order: what was applied is compared with what lies in the database, which another process wrote.
Several = Annotated[frozenset[T], PlainSerializer(sorted, return_type=list[str], when_used="json")]


def _without_point(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) <= MOST else value


#: Behind the bounds of a whole number in a form. JSON has one kind of numbers, so many clients write 60.0 (JSON Schema
#: 2020-12, 6.1.1).
WITHOUT_POINT = BeforeValidator(_without_point)


class Strict(BaseModel):
    """A form that takes no key it does not know, and does not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        # Pydantic reads `true` as 1, and a slip of the pen would be a limit.
        if isinstance(value, bool) and cls.model_fields[info.field_name or ""].annotation is not bool:
            raise ValueError("must not be true or false")
        return value


def is_name(text: str) -> bool:
    """Return whether a tenant or a plan can have this name."""
    return re.fullmatch(_NAME, text) is not None
