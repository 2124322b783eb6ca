"""Real servers, the real sidecar and raw bytes: what the end-to-end tests share."""
