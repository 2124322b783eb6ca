"""The control API: what sidecars tell the operator, and who they are. They have no access to Kubernetes themselves."""
