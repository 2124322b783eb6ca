"""Names that stand in objects of the cluster: one place, since admission, guard, status and the command line share
them.

They are an API: a pod injected by an older version carries them for as long as it runs.
"""

from __future__ import annotations

GROUP = "toolpolicy.dev"

# On a Namespace
INJECTION_LABEL = "toolpolicy.dev/injection"
"""``enabled`` or ``disabled``; on a pod ``disabled`` asks to opt out."""
ENABLED = "enabled"
DISABLED = "disabled"
OPT_OUT_LABEL = "toolpolicy.dev/opt-out"
"""On a Namespace: with ``allowed`` its pods may opt out."""
OPT_OUT_ALLOWED = "allowed"

# On a pod, written at its admission
INJECTED_ANNOTATION = "toolpolicy.dev/injected"
"""The version of toolpolicy that injected the pod."""
INTERCEPTION_ANNOTATION = "toolpolicy.dev/interception"
"""``Redirect`` or ``Port``: how calls come to the sidecar."""
SERVERS_ANNOTATION = "toolpolicy.dev/servers"
"""The ports of the MCP servers, comma separated."""
NAMESPACE_LABELS_ANNOTATION = "toolpolicy.dev/namespace-labels"
"""The namespace's labels at admission, as a JSON object: a change of them releases no running pod."""
INELIGIBLE_ANNOTATION = "toolpolicy.dev/ineligible"
"""On a pod that was admitted without protection: the reason."""
# On a pod, written while it runs
RULES_ANNOTATION = "toolpolicy.dev/rules"
"""The revision of the rules that were written last; its change lets the kubelet sync the volume at once."""

# In a pod
REDIRECT_CONTAINER = "toolpolicy-redirect"
SIDECAR_CONTAINER = "toolpolicy-sidecar"
RULES_VOLUME = "toolpolicy-rules"
POD_VOLUME = "toolpolicy-pod"
TOKEN_VOLUME = "toolpolicy-token"  # noqa: S105 - a volume's name
TEMPORARY_VOLUME = "toolpolicy-tmp"
SIDECAR_UID = 15771
"""User and group of the sidecar; no other container of the pod may use it, since its packets are not redirected."""
SIDECAR_PORT = 15771
"""Where the sidecar serves MCP (of a pod's first MCP port; further ones count up from ``FURTHER_PORTS``)."""
ADMIN_PORT = 15772
FURTHER_PORTS = 15773

# In a namespace
RULES_CONFIGMAP = "toolpolicy-rules"
EPOCH_ANNOTATION = "toolpolicy.dev/epoch"
"""On ``toolpolicy-rules`` and on the Lease: the term of the writer. It grows with every transition of the Lease."""
ADDRESS_ANNOTATION = "toolpolicy.dev/control-address"
"""On the Lease: HOST:PORT of its holder's control API."""
INDEX_KEY = "index.json"
CONTROL_CA_KEY = "control-ca.crt"
"""The CA of the control API, PEM; beside the index, which does not name it."""

# The control API
TOKEN_AUDIENCE = "toolpolicy.dev"  # noqa: S105 - an audience's name
OPERATOR_AUDIENCE = "toolpolicy.dev/operator"
"""Of the token by which one replica of the operator speaks to another."""
FIELD_MANAGER = "toolpolicy-operator"
SYSTEM_NAMESPACE = "toolpolicy-system"
LEASE = "toolpolicy-operator"
CA_SECRET = "toolpolicy-ca"  # noqa: S105 - a Secret's name
