"""Where the rules in force come from, and which of them select this pod."""

from toolpolicy.policy.selection import Pod, parse_labels, selects
from toolpolicy.sidecar.rules.source import DirectoryRules, FileRules, RuleSet, RulesStatus

__all__ = ["DirectoryRules", "FileRules", "Pod", "RuleSet", "RulesStatus", "parse_labels", "selects"]
