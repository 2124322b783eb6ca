"""A real Kubernetes for the tests: a control plane, or a whole node, of this machine. docs/testing.md says how."""
