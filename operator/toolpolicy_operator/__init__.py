"""Reconciliation, admission and the control API of toolpolicy on Kubernetes."""
