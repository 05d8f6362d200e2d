"""Json: an object of the wire while it is put together."""

from typing import Any, TypeAlias

Json: TypeAlias = dict[str, Any]
