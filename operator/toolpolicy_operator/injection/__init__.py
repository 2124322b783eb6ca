"""Which pods get a sidecar and how a pod looks with one: pure functions from pods and policies to pods."""
