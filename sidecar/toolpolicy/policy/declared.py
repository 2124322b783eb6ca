"""The schemas that servers declare for their tools, compiled once each (``arguments: Declared``)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from toolpolicy.policy.bounded import Bounded
from toolpolicy.policy.schemas import SchemaFault, Validator, compile_declared

_CACHED = 1024


class DeclaredSchemas:
    """Finds a schema's validator by the object's identity, else by its content: a list that is read again brings new
    objects.

    Both caches are bounded, because a server may list what it likes.

    """

    __slots__ = ("_by_content", "_by_identity")

    def __init__(self) -> None:
        self._by_identity: Bounded[int, tuple[Mapping[str, Any], Validator | SchemaFault]] = Bounded(_CACHED)
        self._by_content: Bounded[str, Validator | SchemaFault] = Bounded(_CACHED)

    def validator(self, schema: Mapping[str, Any]) -> Validator | SchemaFault:
        """The validator, or what is wrong with the schema."""
        known = self._by_identity.get(id(schema))
        if known is not None and known[0] is schema:  # the entry keeps the object alive, so its id is not another's
            return known[1]
        try:
            content = json.dumps(schema, sort_keys=True)
        except (TypeError, ValueError, RecursionError) as error:
            return SchemaFault(f"not JSON: {error}")
        found = self._by_content.get(content)
        if found is None:
            try:
                found = compile_declared(schema)
            except SchemaFault as fault:
                found = fault
            self._by_content.keep(content, found)
        self._by_identity.keep(id(schema), (schema, found))
        return found
