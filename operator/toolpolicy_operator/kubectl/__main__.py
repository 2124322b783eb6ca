"""``python -m toolpolicy_operator.kubectl``, where the entry point is not on PATH."""

from toolpolicy_operator.kubectl import main

main()
