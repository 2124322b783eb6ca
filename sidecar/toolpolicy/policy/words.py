"""The vocabulary of :mod:`toolpolicy.policy.classify`: what the words of a tool's name say about what the tool does.

Verbs stand in one of three strengths, because English uses most of them as nouns too:

* ``HARD``: hardly ever a noun (*delete*, *create*, *execute*, *get*); it speaks wherever it stands;
* ``SOFT``: mostly a verb, but a noun behind another verb (*list run*, *get update*, *create export*);
* ``LOOSE``: mostly a noun (*order*, *comment*, *label*); a verb only where the name holds no better one.

Nothing here names a server or one of its tools: a word is in a table for what it means in English or in the trade.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from toolpolicy.policy.model import Category


class Strength(IntEnum):
    LOOSE = 0
    SOFT = 1
    HARD = 2


@dataclass(frozen=True, slots=True)
class Verb:
    category: Category
    strength: Strength


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_TABLE: tuple[tuple[Category, Strength, str], ...] = (
    (
        Category.READ,
        Strength.HARD,
        """get list read describe fetch retrieve show view find lookup search browse inspect introspect explore
        discover enumerate download peek select head cat ls dir stat whoami ping is has can learn recall
        summarize summarise explain analyze analyse compare detect calculate compute estimate count identify recommend
        suggest check diagnose examine preview locate grep glob extract parse tokenize translate
        measure poll obtain determine hget hgetall mget lrange smembers zrange llen scard exists lint see
        assess collect gather observe look what which who where verify how match correlate
        consult visualize visualise plot screenshot classify rank paginate geocode query""",
    ),
    (
        Category.READ,
        Strength.LOOSE,
        """watch monitor map scan diff filter sort trace audit profile capture forecast predict tail
        crawl scrape convert hash decode encode quote embed aggregate sample reference score""",
    ),
    (
        Category.WRITE,
        Strength.HARD,
        """create add write insert upsert edit modify save append put send upload rename assign
        unassign attach associate grant invite enable disable detach disassociate deactivate restore recover revert
        rollback undo replace overwrite publish unpublish subscribe unsubscribe notify configure manage allow
        replicate duplicate archive unarchive move mkdir mark persist amend adjust alter annotate introduce
        propose submit generate produce compose validate register synchronize reorder prepend
        approve reject accept decline dismiss acknowledge resolve transition promote demote
        reply forward unfollow unlike unpin unmute ban unban kick
        unshare untag unstar bookmark unset rotate renew shrink expand resize provision allocate
        increment decrement incr decr hset sadd zadd lpush rpush xadd setex mset lpop rpop getset getex
        touch chmod chown enroll onboard offboard reassign transform reconfigure apply autofix
        repair mutate bind unbind mount unmount reserve rsvp cordon uncordon taint quarantine isolate encrypt
        customize personalize favorite favourite unfavorite upvote downvote
        react retweet repost tweet toot remember memorize ingest inject hide unhide escalate
        deprecate enqueue unstage stash cherrypick squash rebase
        finalize finalise conclude invalidate expire unblock whitelist blacklist ignore snooze
        emit populate prefill rewrite refactor implement nominate moderate
        cancel abort close reopen logout signout restrict permit authorize deauthorize elevate
        relocate refresh reschedule postpone opt compress decompress unzip
        concatenate define redefine declare fulfill fulfil
        optimize optimise normalize remap repartition rearrange sign unsign attest revise polish
        unlock unlink unload respond contribute upgrade downgrade redact make broadcast relabel retag republish
        resend reapply instantiate adopt exclude include transact enrich sketch paste migrate""",
    ),
    (
        Category.WRITE,
        Strength.SOFT,
        """update post copy export backup snapshot change checkin lock hold shift arm disarm dim highlight
        group ungroup cut fold split name prioritize release render set link share import like follow print
        merge fork clone patch commit stage crop mask draw paint fix store block seed pin mute leave extend scale trim
        tune vote join ack pull push sync ship zip fill draft finish complete""",
    ),
    (
        Category.WRITE,
        Strength.LOOSE,
        """comment label tag star branch message email mail sms text note schedule review report document index issue
        file title flag log track book plan thread remind partition cache cast transcribe outline dub""",
    ),
    (
        Category.EXECUTE,
        Strength.HARD,
        """execute exec invoke eval evaluate launch restart reboot rerun retry replay spawn perform redeploy relaunch
        shutdown resume suspend hibernate deallocate wakeup poweron poweroff turnon turnoff toggle activate
        install reinstall bootstrap initiate initialize initialise compile finetune train simulate fuzz emulate
        click doubleclick hover swipe navigate goto keypress debug login signin
        authenticate connect disconnect reconnect dial impersonate assume orchestrate sudo curl
        exploit bruteforce reload recompute rebuild decrypt crack ignite operate interact do
        interpret solve failover rollout vacuum defragment benchmark ask delegate hijack spoof intercept""",
    ),
    (
        Category.EXECUTE,
        Strength.SOFT,
        """run start stop trigger deploy test build call boot pause fire process dispatch halt shell ssh open
        power turn drain request command wake infer control drive fly land brew automate proxy tunnel attack
        tap type press scroll drag handle use act wait sleep prompt chat play skip""",
    ),
    (
        Category.EXECUTE,
        Strength.LOOSE,
        """script cmd bash powershell terminal repl python javascript js macro sandbox""",
    ),
    (
        Category.DESTRUCTIVE,
        Strength.HARD,
        """delete remove drop purge wipe truncate destroy terminate revoke erase kill shred prune nuke obliterate
        expunge rm rmdir rmi del unregister deregister uninstall decommission deprovision teardown cleanup
        undeploy evict discard flushall flushdb hdel srem zrem lrem getdel forget dissolve eliminate
        annihilate abandon dismantle scrub vaporize ltrim unprovision demolish depopulate
        decimate wreck corrupt smash reimage rescind raze""",
    ),
    (
        Category.DESTRUCTIVE,
        Strength.SOFT,
        """reset empty retire sunset expel blank clear clean trash flush zap""",
    ),
    (
        Category.FINANCIAL,
        Strength.HARD,
        """pay buy sell withdraw remit donate repay liquidate reimburse disburse redeem prepay topup
        cashout invest lend borrow unstake airdrop overpay autopay underwrite writeoff""",
    ),
    (
        Category.FINANCIAL,
        Strength.SOFT,
        """mint wire stake bid bet wager trade swap debit settle""",
    ),
    (
        Category.FINANCIAL,
        Strength.LOOSE,
        """order bill credit fund tip burn""",
    ),
)

VERBS: dict[str, Verb] = {}
for _category, _strength, _text in _TABLE:
    for _word in _text.split():
        VERBS.setdefault(_word, Verb(_category, _strength))

IRREGULAR = {
    "sent": "send", "written": "write", "wrote": "write", "paid": "pay", "bought": "buy", "sold": "sell", "built": "build",
    "ran": "run", "found": "find", "got": "get", "made": "make", "kept": "save", "lent": "lend", "spent": "pay",
    "withdrawn": "withdraw", "drawn": "draw", "hidden": "hide", "shown": "show", "forgotten": "forget", "shut": "shutdown",
}  # fmt: skip
"""Participles that no rule of spelling gives."""

NOMINAL = {
    "deletion": "delete", "deletions": "delete", "removal": "remove", "removals": "remove", "termination": "terminate",
    "destruction": "destroy", "erasure": "erase", "revocation": "revoke", "truncation": "truncate", "eviction": "evict",
    "deregistration": "deregister", "purgation": "purge", "decommissioning": "decommission", "uninstallation": "uninstall",
    "execution": "execute", "executions": "execute", "invocation": "invoke", "invocations": "invoke",
    "evaluation": "evaluate", "deployment": "deploy", "deployments": "deploy", "creation": "create", "modification": "modify",
    "liquidation": "liquidate",
}  # fmt: skip
"""Nouns of an action: they name it, and by themselves do not ask for it."""

NOUNS = _words(
    """settings setting pricing string strings meeting meetings training embedding embeddings routing marketing ring
    building buildings listing listings tracking logging monitoring thing things spring bing everything billing pending
    missing timing rating ratings ranking rankings heading headings mapping mappings binding bindings trading banking
    messaging onboarding branding scanning crawling sharding caching networking working morning evening king wing
    string staging warning warnings existing incoming outgoing upcoming remaining matching underlying during pudding
    need speed feed seed breed red bed shed feedback embed unread thread read_only deed weed related unrelated based
    advanced united limited detailed nested indexed unspecified used unused fixed
    news does canvas bus gas class access process_group address addresses series lens sls aws sns sqs rds eks ecs dns tls
    os ios js css rss gps cms sms https dbs ids apis undo
    usage message disk discount distance district disc dish display discussion discussions deal dear death debt decade
    december decimal decision deck deep default defaults definition definitions degree delay delivery delta demand demo
    department depth design desk desktop destination destinations detail details device devices union unit units
    universe university unique uniform reservation resource resources record records recent region
    regions registry relation relations release report reports repository repositories review reviews reward rewards
    real reason reasons recipe recipes recipient reel request response responses rest restaurant restaurants result
    results return revenue reaction reactions reader"""
) - {"seed", "embed", "release", "report", "review", "request", "read_only"}
"""Words whose ending or beginning looks like an inflection or a prefix and is none."""

STATUS = _words(
    """status statuses state states history progress logs stats statistics metrics summary details result results
    usage analytics insights info information overview count counts schema documentation docs metadata"""
)
"""Behind a word that is a verb or a noun (*run*, *order*), these make it the noun: *run history*."""

REFERENCE = STATUS | _words(
    """log data doc help version weather forecast tables columns databases schemas spec catalog catalogue
    definition changelog manual readme faq whois about capabilities alerts news leaderboard balance
    health healthcheck uptime inventory glossary dictionary quote quotes time date clock timezone"""
)
"""Nouns for something to be looked at: a name without any verb that ends in one is a Read."""

ATTRIBUTED = STATUS | _words(
    """policy policies protection marker markers log event events reason reasons request requests job jobs task tasks
    preview plan plans config configuration configurations setting settings permission permissions operation operations
    schedule schedules template templates date time timestamp flag confirmation rule rules window option options
    eligibility impact candidate candidates record records statement hook hooks activity queue error errors capability
    capabilities notice notices access flow flows step steps"""
)
"""Behind a dangerous verb and a reading one, these make the dangerous verb an attribute: *get delete marker*."""

PROTECTED = _words(
    """policy policies protection marker markers permission permissions flag setting settings config configuration
    option options template templates hook hooks rule rules date time window notification notifications"""
)
"""The same behind a writing verb, where fewer nouns are safe: *set deletion policy*, but not *create delete job*."""

CONJUNCTIONS = _words("and or then also plus else n")

INVERSE = _words(
    """cancel abort stop prevent undo disable block restore recover reject decline revert forbid deny pause suspend
    unschedule skip avoid"""
)
"""Verbs that take the action behind them back: *cancel key deletion*."""

NOT_A_START = _words("last latest next previous recent first auto pending failed current past scheduled active")
"""Adjectives that make the SOFT verb behind them a noun: *last run*."""

PAIRS = {
    ("pull", "request"): "pullrequest", ("pull", "requests"): "pullrequests", ("merge", "request"): "mergerequest",
    ("merge", "requests"): "mergerequests", ("graph", "ql"): "graphql", ("git", "hub"): "github", ("git", "lab"): "gitlab",
    ("you", "tube"): "youtube", ("dynamo", "db"): "dynamodb", ("mongo", "db"): "mongodb", ("o", "auth"): "oauth",
    ("my", "sql"): "mysql", ("postgre", "sql"): "postgresql", ("no", "sql"): "nosql", ("big", "query"): "bigquery",
    ("java", "script"): "javascript", ("type", "script"): "typescript", ("power", "shell"): "powershell",
    ("click", "up"): "clickup", ("click", "house"): "clickhouse", ("cloud", "run"): "cloudrun", ("open", "ai"): "openai",
    ("open", "api"): "openapi", ("open", "search"): "opensearch", ("open", "telemetry"): "opentelemetry",
    ("code", "build"): "codebuild", ("code", "deploy"): "codedeploy", ("cloud", "watch"): "cloudwatch",
    ("cloud", "trail"): "cloudtrail", ("event", "bridge"): "eventbridge", ("big", "table"): "bigtable",
    ("push", "notification"): "pushnotification", ("push", "notifications"): "pushnotifications",
    ("load", "balancer"): "loadbalancer", ("load", "balancers"): "loadbalancers", ("test", "flight"): "testflight",
    ("launch", "template"): "launchtemplate", ("launch", "darkly"): "launchdarkly", ("drop", "box"): "dropbox",
    ("test", "case"): "testcase", ("test", "cases"): "testcases", ("test", "rail"): "testrail", ("run", "book"): "runbook",
    ("call", "center"): "callcenter", ("call", "back"): "callback", ("start", "up"): "boot", ("play", "list"): "playlist",
    ("play", "lists"): "playlists", ("play", "wright"): "playwright", ("post", "man"): "postman", ("post", "gres"): "postgres",
    ("type", "form"): "typeform", ("check", "list"): "checklist", ("check", "lists"): "checklists",
    ("to", "do"): "todo", ("to", "dos"): "todos", ("read", "me"): "readme", ("who", "am"): "whoami", ("who", "is"): "whois",
    ("look", "up"): "lookup", ("set", "up"): "configure", ("roll", "back"): "rollback", ("roll", "out"): "rollout",
    ("shut", "down"): "shutdown", ("log", "in"): "login", ("log", "out"): "logout", ("log", "off"): "logout",
    ("sign", "in"): "signin", ("sign", "out"): "signout", ("sign", "up"): "register", ("power", "on"): "poweron",
    ("power", "off"): "poweroff", ("turn", "on"): "turnon", ("turn", "off"): "turnoff", ("switch", "on"): "turnon",
    ("switch", "off"): "turnoff", ("clean", "up"): "cleanup", ("tear", "down"): "teardown", ("take", "down"): "teardown",
    ("back", "up"): "backup", ("spin", "up"): "launch", ("spin", "down"): "shutdown", ("write", "off"): "writeoff",
    ("pay", "out"): "payout", ("pay", "outs"): "payouts", ("pay", "roll"): "payroll", ("pay", "load"): "payload",
    ("top", "up"): "topup", ("cash", "out"): "cashout", ("check", "in"): "checkin", ("check", "out"): "checkout",
    ("charge", "back"): "chargeback", ("opt", "in"): "opt", ("opt", "out"): "opt", ("fail", "over"): "failover",
    ("wake", "up"): "wakeup", ("hang", "up"): "halt", ("factory", "reset"): "wipe", ("zero", "out"): "wipe",
    ("cherry", "pick"): "cherrypick", ("fine", "tune"): "finetune", ("key", "word"): "keyword", ("key", "words"): "keywords",
    ("key", "space"): "keyspace", ("key", "spaces"): "keyspaces", ("key", "board"): "keyboard", ("wild", "card"): "wildcard",
    ("use", "case"): "usecase", ("use", "cases"): "usecases", ("show", "case"): "showcase", ("data", "set"): "dataset",
    ("data", "sets"): "datasets", ("image", "set"): "imageset", ("image", "sets"): "imagesets", ("change", "set"): "changeset",
    ("change", "sets"): "changesets", ("change", "log"): "changelog", ("replica", "set"): "replicaset",
    ("replica", "sets"): "replicasets", ("daemon", "set"): "daemonset", ("daemon", "sets"): "daemonsets",
    ("stateful", "set"): "statefulset", ("stateful", "sets"): "statefulsets", ("record", "set"): "recordset",
    ("record", "sets"): "recordsets", ("result", "set"): "resultset", ("rule", "set"): "ruleset", ("scale", "set"): "scaleset",
    ("file", "system"): "filesystem", ("data", "base"): "database", ("data", "bases"): "databases", ("data", "store"): "datastore",
    ("data", "stores"): "datastores", ("time", "out"): "timeout", ("road", "map"): "roadmap", ("site", "map"): "sitemap",
    ("heat", "map"): "heatmap", ("config", "map"): "configmap", ("config", "maps"): "configmaps", ("app", "store"): "appstore",
    ("object", "store"): "objectstore", ("vector", "store"): "vectorstore", ("vector", "stores"): "vectorstores",
    ("feature", "store"): "featurestore", ("key", "store"): "keystore", ("web", "hook"): "webhook", ("web", "hooks"): "webhooks",
    ("black", "list"): "blacklist", ("white", "list"): "whitelist", ("allow", "list"): "allowlist", ("deny", "list"): "denylist",
    ("watch", "list"): "watchlist", ("wish", "list"): "wishlist", ("price", "list"): "pricelist", ("mailing", "list"): "mailinglist",
    ("e", "mail"): "email", ("e", "mails"): "emails", ("double", "click"): "doubleclick", ("key", "press"): "keypress",
}  # fmt: skip
"""Two words that mean something else together, and names that camelCase takes apart."""

MONEY = _words(
    """payment payments charge charges refund refunds invoice invoices payout payouts subscription subscriptions billing
    transaction transactions transfer transfers purchase purchases checkout checkouts payroll deposit deposits withdrawal
    withdrawals remittance remittances reimbursement reimbursements disbursement disbursements chargeback chargebacks
    paycheck paychecks paylink escrow prepayment prepayments repayment repayments"""
)
"""Objects that are money on the move: whatever is done with them, looking at them included, is Financial."""

MONEY_ACTED_ON = _words(
    """order orders money funds fund cash eth ether btc bitcoin sol usdc usdt xrp lightning sats coins crypto bill bills
    expense expenses ledger leverage salary salaries dividend dividends loan loans mortgage donation donations settlement
    settlements giftcard"""
)
"""Objects that are Financial only when something other than looking is done with them."""

POSITION_ACTS = _words("open close liquidate hedge flatten exit")
"""What one does with a *position* on a market, and not with one on a screen."""

NOT_MONEY: dict[str, frozenset[str]] = {
    "charge": _words("battery level ev vehicle car phone device charger state storm"),
    "checkout": _words(
        "git branch branches commit repo repository svn tag revision worktree code source book path file"
    ),
    "transfer": _words(
        """file files data call ownership domain domains repository repo issue issues project object objects image images
        chat owner server servers learning user users lead leads app host content ticket conversation knowledge sftp ftp
        style admin workspace participant channel number"""
    ),
    "subscription": _words(
        """azure azmcp az arm topic topics sns pubsub webhook webhooks event events eventgrid servicebus graphql mqtt
        kafka nats feed rss resource newsletter"""
    ),
    "transaction": _words("begin commit rollback abort db database sql isolation trace traces distributed span apm"),
    "deposit": _words("zenodo figshare dataset document geology"),
    "order": _words("by sort sorting work reading tab display purge element layer z"),
    "swap": _words("slot slots memory file files space window windows row rows face faces"),
    "settlement": _words("geo geographic map"),
}
"""Company in which a word of money is about something else."""

SENT_TO_RUN = _words("send submit post issue enqueue dispatch push put schedule perform")
CODE = _words(
    """command commands shell code script scripts statement sql cypher gremlin cmd expression cli terminal bash powershell
    python javascript js playbook binary program keys keystrokes"""
)
"""Objects that run when they are sent, posted or submitted."""

WORK = _words("job jobs query task run application workflow batch pipeline flow execution transaction build step work")
"""Objects that run when they are submitted."""

CREATED_TO_RUN = _words("create add make submit schedule enqueue")
STARTED = _words("run runs execution executions invocation invocations dispatch")
"""Objects whose creation is their start."""

NAMES_A_RECORD = _words(
    """run build test deploy export import backup sync order call scan crawl message email command process comment issue
    review report index schedule bill trade swap bid release request print credit fund merge pull push audit track
    trigger start stop"""
)
"""Verbs that behind STATUS's words are nouns: *run history*, *build logs* (not *update status*, *post status*)."""

ONLY_FIRST = _words("is has can what which who where how ls cat head dir stat look see exists match rank plot select")
"""Reading words that mean something else further back."""

FIXED_NOUN = _words("protection marker markers")
"""What right behind a verb always makes it a noun: *delete protection*."""

DATABASES = _words(
    """database databases db sql mysql postgres postgresql pg bigquery snowflake redshift athena sqlite duckdb oracle mssql
    mongodb mongo neo4j cypher dynamodb clickhouse chdb trino presto spark hive cassandra mariadb graphql kusto cosmos
    raw dql datalog sparql gremlin warehouse jdbc odbc chdb"""
)
"""What a *query* reaches with a language that can also change and run things."""

FORMATTED = _words("disk disks drive drives volume partition device sd card storage usb")
HARMLESS_RESETS = _words(
    "password passwords view zoom filter filters camera cursor layout selection form timer viewport"
)

GLUED_NOUNS = _words(
    """file files user users command commands query table tables database object objects item items record records row rows
    key keys folder directory message messages container pod image job workflow script code sql all account order orders
    payment payments invoice page pages list data info status event events issue project note notes task tasks contact
    email emails document documents dir url by id node nodes entity entities collection collections bucket buckets"""
)
"""What may follow a verb in a name written without any gap: *deletefile*."""

MONEY_MOVES = _words(
    """pay payment payments buy sell purchase withdraw withdrawal remit donate payout payouts refund refunds transfer wire
    charge disburse reimburse cashout mint burn stake trade swap liquidate invest lend borrow send order orders airdrop
    payroll topup redeem bet wager capture deposit donation settle repay"""
)
IRREPLACEABLE = _words(
    """database databases db dbs cluster clusters account accounts store stores datastore datastores bucket buckets tenant
    tenants org orgs organization organizations organisation namespace namespaces schema schemas table tables repo repos
    repository repositories vault vaults backup backups domain domains zone zones stack stacks warehouse disk disks drive
    drives partition partitions filesystem subscription subscriptions environment environments workspace workspaces project
    projects catalog keystore volume volumes keyspace keyspaces directory tree server servers vm site sites vectorstore
    objectstore registry mailbox kms fleet everything snapshots pool flushall flushdb"""
)
"""Deleting one of these takes everything inside along."""
ARBITRARY_CODE = _words(
    """shell command commands cmd code bash powershell terminal eval evaluate exec script scripts python javascript js repl
    ssh sudo sandbox expression cli kubectl sql program binary macro"""
)
SWEEPING = _words(
    """all bulk batch mass everything prod production root admin sudo force forced permanent permanently hard recursive
    recursively cascade irreversible global wipe"""
)
POWERS = _words(
    """permission permissions policy policies role roles iam grant acl acls firewall password passwords mfa impersonate
    privilege privileges sudo admin rbac trust federation unlock deploy overwrite restore migrate protection encryption
    detach disassociate deactivate manage ownership public membership collaborator collaborators secgroup ingress egress
    allow"""
)
SECRETS = _words(
    """secret secrets credential credentials password passwords passwd passphrase apikey apikeys privatekey keystore
    kubeconfig connectionstring env dotenv otp totp mfa cookie cookies keychain keyring htpasswd seedphrase mnemonic jwt
    jwts sts"""
)
MAYBE_SECRETS = _words("key keys token tokens")
ABOUT_SECRETS = _words("scanning scan alert alerts metadata policy")
NOT_SECRET = _words(
    """count usage price prices balance balances holders metadata supply info primary foreign value values phrase phrases
    issue result results pair shared press design transfers word words limit stats"""
)
