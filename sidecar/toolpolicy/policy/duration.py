"""Durations as a manifest spells them: GEP-2257 (``60s``, ``10m``, ``1h30m``, ``250ms``) or a bare number of seconds."""
