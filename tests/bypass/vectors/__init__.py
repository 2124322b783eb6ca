"""The table of bypass vectors."""

from __future__ import annotations

from bypass.vectors import content, http, messages, names
from bypass.vectors.build import Vector

VECTORS: list[Vector] = [*messages.vectors(), *content.vectors(), *names.vectors(), *http.vectors()]
