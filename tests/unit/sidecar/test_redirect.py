"""The redirection of a pod's ports, with real sockets in network namespaces."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from support.netns import POD_ADDRESSES, Namespace, wire
from toolpolicy.sidecar import redirect

UID = 15771
ARGUMENTS = ("8000=15771", "9000=15773", "--except-uid", str(UID))
PORTS = {8000: 15771, 9000: 15773}
IPV4, IPV6 = POD_ADDRESSES


class Network:
    """A world and a pod, the pod's servers at 8000 and 9000, and a stand-in for the sidecar."""

    def __init__(self, stack: ExitStack) -> None:
        self.world = stack.enter_context(Namespace())
        self.pod = stack.enter_context(Namespace())
        wire(self.world, self.pod)
        stack.enter_context(self.pod.serve("server8000", "::/8000"))
        stack.enter_context(self.pod.serve("server9000", "::/9000"))

    def sidecar(self, stack: ExitStack) -> None:
        stack.enter_context(self.pod.serve("sidecar8000", "::/15771", uid=UID))
        stack.enter_context(self.pod.serve("sidecar9000", "::/15773", uid=UID))


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    with ExitStack() as stack:
        made = Network(stack)
        assert made.world.ask(IPV4, 8000) == "server8000"
        made.pod.redirect(*ARGUMENTS)
        made.sidecar(stack)
        yield made


@pytest.mark.slow
@pytest.mark.parametrize("port", [8000, 9000])
@pytest.mark.parametrize("host", [IPV4, IPV6])
def test_from_outside_the_sidecar_answers_at_the_servers_port(network: Network, host: str, port: int) -> None:
    assert network.world.ask(host, port) == f"sidecar{port}"


@pytest.mark.slow
@pytest.mark.parametrize("port", [8000, 9000])
@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1", "::ffff:10.88.0.2", IPV4, IPV6])
@pytest.mark.parametrize("uid", [0, 1000])
def test_from_inside_too_whatever_the_address(network: Network, uid: int, host: str, port: int) -> None:
    assert network.pod.ask(host, port, uid=uid) == f"sidecar{port}"


@pytest.mark.slow
@pytest.mark.parametrize("how", ["device", f"from={IPV4}", "from=127.0.0.1"])
def test_nor_by_choosing_device_or_source(network: Network, how: str) -> None:
    said = network.pod.ask(IPV4, 8000, uid=1000, how=how)
    assert said in {"sidecar8000", "timeout", "EHOSTUNREACH", "EINVAL"}, said


@pytest.mark.slow
@pytest.mark.parametrize("host", ["127.0.0.1", "::1", IPV4, IPV6])
def test_the_sidecars_user_reaches_the_server(network: Network, host: str) -> None:
    assert network.pod.ask(host, 8000, uid=UID) == "server8000"
    assert network.pod.ask(host, 9000, uid=UID) == "server9000"


@pytest.mark.slow
def test_other_ports_are_left_alone(network: Network) -> None:
    with network.pod.serve("other", "::/7000"):
        assert network.world.ask(IPV4, 7000) == "other"
        assert network.pod.ask("127.0.0.1", 7000, uid=1000) == "other"
    assert network.world.ask(IPV4, 15771) == "sidecar8000"


@pytest.mark.slow
def test_again_is_harmless_and_another_set_replaces_it_whole() -> None:
    with Namespace() as pod:
        pod.redirect(*ARGUMENTS)
        first = pod.run("nft", "list", "ruleset").stdout
        pod.redirect(*ARGUMENTS)
        assert pod.run("nft", "list", "ruleset").stdout == first
        pod.redirect("8000", "7000", "--to", "15771", "--except-uid", str(UID))
        text = pod.run("nft", "list", "ruleset").stdout
        assert "9000" not in text
        assert text.count("tcp dport 7000 redirect to :15771") == 2
        pod.run("nft", "add", "table", "inet", "somebody")
        pod.redirect(*ARGUMENTS)
        assert "table inet somebody" in pod.run("nft", "list", "ruleset").stdout


@pytest.mark.slow
def test_again_beside_a_running_sidecar(network: Network) -> None:
    assert network.pod.redirect(*ARGUMENTS).returncode == 0
    assert network.world.ask(IPV4, 8000) == "sidecar8000"


@pytest.mark.slow
def test_where_ipv6_is_off_ipv4_is_redirected_all_the_same() -> None:
    with Namespace() as pod:
        pod.run("sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1", "net.ipv6.conf.lo.disable_ipv6=1")
        pod.redirect(*ARGUMENTS)
        with pod.serve("server", "0.0.0.0/8000"), pod.serve("sidecar", "0.0.0.0/15771", uid=UID):
            assert pod.ask("127.0.0.1", 8000, uid=1000) == "sidecar"
            assert pod.ask("127.0.0.1", 8000, uid=UID) == "server"


@pytest.mark.slow
def test_without_the_privilege_it_says_so_and_fails() -> None:
    with Namespace() as pod:
        command = f"{redirect.sys.executable} -m toolpolicy.sidecar.redirect {' '.join(ARGUMENTS)}"
        done = pod.run("capsh", "--drop=cap_net_admin", "--", "-c", command, check=False)
        assert done.returncode == 1
        assert "this pod must not start" in done.stderr
        assert "NET_ADMIN" in done.stderr
        assert "Traceback" not in done.stderr
        assert "toolpolicy" not in pod.run("nft", "list", "ruleset").stdout


@pytest.mark.slow
def test_rules_that_another_table_outruns_are_noticed() -> None:
    """Rules may stand and have no effect: here an earlier chain decides on NAT for the whole connection."""
    with Namespace() as pod:
        earlier = "{ type nat hook output priority -150; tcp dport 8000 redirect to :1; };"
        pod.run("nft", "-f", "-", stdin=f"table inet earlier {{\nchain output {earlier}\n}}\n")
        done = pod.redirect(*ARGUMENTS, check=False)
        assert done.returncode == 1
        assert "did not arrive" in done.stderr


def test_without_nft_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def nowhere(name: str, path: str) -> None:
        return None

    monkeypatch.setattr(redirect.shutil, "which", nowhere)
    assert redirect.main(list(ARGUMENTS)) == 1
    assert "there is no nft here" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("stderr", "words"),
    [
        ("netlink: Error: cache initialization failed: Operation not permitted", "lacks NET_ADMIN"),
        (
            "/dev/stdin:5:1-9: Error: Could not process rule: No such file or directory\n^^^^^^",
            "kernel lacks nf_tables",
        ),
        ("Error: Could not process rule: Operation not supported", "kernel lacks nf_tables"),
        ("netlink: Error: Unable to initialize Netlink socket: Protocol not supported", "kernel lacks nf_tables"),
        ("", "failed without a word"),
        ("Error: syntax error, unexpected junk", "syntax error"),
    ],
)
def test_what_nft_says_is_told_with_a_cure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], stderr: str, words: str
) -> None:
    def failing(*_: object, **__: object) -> object:
        return redirect.subprocess.CompletedProcess([], 1, "", stderr)

    monkeypatch.setattr(redirect.subprocess, "run", failing)
    assert redirect.main(list(ARGUMENTS)) == 1
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1


# -- the pure part


def rule(chain: str, *expr: object) -> dict[str, object]:
    return {"rule": {"family": "inet", "table": "toolpolicy", "chain": chain, "handle": 9, "expr": list(expr)}}


def match(left: object, right: object) -> dict[str, object]:
    return {"match": {"op": "==", "left": left, "right": right}}


PORT = {"payload": {"protocol": "tcp", "field": "dport"}}
LO = match({"meta": {"key": "oifname"}}, "lo")
CHAINS = [
    {"chain": {"name": name, "type": "nat", "hook": name, "prio": -100, "policy": "accept"}}
    for name in ("prerouting", "output")
]
OWN = rule("output", LO, match({"meta": {"key": "skuid"}}, UID), {"accept": None})
GOOD = [
    *CHAINS,
    rule("prerouting", match(PORT, 8000), {"redirect": {"port": 15771}}),
    OWN,
    rule("output", LO, match(PORT, 8000), {"redirect": {"port": 15771}}),
]


def wrong(*entries: object) -> str:
    return "; ".join(redirect.differences(json.dumps({"nftables": entries}), {8000: 15771}, UID))


def test_a_listing_as_written_is_fine() -> None:
    assert wrong({"metainfo": {"version": "1.0.6"}}, *GOOD) == ""


@pytest.mark.parametrize("gone", range(len(GOOD)))
def test_whatever_is_missing_is_noticed(gone: int) -> None:
    assert "chain" in wrong(*(entry for number, entry in enumerate(GOOD) if number != gone))


def test_a_rule_without_its_target_is_noticed() -> None:
    assert "chain prerouting" in wrong(*CHAINS, rule("prerouting", match(PORT, 8000)), *GOOD[3:])


def test_a_rule_too_many_is_noticed() -> None:
    assert "chain output" in wrong(*GOOD, rule("output", LO, {"accept": None}))


@pytest.mark.parametrize(
    "text", ["", "null", "[]", '{"nftables": 1}', '{"nftables": [1]}', '{"nftables": [{"rule": 1}]}']
)
def test_a_listing_that_is_none_is_a_fault_and_no_traceback(text: str) -> None:
    assert redirect.differences(text, {8000: 15771}, UID)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["8000", "--except-uid", "1"], "expected PORT=TARGET"),
        (["8000=15771", "8000=15773", "--except-uid", "1"], "given twice"),
        (["8000=8000", "--except-uid", "1"], "a target of a redirection"),
        (["8000=9000", "9000=1", "--except-uid", "1"], "a target of a redirection"),
        (["0=1", "--except-uid", "1"], "is no port"),
        (["70000=1", "--except-uid", "1"], "is no port"),
        (["8000=x", "--except-uid", "1"], "is no port"),
        (["8000; flush ruleset=1", "--except-uid", "1"], "is no port"),
        (["8000=15771", "--except-uid", "0"], "root's packets"),
        (["8000=15771"], "--except-uid"),
        (["8000", "--to", "99999", "--except-uid", "1"], "is no port"),
        (["--except-uid", "1"], "PORT"),
    ],
)
def test_arguments_that_cannot_be_meant(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        redirect.main(arguments)
    assert ended.value.code == 2
    assert words in capsys.readouterr().err


def test_what_would_be_written_can_be_read(capsys: pytest.CaptureFixture[str]) -> None:
    assert redirect.main([*ARGUMENTS, "--print"]) == 0
    assert capsys.readouterr().out == redirect.ruleset(PORTS, UID)
