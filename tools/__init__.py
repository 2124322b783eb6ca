"""Helpers of the development tree; nothing here is installed."""
