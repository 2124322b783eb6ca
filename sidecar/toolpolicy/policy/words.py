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


def word_set(text: str) -> frozenset[str]:
    return frozenset(text.split())


_TABLE: tuple[tuple[Category, Strength, str], ...] = (
    (
        Category.READ,
        Strength.HARD,
        """get list read describe fetch retrieve show view find lookup search browse inspect introspect explore
        discover enumerate download peek head cat ls dir stat whoami ping is has can learn recall
        summarize summarise explain analyze analyse compare detect calculate estimate count
        identify recommend suggest check diagnose examine preview locate grep glob extract parse
        tokenize translate measure poll obtain rerank determine hget hgetall mget lrange
        smembers zrange llen scard exists lint see assess collect gather observe look what which who
        where verify how match correlate consult visualize visualise plot screenshot classify rank
        paginate geocode query""",
    ),
    (
        Category.READ,
        Strength.LOOSE,
        """watch monitor map scan diff filter sort trace audit profile forecast predict tail crawl scrape
        hash decode encode quote embed aggregate reference score blame compute""",
    ),
    (
        Category.WRITE,
        Strength.HARD,
        """create add write insert upsert edit modify save append put send upload rename assign unassign attach
        associate grant invite enable disable detach disassociate deactivate restore recover revert
        rollback undo replace overwrite publish unpublish subscribe unsubscribe notify configure manage
        allow replicate duplicate archive unarchive move mkdir mark persist amend adjust alter annotate
        introduce propose submit generate produce compose validate register synchronize reorder prepend
        approve reject accept decline dismiss acknowledge resolve transition promote demote reply
        forward unfollow unlike unpin unmute ban unban kick unshare untag unstar bookmark unset rotate
        renew shrink expand resize provision allocate increment decrement incr decr hset sadd zadd lpush
        rpush xadd setex mset lpop rpop getset getex touch chmod chown enroll onboard offboard reassign
        transform reconfigure apply autofix repair mutate bind unbind mount unmount reserve rsvp cordon
        uncordon taint quarantine isolate encrypt customize personalize favorite favourite unfavorite
        upvote downvote react retweet repost tweet toot remember memorize ingest hide unhide
        escalate deprecate enqueue unstage stash cherrypick squash rebase finalize finalise conclude
        invalidate expire unblock whitelist blacklist ignore snooze emit populate prefill rewrite
        refactor implement nominate moderate cancel abort close reopen logout signout restrict permit
        authorize deauthorize elevate relocate refresh reschedule postpone opt compress decompress unzip
        concatenate define redefine declare fulfill fulfil optimize optimise normalize remap repartition
        rearrange sign unsign attest revise polish unlock unlink unload respond contribute upgrade
        downgrade redact make broadcast relabel retag republish resend reapply instantiate adopt exclude
        include transact enrich sketch paste migrate confirm deny upscale relist""",
    ),
    (
        Category.WRITE,
        Strength.SOFT,
        """update post copy export backup snapshot change checkin lock hold shift arm disarm dim highlight format switch
        group ungroup cut fold split name prioritize release render set link share import like follow
        print merge fork clone patch commit stage crop mask draw paint fix store block seed pin mute
        leave extend scale trim tune transfer checkout vote join ack pull push sync ship zip fill draft finish
        complete receive convert
        capture""",
    ),
    (
        Category.WRITE,
        Strength.LOOSE,
        """comment record label tag star branch message email mail sms text note schedule review report document index
        issue file title flag log track book plan thread remind partition cache cast transcribe outline
        dub""",
    ),
    (
        Category.EXECUTE,
        Strength.HARD,
        """execute exec invoke eval evaluate launch restart reboot rerun retry replay spawn perform redeploy
        relaunch shutdown resume suspend hibernate deallocate wakeup poweron poweroff turnon turnoff
        toggle activate install reinstall bootstrap initiate initialize initialise compile finetune
        train simulate fuzz emulate click doubleclick hover swipe navigate goto keypress debug login
        signin authenticate connect disconnect reconnect dial impersonate assume orchestrate sudo curl
        exploit bruteforce reload recompute rebuild decrypt crack ignite operate interact do interpret
        solve failover rollout vacuum defragment benchmark ask delegate hijack spoof intercept inject nmap
        exfiltrate leak scramble
        tamper falsify poison brick flood spam phish infect hack dump""",
    ),
    (
        Category.EXECUTE,
        Strength.SOFT,
        """run start stop trigger deploy test build call boot pause fire process dispatch halt shell ssh open power
        turn drain request command wake infer control drive fly land brew automate proxy tunnel attack
        tap type press scroll drag select handle use act wait sleep prompt chat play skip""",
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
        expunge rm rmdir rmi del unregister deregister uninstall decommission deprovision teardown
        cleanup undeploy evict discard flushall flushdb hdel srem zrem lrem getdel forget dissolve
        eliminate annihilate abandon dismantle scrub vaporize ltrim unprovision demolish depopulate
        decimate recreate wreck corrupt smash reimage rescind raze nullify""",
    ),
    (
        Category.DESTRUCTIVE,
        Strength.SOFT,
        """reset empty retire sunset expel blank clear clean trash flush zap""",
    ),
    (
        Category.FINANCIAL,
        Strength.HARD,
        """pay buy sell withdraw remit donate repay liquidate reimburse disburse redeem prepay topup cashout invest
        lend borrow unstake airdrop overpay autopay underwrite writeoff""",
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
    "sent": "send", "written": "write", "wrote": "write", "paid": "pay", "bought": "buy", "sold": "sell",
    "built": "build", "ran": "run", "found": "find", "got": "get", "made": "make", "kept": "save", "lent": "lend",
    "spent": "pay", "withdrawn": "withdraw", "drawn": "draw", "hidden": "hide", "shown": "show",
    "forgotten": "forget", "shut": "shutdown",
}  # fmt: skip
"""Participles that no rule of spelling gives."""

NOMINAL = {
    "deletion": "delete", "deletions": "delete", "removal": "remove", "removals": "remove",
    "termination": "terminate", "destruction": "destroy", "erasure": "erase", "revocation": "revoke",
    "truncation": "truncate", "eviction": "evict", "deregistration": "deregister", "purgation": "purge",
    "decommissioning": "decommission", "uninstallation": "uninstall", "execution": "execute",
    "executions": "execute", "invocation": "invoke", "invocations": "invoke", "evaluation": "evaluate",
    "deployment": "deploy", "deployments": "deploy", "creation": "create", "modification": "modify",
    "liquidation": "liquidate",
}  # fmt: skip
"""Nouns of an action: they name it, and by themselves do not ask for it."""

NOUNS = word_set(
    """settings setting pricing string strings meeting meetings training embedding embeddings routing marketing
    ring building buildings listing listings tracking logging monitoring thing things spring bing everything
    billing pending missing timing rating ratings ranking rankings heading headings mapping mappings binding
    bindings trading banking messaging onboarding branding scanning crawling sharding caching networking
    working morning evening king wing typescript postscript openid staging warning warnings existing
    incoming outgoing upcoming remaining matching underlying during pudding need speed feed seed breed red
    bed shed feedback embed unread thread read_only deed weed records related unrelated based advanced united
    limited detailed nested indexed unspecified used unused fixed news does canvas bus gas class access
    process_group address addresses series lens sls aws sns sqs rds eks ecs dns tls os ios js css rss gps
    cms sms https dbs ids apis undo usage message disk discount distance district disc dish display
    discussion discussions deal dear death debt decade december decimal decision deck deep default defaults
    definition definitions degree delay delivery delta demand demo department depth design desk desktop
    destination destinations detail details device devices union unit units universe university unique
    uniform reservation resource resources record records recent region regions registry relation relations
    release report reports repository repositories review reviews reward rewards real reason reasons recipe
    recipes recipient reel request response responses rest restaurant restaurants result results return
    revenue reaction reactions reader"""
) - {"seed", "embed", "release", "report", "review", "request", "read_only"}
"""Words whose ending or beginning looks like an inflection or a prefix and is none."""

STATUS = word_set(
    """status statuses state states history progress logs stats statistics metrics summary details result results
    usage analytics insights info information overview count counts schema documentation docs metadata"""
)
"""Behind a word that is a verb or a noun (*run*, *order*), these make it the noun: *run history*."""

REFERENCE = STATUS | word_set(
    """doc help version weather forecast tree spec catalog catalogue definition changelog manual readme faq whois about
    capabilities news leaderboard balance health healthcheck uptime glossary dictionary timezone log"""
)
"""Nouns for something to be looked at: a name without any verb that ends in one is a Read."""

OBJECT = word_set(
    """data tables columns databases schemas alerts inventory quote quotes time date clock directions size state states
    result results schema metadata docs"""
)
"""The same, but what an unknown verb may well act on: a Read alone, or behind words that are surely nouns."""

ATTRIBUTED = word_set(
    """status statuses state history progress policy policies protection marker markers log logs event events reason
    reasons request requests job jobs task tasks result results count counts preview plan permission permissions
    operation operations schedule date time timestamp flag confirmation window eligibility impact candidate
    candidates hook hooks activity capability capabilities access"""
)
"""Behind a dangerous verb and a reading one, these make the dangerous verb an attribute: *get delete marker*."""

PROTECTED = word_set(
    """policy policies protection marker markers permission permissions flag setting settings config configuration
    option options template templates hook hooks rule rules date time window notification notifications"""
)
"""The same behind a writing verb, where fewer nouns are safe: *set deletion policy*, but not *create delete job*."""

CONJUNCTIONS = word_set("and or then also plus else")

INVERSE = word_set(
    """cancel abort stop prevent undo disable block restore recover reject decline revert forbid deny pause suspend
    unschedule skip avoid"""
)
"""Verbs that take the action behind them back: *cancel key deletion*."""

NOT_A_START = word_set("last latest next previous recent first pending failed current past active")
"""Adjectives that make the SOFT verb behind them a noun: *last run*."""

MONEY = word_set(
    """payment payments charge charges refund refunds invoice invoices payout payouts subscription subscriptions
    billing transaction transactions transfer transfers purchase purchases checkout checkouts payroll
    deposit deposits withdrawal withdrawals remittance remittances reimbursement reimbursements disbursement
    disbursements chargeback chargebacks paycheck paychecks paylink escrow prepayment prepayments repayment
    repayments"""
)
"""Objects that are money on the move: whatever is done with them, looking at them included, is Financial."""

MONEY_ACTED_ON = word_set(
    """order orders money funds fund cash eth ether btc bitcoin sol usdc usdt xrp lightning sats coins crypto bill
    bills expense expenses ledger leverage salary salaries dividend dividends loan loans mortgage donation
    donations settlement settlements giftcard trade trades swap wire bid bet wager stake"""
)
"""Objects that are Financial only when something other than looking is done with them."""

POSITION_ACTS = word_set("open close liquidate hedge flatten exit")
"""What one does with a *position* on a market, and not with one on a screen."""

NOT_MONEY: dict[str, frozenset[str]] = {
    "charge": word_set("battery level ev vehicle car phone device charger state storm"),
    "checkout": word_set(
        "git branch branches commit repo repository svn tag revision worktree code source book path file"
    ),
    "transfer": word_set(
        """file files data call ownership domain domains repository repo issue issues project object objects image
        images chat owner server servers learning user users lead leads app host content ticket
        conversation knowledge sftp ftp style admin workspace participant channel number"""
    ),
    "subscription": word_set(
        """azure azmcp az arm topic topics sns pubsub webhook webhooks event events eventgrid servicebus graphql
        mqtt kafka nats feed rss resource newsletter"""
    ),
    "transaction": word_set("begin commit rollback abort db database sql isolation trace traces distributed span apm"),
    "deposit": word_set("zenodo figshare dataset document geology"),
    "order": word_set("sort sorting work reading tab display purge element layer z"),
    "swap": word_set("slot slots memory file files space window windows row rows face faces"),
    "settlement": word_set("geo geographic map"),
}
"""Company in which a word of money is about something else."""

SENT_TO_RUN = word_set("send submit post issue enqueue dispatch push put schedule perform")
CODE = word_set(
    """command commands shell code script scripts statement sql cypher gremlin cmd expression cli terminal bash
    powershell python javascript js playbook binary program keys keystrokes"""
)
"""Objects that run when they are sent, posted or submitted."""

HANDS = word_set("mouse keyboard cursor pointer touchscreen")
"""Moving one of these does whatever lies under it."""

CREATED_TO_RUN = word_set("create add make submit schedule enqueue")
STARTED = word_set("run runs execution executions invocation invocations dispatch")
"""Objects whose creation is their start."""

RUNS = word_set(
    "run build test deploy order call message email command review release request trade swap bid bill scan crawl"
)
JOBS = word_set("export import backup sync upgrade")
NAMES_A_RECORD = (RUNS | JOBS) | word_set("comment issue report index schedule print credit fund merge track audit")
"""Verbs that are often the noun for what they made: *build get status*."""

RECORDS: dict[str, frozenset[str]] = {
    **dict.fromkeys(("status", "statuses", "progress"), RUNS | JOBS),
    **dict.fromkeys(("history", "result", "results", "log", "logs", "detail", "details", "count"), RUNS),
}
"""What such a noun may have, so that a name of the two says nothing but look: *run history*, not *post status*."""

NEVER_NOUNS = word_set("get describe")
"""Behind such a record's name these show that it is the noun: *build get status*."""

NOUNABLE = word_set(
    "list search view check count compute query match rank plot score look head cat compare extract ping poll preview"
)
"""Reading verbs that may as well be the thing that the name's last word is done to: *list clear*."""

ONLY_FIRST = word_set("is has can what which who where how ls cat head dir stat look see exists match rank plot")
"""Reading words that mean something else further back."""

FIXED_NOUN = word_set("protection marker markers")
"""What right behind a verb always makes it a noun: *delete protection*."""

DATABASES = word_set(
    """database databases db sql mysql postgres postgresql pg bigquery snowflake redshift athena sqlite duckdb
    oracle mssql mongodb mongo neo4j cypher dynamodb clickhouse chdb trino presto spark hive cassandra
    mariadb graphql kusto cosmos raw dql datalog sparql gremlin warehouse jdbc odbc chdb"""
)
"""What a *query* reaches with a language that can also change and run things."""

COMPANY: dict[str, tuple[frozenset[str], Category]] = {
    "format": (
        word_set("disk disks drive drives volume partition device sd card storage usb filesystem"),
        Category.DESTRUCTIVE,
    ),
    "move": (word_set("trash bin recyclebin"), Category.DESTRUCTIVE),
    "send": (word_set("trash bin recyclebin"), Category.DESTRUCTIVE),
    "reset": (
        word_set("password passwords view zoom filter filters camera cursor layout selection form timer viewport"),
        Category.WRITE,
    ),
    "scan": (
        word_set(
            "nmap host hosts port ports network networks ip subnet target targets vulnerabilities vulnerability wifi"
        ),
        Category.EXECUTE,
    ),
    "resolve": (word_set("id ids name names dns host hostname address library uri path ref ens"), Category.READ),
    "apply": (
        word_set("run plan migration migrations terraform tofu pulumi cdk infrastructure command script playbook"),
        Category.EXECUTE,
    ),
    "submit": (
        word_set("job jobs query task run application workflow batch pipeline flow execution build step work"),
        Category.EXECUTE,
    ),
    "make": (word_set("request call"), Category.EXECUTE),
    "receive": (word_set("message messages sms email emails data"), Category.READ),
    "convert": (
        word_set(
            """time timezone date currency currencies unit units temperature length weight markdown html pdf text case
            color colour base coordinates"""
        ),
        Category.READ,
    ),
    "capture": (word_set("screenshot screen page viewport image photo frame logs log"), Category.READ),
    "recall": (word_set("message messages email emails mail shipment product"), Category.WRITE),
    "map": (word_set("drive drives network port ports volume"), Category.WRITE),
    "snapshot": (word_set("browser page dom accessibility screen"), Category.READ),
}
"""What a verb means in the company of certain words, where that is not what it means alone."""

GLUED_NOUNS = word_set(
    """file files user users command commands query table tables database object objects item items record records
    row rows key keys folder directory message messages container pod image job workflow script code sql all
    account order orders payment payments invoice page pages data event events issue project note notes task
    tasks contact email emails document documents dir node nodes entity entities collection collections
    bucket buckets"""
)
"""What may follow a verb in a name written without any gap: *deletefile*."""
