"""How much damage a tool can do, from its category and the words of its name. A companion of ``classify.py``."""

from __future__ import annotations

from collections.abc import Collection

from toolpolicy.policy.model import Category, Risk
from toolpolicy.policy.words import word_set

DEFAULT_RISK: dict[Category, Risk] = {
    Category.READ: Risk.LOW,
    Category.WRITE: Risk.MEDIUM,
    Category.EXECUTE: Risk.HIGH,
    Category.FINANCIAL: Risk.HIGH,
    Category.DESTRUCTIVE: Risk.HIGH,
}
"""The risk of a category where the name says nothing more."""

_MONEY_MOVES = word_set(
    """pay payment payments buy sell purchase withdraw withdrawal remit donate payout payouts refund refunds
    transfer wire charge disburse reimburse cashout mint burn stake trade swap liquidate invest lend borrow
    send order orders airdrop payroll topup redeem bet wager capture deposit donation settle repay"""
)
_IRREPLACEABLE = word_set(
    """database databases db dbs cluster clusters account accounts store stores datastore datastores bucket buckets
    tenant tenants org orgs organization organizations organisation namespace namespaces schema schemas
    table tables repo repos repository repositories vault vaults backup backups domain domains zone zones
    stack stacks warehouse disk disks drive drives partition partitions filesystem subscription
    subscriptions environment environments workspace workspaces project projects catalog keystore volume
    volumes keyspace keyspaces directory tree server servers vm site sites vectorstore objectstore registry
    mailbox kms fleet everything snapshots pool flushall flushdb"""
)
"""Deleting one of these takes everything inside along."""
_ARBITRARY_CODE = word_set(
    """shell command commands cmd code bash powershell terminal eval evaluate exec script scripts python javascript
    js repl ssh sudo sandbox expression cli kubectl sql program binary macro"""
)
_SWEEPING = word_set(
    """all bulk batch mass everything prod production root admin sudo force forced permanent permanently hard
    recursive recursively cascade irreversible global wipe"""
)
_POWERS = word_set(
    """permission permissions policy policies role roles iam grant acl acls firewall password passwords mfa
    impersonate privilege privileges sudo admin rbac trust federation unlock deploy overwrite restore
    migrate protection encryption detach disassociate deactivate manage ownership public membership
    collaborator collaborators secgroup ingress egress allow"""
)
_SECRETS = word_set(
    """secret secrets credential credentials password passwords passwd passphrase apikey apikeys privatekey
    keystore kubeconfig connectionstring env dotenv otp totp mfa cookie cookies keychain keyring htpasswd
    seedphrase mnemonic jwt jwts sts"""
)
_MAYBE_SECRETS = word_set("key keys token tokens")
_ABOUT_SECRETS = word_set("scanning scan alert alerts metadata policy")
_NOT_SECRET = word_set(
    """count usage price prices balance balances holders metadata supply info primary foreign value values phrase
    phrases issue result results pair shared press design transfers word words limit stats"""
)

_CRITICAL = {Category.DESTRUCTIVE: _IRREPLACEABLE, Category.EXECUTE: _ARBITRARY_CODE}
_ORDER = tuple(Risk)


def max_risk(a: Risk, b: Risk) -> Risk:
    return max(a, b, key=_ORDER.index)


def _more(risk: Risk) -> Risk:
    return _ORDER[min(_ORDER.index(risk) + 1, len(_ORDER) - 1)]


def risk_of(category: Category, words: Collection[str], *, reading: bool) -> Risk:
    """``reading``: nothing in the name does more than look (a Financial *list_invoices*, for one)."""
    said = frozenset(words)
    if category is Category.FINANCIAL:
        risk = Risk.MEDIUM if reading else Risk.CRITICAL if said & _MONEY_MOVES else Risk.HIGH
    elif said & _CRITICAL.get(category, frozenset()):
        risk = Risk.CRITICAL
    else:
        risk = DEFAULT_RISK[category]
    if category is not Category.READ and said & _SWEEPING:
        risk = _more(risk)
    if _secret(said):
        risk = max_risk(risk, Risk.HIGH)
    if category is not Category.READ and said & _POWERS:
        risk = max_risk(risk, Risk.HIGH)
    return risk


def _secret(said: frozenset[str]) -> bool:
    if said & _SECRETS:
        return not said & _ABOUT_SECRETS
    return bool(said & _MAYBE_SECRETS) and not said & _NOT_SECRET
