"""Values of other libraries as JSON has them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticSerializationError, to_jsonable_python

from intl_transfer.errors import UserError


def jsonable(value: Any, where: str, nonfinite: Callable[[float], Any] = str) -> Any:
    """A value as JSON has it: numpy's and torch's numbers become Python's, tuples lists.

    Args:
        value: numbers, texts, lists, dictionaries, and whatever pydantic can write.
        where: its place, for messages.
        nonfinite: what becomes of NaN and infinities, which JSON lacks: the texts ``"nan"``,
            ``"inf"`` and ``"-inf"``.

    Raises:
        UserError: naming the first value that JSON cannot hold.
    """
    if hasattr(value, "tolist"):  # arrays, tensors, and numpy's scalars
        value = value.tolist()
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", by_alias=True, exclude_unset=True)
    if isinstance(value, float):
        return value if math.isfinite(value) else nonfinite(value)
    if isinstance(value, Mapping):
        found = {str(k): jsonable(v, f"{where}.{k}", nonfinite) for k, v in value.items()}
        if len(found) < len(value):
            raise UserError(f"{where}: two keys are the same as text, which JSON's keys are")
        return found
    if isinstance(value, (list, tuple)):
        return [jsonable(v, f"{where}[{index}]", nonfinite) for index, v in enumerate(value)]
    try:
        return to_jsonable_python(value)
    except PydanticSerializationError:
        raise UserError(
            f"{where}: expected numbers, texts, lists and dictionaries, found "
            f"{type(value).__name__}"
        ) from None
