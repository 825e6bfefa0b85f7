"""The lab does what the other tests here rely on."""

import contextlib
import os
import re
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from tests.network.conftest import MakeNetwork
from tests.network.lab import Host, Network
from tests.patience import patience

pytestmark = pytest.mark.soak  # of the lab, not of usb-remote: `make soak` runs them

GROUP, GROUP6, PORT = "239.77.0.1", "ff02::77", 7777

LISTEN = """
import socket, struct, sys
group, port = sys.argv[1], int(sys.argv[2])
family = socket.AF_INET6 if ":" in group else socket.AF_INET
sock = socket.socket(family, socket.SOCK_DGRAM)
sock.bind(("", port))
packed = socket.inet_pton(family, group)
if family == socket.AF_INET6:
    index = struct.pack("@I", socket.if_nametoindex("eth0"))
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, packed + index)
else:
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, packed + bytes(4))
print("listening")
while True:
    data, sender = sock.recvfrom(100)
    print("got", data.decode(), "from", sender[0])
"""

SEND = """
import socket, sys
family, kind, _, _, address = socket.getaddrinfo(*sys.argv[1:], type=socket.SOCK_DGRAM)[0]
socket.socket(family, kind).sendto(b"hello", address)
"""

ACCEPT = """
import socket, sys
with socket.create_server(("", int(sys.argv[1]))) as server:
    print("accepting")
    while True:
        server.accept()[0].close()
"""

CONNECT = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=0.5).close()
    print("connected")
except OSError as error:
    print(type(error).__name__)
"""

ABANDONED = """
from tests.network.test_lab import *
with Network(2) as lab:
    leave_processes(lab)
    print(*inhabitants(lab), flush=True)
    input()
"""


def test_hosts_reach_each_other_over_ipv4_and_ipv6(network: MakeNetwork) -> None:
    one, two = network(2)

    assert hears(one, two.address)
    assert hears(one, two.address6)
    assert hears(two, f"{one.link_local}%eth0")


def test_a_network_may_have_one_address_family_only(network: MakeNetwork) -> None:
    one, two = network(2, ipv6=False)
    assert hears(one, two.address)
    assert "inet6" not in one.run(["ip", "address"]).stdout

    three, four = network(2, ipv4=False)
    assert hears(three, four.address6)
    assert "eth0" not in three.run(["ip", "-4", "address"]).stdout


def test_two_networks_do_not_see_each_other(network: MakeNetwork) -> None:
    (one,), (other, neighbour) = network(1), network(2)

    assert hears(other, neighbour.address)
    assert not hears(one, neighbour.address, seconds=1)


@pytest.mark.parametrize(("group", "target"), [(GROUP, GROUP), (GROUP6, f"{GROUP6}%eth0")])
def test_multicast_reaches_all_other_hosts(network: MakeNetwork, group: str, target: str) -> None:
    sender, *others = network(3)
    listeners = [other.start([sys.executable, "-c", LISTEN, group, str(PORT)]) for other in others]
    for listener in listeners:
        listener.wait_for("listening")

    send(sender, target)

    for listener in listeners:
        assert listener.wait_for("got hello from (.+)")[1] in {sender.address, sender.link_local}


def test_host_names_and_machine_ids_are_the_hosts_own(network: MakeNetwork) -> None:
    lab = network(1)
    twins = [lab.add_host(hostname="raspberrypi") for _ in range(2)]
    ids = {host.run(["cat", "/etc/machine-id"]).stdout for host in lab}

    assert [host.run(["uname", "-n"]).stdout for host in twins] == ["raspberrypi\n"] * 2
    assert all(re.fullmatch(r"[0-9a-f]{32}\n", machine_id) for machine_id in ids)
    assert len(ids | {Path("/etc/machine-id").read_text()}) == 4


def test_a_host_can_be_renamed_and_cloned(network: MakeNetwork) -> None:
    one, two = network(2)
    two.set_hostname("host1")
    two.set_machine_id(one.run(["cat", "/etc/machine-id"]).stdout.strip())

    for command in (["uname", "-n"], ["cat", "/etc/machine-id"]):
        assert one.run(command).stdout == two.run(command).stdout


def test_run_and_sys_are_the_hosts_own(network: MakeNetwork) -> None:
    one, two = network(2)
    one.run(["touch", "/run/usb-remote-lab"])

    assert "usb-remote-lab" in one.run(["ls", "/run"]).stdout
    assert "usb-remote-lab" not in two.run(["ls", "/run"]).stdout
    assert not Path("/run/usb-remote-lab").exists()
    assert one.run(["ls", "/sys/class/net"]).stdout.split() == ["eth0", "lo"]


def test_addresses_come_and_go(network: MakeNetwork) -> None:
    one, two = network(2)
    for old, new in ((two.address, "10.77.0.200"), (two.address6, "fd77::200")):
        two.add_address(new)
        two.remove_address(old)

        assert hears(one, new)
        assert not hears(one, old, seconds=1)


def test_loss_hits_its_share_of_packets(network: MakeNetwork) -> None:
    one, two = network(2)
    two.drop(10)
    lossy = received(one.run(["ping", "-fqc1000", two.address]).stdout)
    two.drop(0)

    # 900 are expected and the standard deviation is 9.5: these bounds are seven of them away.
    assert 830 < lossy < 970
    assert received(one.run(["ping", "-fqc100", two.address]).stdout) == 100


def test_a_cut_link_heals(network: MakeNetwork) -> None:
    one, two = network(2)
    # Neighbours that know each other, or else the kernel gives up 3 s after the first question.
    assert hears(one, two.address)
    assert hears(one, two.address6)

    two.link_down()
    assert not hears(one, two.address, seconds=1)
    assert not hears(one, two.address6, seconds=1)
    assert two.address in two.run(["ip", "address"]).stdout

    two.link_up()
    assert hears(one, two.address)
    assert hears(one, two.address6)


def test_ports_can_be_blocked(network: MakeNetwork) -> None:
    one, two = network(2)
    accept(two)
    assert connect(one, two) == "connected"

    two.block("tcp", PORT, "reject")
    assert connect(one, two) == "ConnectionRefusedError"
    two.block("tcp", PORT)
    assert connect(one, two) == "TimeoutError"
    assert connect(two, two) == "connected"

    two.unblock("tcp", PORT)
    assert connect(one, two) == "connected"


def test_a_firewall_lets_only_replies_and_open_ports_in(network: MakeNetwork) -> None:
    one, two = network(2)
    accept(one)
    accept(two)
    two.allow_only(("udp", 5353))
    assert connect(one, two) == "TimeoutError"
    assert connect(two, one) == "connected"

    two.allow_only(("udp", 5353), ("tcp", PORT))
    assert connect(one, two) == "connected"
    two.allow_only()
    two.allow_all()
    assert connect(one, two) == "connected"


def test_a_failing_command_shows_what_it_wrote(network: MakeNetwork) -> None:
    (host,) = network(1)
    with pytest.raises(subprocess.CalledProcessError) as failure:
        host.run(["ls", "/no such file"])

    assert "/no such file" in failure.value.__notes__[0]


def test_lines_are_found_in_their_order(network: MakeNetwork) -> None:
    (host,) = network(1)
    process = host.start(["sh", "-c", "echo a; echo b1 >&2; sleep 1; echo b2; exit 3"])

    assert [process.wait_for(r"b(\d)")[1] for _ in range(2)] == ["1", "2"]
    with pytest.raises(AssertionError, match="no line matches 'b'"):
        process.wait_for("b")
    assert process.wait() == 3
    assert process.lines("stdout") == ["a", "b2"]
    assert process.lines("stderr") == ["b1"]


def test_a_process_is_asked_to_stop_before_it_is_killed(network: MakeNetwork) -> None:
    (host,) = network(1)
    polite = host.start(["sh", "-c", "trap 'echo bye; exit 0' TERM; echo up; while :; do :; done"])
    stubborn = host.start(["sh", "-c", "trap '' TERM; echo up; while :; do sleep 1; done"])
    for process in (polite, stubborn):
        process.wait_for("up")

    assert polite.stop() == 0
    assert polite.lines() == ["up", "bye"]
    assert stubborn.stop(timeout=0.1) == -signal.SIGKILL


def test_nothing_is_left_after_a_failure(able: None) -> None:
    before = (links(), open_files(), threading.active_count())
    runs: list[int] = []
    with pytest.raises(ZeroDivisionError):
        fail_with_processes_running(runs)

    assert len(runs) >= 3 + 2  # holders, shell, its sleep and, by now or not, the other sleep
    assert all_ended(runs)
    assert (links(), open_files(), threading.active_count()) == before


def test_nothing_is_left_when_the_test_is_killed(able: None) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", ABANDONED], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as test:
        assert test.stdout
        runs = watch(int(word) for word in test.stdout.readline().split())
        test.kill()

    assert len(runs) >= 3 + 2
    assert all_ended(runs)


def fail_with_processes_running(runs: list[int]) -> None:
    with Network(2) as lab:
        leave_processes(lab)
        runs += watch(inhabitants(lab))
        raise ZeroDivisionError


def leave_processes(lab: Network) -> None:
    """Start a command that leaves others behind when it is stopped."""
    lab[0].start(["sh", "-c", "setsid sleep 1000 & echo up; sleep 1000"]).wait_for("up")


def inhabitants(lab: Network) -> Iterator[int]:
    """The processes of a network, holders included."""
    holders = [lab.switch.pid, *(host.inside.pid for host in lab)]
    namespaces = {Path(f"/proc/{pid}/ns/net").readlink() for pid in holders}
    for entry in Path("/proc").glob("[0-9]*/ns/net"):
        with contextlib.suppress(OSError):
            if entry.readlink() in namespaces:
                yield int(entry.parts[2])


def send(host: Host, target: str) -> None:
    host.run([sys.executable, "-c", SEND, target, str(PORT)])


def hears(host: Host, target: str, seconds: int | None = None) -> bool:
    """Ask once a second until it answers: a cable that was plugged in is noticed within a second.

    The kernel takes the changes of a link together (net/core/link_watch.c).
    """
    limit = seconds or round(patience(5))
    return host.run(["ping", "-c1", f"-w{limit}", target], check=False).returncode == 0


def received(ping: str) -> int:
    found = re.search(r"(\d+) received", ping)
    assert found
    return int(found[1])


def accept(host: Host) -> None:
    host.start([sys.executable, "-c", ACCEPT, str(PORT)]).wait_for("accepting")


def connect(client: Host, server: Host) -> str:
    return client.run([sys.executable, "-c", CONNECT, server.address, str(PORT)]).stdout.strip()


def links() -> set[Path]:
    return set(Path("/sys/class/net").iterdir())


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def watch(pids: Iterable[int]) -> list[int]:
    return [os.pidfd_open(pid) for pid in pids]


def all_ended(handles: list[int]) -> bool:
    """Whether these processes end within a moment; lets go of the handles."""
    ended = [bool(select.select([handle], [], [], patience(10))[0]) for handle in handles]
    for handle in handles:
        os.close(handle)
    return all(ended)
