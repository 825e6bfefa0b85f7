"""Each check of `usb-remote doctor`, on small trees like those of real machines; the faults
themselves are in tests/network and tests/kernel.
"""

from __future__ import annotations

import errno
import socket
from pathlib import Path

import pytest

from tests.serving import HOST, Running
from tests.trees import RELEASE, Tree
from usb_remote import errors, programs, vhci
from usb_remote.config import Config, ServerConfig
from usb_remote.doctor import firewall, kernel, local, machine, multicast, path, ports, servers
from usb_remote.doctor.examination import Doctor
from usb_remote.doctor.path import Answer, Reach, Way
from usb_remote.doctor.report import Check, Finding, Fix, Report, Role, Status
from usb_remote.mdns.probe import Probed
from usb_remote.model import Attachment, Server
from usb_remote.replies import InfoNow
from usb_remote.values import BusId

INSMOD = "insmod /lib/modules/6.1/kernel/drivers/usb/usbip/vhci-hcd.ko\n"
MODULE = Check.CLIENT_MODULE
TCP = """  sl local rem st tx:rx tr:when retrnsmt uid timeout inode
   0: 00000000:{listening:04X} 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 4711
   1: 0100007F:13BF 0100007F:D2F0 01 00000000:00000000 00:00000000 00000000 0 0 4712
"""
UDP = """  sl local rem st tx:rx tr:when retrnsmt uid timeout inode
   0: 00000000:14E9 00000000:0000 07 00000000:00000000 00:00000000 00000000 108 0 815
"""


async def test_a_program_that_is_asked_never_raises(tmp_path: Path) -> None:
    assert await programs.ask(["sh", "-c", "echo out; echo err >&2; exit 3"], 5) == (
        3,
        "out\nerr\n",
    )
    assert (await programs.ask(["no-such-program"], 5))[0] == machine.NO_PROGRAM
    assert (await programs.ask(["sleep", "60"], 0.05))[0] == 124
    broken = tmp_path / "broken"
    broken.write_bytes(b"\x7fELF")
    broken.chmod(0o755)
    assert (await programs.ask([str(broken)], 5))[0] == 126


# -- modules


async def test_a_module_that_is_built_in(tree: Tree) -> None:
    tree.write(f"lib/modules/{RELEASE}/modules.builtin", "kernel/drivers/usb/usbip/vhci-hcd.ko\n")
    found = await kernel.check_module(tree.machine(), MODULE, "vhci_hcd")
    assert (found.status, found.text) == ("ok", "vhci_hcd is built into the kernel")


async def test_a_module_that_is_loaded(tree: Tree) -> None:
    tree.write("sys/module/vhci_hcd/refcnt")
    found = await kernel.check_module(tree.machine(), MODULE, "vhci_hcd")
    assert (found.status, found.mend) == ("ok", None)


async def test_a_module_that_can_be_loaded(tree: Tree) -> None:
    tree.answers["modprobe"] = 0, INSMOD
    found = await kernel.check_module(tree.machine(), MODULE, "vhci_hcd")
    assert (found.status, found.mend) == ("warning", "sudo modprobe vhci_hcd")
    assert found.fix is not None
    assert found.fix.commands[0] == ("modprobe", "vhci_hcd")


async def test_a_module_that_is_forbidden(tree: Tree) -> None:
    tree.answers["modprobe"] = 0, "install /bin/false\n"
    tree.write("etc/modprobe.d/cis.conf", "# hardening\ninstall vhci-hcd /bin/false\n")
    found = await kernel.check_module(tree.machine(), MODULE, "vhci_hcd")
    assert found.status == "failed"
    assert "/etc/modprobe.d/cis.conf" in found.text
    assert found.fix is None


async def test_a_container_cannot_load_modules(tree: Tree) -> None:
    tree.write(".dockerenv")
    found = await kernel.check_module(tree.machine(), MODULE, "vhci_hcd")
    assert (found.status, found.mend) == ("failed", "on the host: sudo modprobe vhci_hcd")


async def test_modules_of_another_kernel(tree: Tree) -> None:
    tree.write("proc/sys/kernel/osrelease", "6.1.0-17-amd64\n")
    found = await kernel.check_module(tree.machine(), MODULE, "vhci_hcd")
    assert (found.status, found.mend) == ("failed", "sudo reboot")


@pytest.mark.parametrize(
    ("os_release", "release", "module", "tool"),
    [
        ("ID=debian", RELEASE, "linux-image-$(dpkg", "apt install usbip"),
        ('ID=ubuntu\nID_LIKE=debian', "6.8.0-31-generic",
         "linux-modules-extra-6.8.0-31-generic", "linux-tools-6.8.0-31-generic"),
        ('ID=linuxmint\nID_LIKE="ubuntu debian"', "6.8.0-31-generic",
         "linux-modules-extra-6.8.0-31-generic", "linux-tools-6.8.0-31-generic"),
        ("ID=debian\n#rpi", "6.6.31+rpt-rpi-v8",
         "linux-image-6.6.31+rpt-rpi-v8", "apt install usbip"),
        ("ID=raspbian\nID_LIKE=debian", "6.1.21-v7+", "raspberrypi-kernel", "apt install usbip"),
        ("ID=fedora", "6.8.5-301.fc40.x86_64",
         "kernel-modules-extra-6.8.5-301.fc40.x86_64", "dnf install usbip"),
        ("ID=arch", "6.8.7-arch1-1", "pacman -Syu linux", "pacman -S usbip"),
        ("ID=gentoo", "6.6.30", "has vhci_hcd for kernel 6.6.30", "has the command usbip"),
    ],
)  # fmt: skip
async def test_what_is_missing_is_named_as_the_distribution_does(
    tree: Tree, os_release: str, release: str, module: str, tool: str
) -> None:
    tree.write("etc/os-release", os_release + "\n")
    tree.write("proc/sys/kernel/osrelease", release + "\n")
    tree.write(f"lib/modules/{release}/modules.builtin")
    if "#rpi" in os_release:
        tree.write("etc/rpi-issue")
    tree.answers["modprobe"] = 1, "modprobe: FATAL: Module vhci_hcd not found in directory\n"
    found = await kernel.check_module(tree.machine(), MODULE, "vhci_hcd")
    assert (found.status, found.fix) == ("failed", None)
    assert module in str(found.mend)
    assert tool in str((await kernel.check_tool(tree.machine())).mend)


async def test_a_tool_that_is_there_and_does_not_run(tree: Tree) -> None:
    tree.answers["usbip"] = 2, "WARNING: usbip not found for kernel 6.8.0-31\n\nand more\n"
    found = await kernel.check_tool(tree.machine())
    assert found.status == "failed"
    assert found.text.endswith("WARNING: usbip not found for kernel 6.8.0-31")
    tree.answers["usbip"] = 0, "usbip (usbip-utils 2.0)\n"
    assert (await kernel.check_tool(tree.machine())).status == "ok"


# -- permissions and the agent


@pytest.mark.parametrize(
    ("uid", "sudo", "status"),
    [(0, (127, ""), "ok"), (1000, (0, ""), "ok"), (1000, (1, "a password"), "warning"),
     (1000, (127, ""), "failed")],
)  # fmt: skip
async def test_who_may_attach(tree: Tree, uid: int, sudo: tuple[int, str], status: str) -> None:
    tree.answers["sudo"] = sudo
    found = await kernel.check_permission(tree.machine(uid))
    assert found.status == status
    if status != "ok":
        assert "usb-remote install-service agent; " in str(found.mend)


async def test_the_agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the path of a socket is short: 108 bytes
    tree = Tree(Path())
    assert kernel.check_agent(tree.machine(1000)).status == "skipped"
    place = tree.write(kernel.AGENT_SOCKET)
    place.unlink()
    with socket.socket(socket.AF_UNIX) as agent:
        agent.bind(str(place))
        dead = kernel.check_agent(tree.machine(1000))
        assert (dead.status, dead.mend) == ("failed", "sudo systemctl restart usb-remote-agent")
        agent.listen(5)
        assert kernel.check_agent(tree.machine(1000)).status == "ok"
        assert (await kernel.check_permission(tree.machine(1000))).status == "ok"


# -- vhci ports, devices


@pytest.mark.parametrize(
    ("free", "status"),
    [({}, "skipped"), ({"hs": (8, 8), "ss": (8, 8)}, "ok"),
     ({"hs": (2, 8), "ss": (8, 8)}, "warning"),
     ({"hs": (0, 8), "ss": (8, 8)}, "failed"), ({"hs": (8, 8), "ss": (0, 8)}, "failed")],
)  # fmt: skip
def test_free_vhci_ports(free: dict[str, tuple[int, int]], status: str) -> None:
    assert kernel.check_vhci_ports(free).status == status


def test_vhci_ports_are_counted_for_each_speed(tree: Tree) -> None:
    rows = "hub port sta spd dev      sockfd local_busid\n" + "".join(
        f"{hub}  {port:04} {sta} 000 00000000 000000 0-0\n"
        for port, (hub, sta) in enumerate([("hs", "004"), ("hs", "006"), ("ss", "005")])
    )
    tree.write("sys/devices/platform/vhci_hcd.0/status", rows)
    assert vhci.Vhci(tree.root / "sys").count_ports() == {"hs": (1, 2), "ss": (0, 1)}


def test_devices_of_a_server(tree: Tree) -> None:
    device = "sys/bus/usb/devices/1-1"
    tree.write(f"{device}/driver/bind")
    assert kernel.check_devices(tree.machine()).status == "ok"
    tree.write("sys/bus/usb/drivers/usbip-host/match_busid", "1-1 " * 16 + "\n")
    assert "16 devices, and all are taken" in kernel.check_devices(tree.machine()).text
    tree.write("sys/bus/usb/devices/1-2/idVendor", "0403\n")
    bare = kernel.check_devices(tree.machine())
    assert (bare.status, bare.mend) == ("warning", "echo 1-2 | sudo tee /sys/bus/usb/drivers_probe")
    tree.write(f"{device}/usbip_status", "3\n")
    assert kernel.check_devices(tree.machine()).status == "failed"


# -- ports


def test_a_port_and_who_has_it(tree: Tree) -> None:
    tree.write("proc/net/tcp", TCP.format(listening=3240))
    found = ports.check_usbip_port_here(tree.machine(), 3240, served=False)
    assert found.status == "failed"
    assert "a program of user root (which one: sudo usb-remote doctor)" in found.text
    assert str(found.mend).startswith("sudo ss ")
    assert ports.check_usbip_port_here(tree.machine(), 3241, served=False).status == "ok"
    assert ports.check_usbip_port_here(tree.machine(), 5055, served=False).status == "ok"

    tree.runs(12, "usbipd", inode="4711", unit="usbipd.service")
    found = ports.check_usbip_port_here(tree.machine(), 3240, served=False)
    assert found.text == "TCP port 3240 is taken by usbipd (pid 12, usbipd.service)"
    assert found.mend == "sudo systemctl disable --now usbipd.service"
    assert found.fix is not None
    assert found.fix.commands == (("systemctl", "disable", "--now", "usbipd.service"),)

    tree.runs(13, "nginx", inode="4711")
    found = ports.check_usbip_port_here(tree.machine(), 3240, served=False)
    assert found.fix is None
    assert "sudo kill 13" in str(found.mend)


@pytest.mark.parametrize(
    "cgroup",
    [
        "0::/system.slice/ssh.service",
        "0::/user.slice/user-1000.slice/user@1000.service/app.slice/usbipd.service",
        "0::/user.slice/user-1000.slice/session-3.scope",
    ],
)
def test_a_program_that_somebody_started_by_hand_is_not_its_login(tree: Tree, cgroup: str) -> None:
    tree.write("proc/net/tcp", TCP.format(listening=3240))
    tree.runs(12, "usbipd", inode="4711")
    tree.write("proc/12/cgroup", cgroup + "\n")
    found = ports.check_usbip_port_here(tree.machine(), 3240, served=False)
    assert found.mend == "sudo kill 12"


def test_what_strangers_call_themselves_is_shown_harmlessly(tree: Tree) -> None:
    tree.write("proc/net/tcp", TCP.format(listening=3240))
    tree.runs(12, "evil\x1b[31m\n\u202e", inode="4711")
    found = ports.check_usbip_port_here(tree.machine(), 3240, served=False)
    assert "taken by evil [31m (pid 12)" in found.text
    info = InfoNow(id="a", name="b", version="3\x1b]0;x\x07")
    assert servers.check_version("b", Answer(info), "3.0.0").text.isprintable()


def test_udp_ports_and_our_own_processes(tree: Tree) -> None:
    tree.write("proc/net/udp6", UDP)
    tree.runs(14, "python3", "/usr/bin/python3", "/usr/bin/usb-remote", "server", inode="815")
    taken = ports.holders(tree.machine(), "udp", 5353)
    assert taken.users == (108,)
    assert str(taken) == "usb-remote (pid 14)"


# -- the server here


def here(version: str = "3.0.0") -> Answer:
    return Answer(InfoNow(id="a" * 32, name="bench", version=version))


async def check_server(tree: Tree, there: Answer, asked: bool = True) -> Finding:
    return await local.check_server(tree.machine(), ServerConfig(), there, "3.0.1", asked=asked)


async def test_a_server_that_does_not_run(tree: Tree) -> None:
    found = await check_server(tree, Answer())
    assert (found.status, found.mend) == ("failed", "sudo usb-remote server")
    assert (await check_server(tree, Answer(), asked=False)).status == "warning"
    tree.write(f"etc/systemd/system/{local.UNIT}")
    found = await check_server(tree, Answer())
    assert found.mend == "sudo systemctl enable --now usb-remote-server"
    for state in ("failed", "activating"):
        tree.answers["systemctl"] = 3, f"{state}\n"
        found = await check_server(tree, Answer(), asked=False)
        assert found.status == "failed"
        assert found.mend == "journalctl -u usb-remote-server -n 20 -o cat"
    tree.answers["systemctl"] = 3, "inactive\n"
    assert "enable" in str((await check_server(tree, Answer())).mend)


async def test_a_server_that_runs(tree: Tree) -> None:
    assert (await check_server(tree, here("3.0.1"))).status == "ok"
    tree.write("proc/net/tcp", TCP.format(listening=5055))
    tree.runs(15, "usb-remote", "/usr/local/bin/usb-remote", "server", inode="4711")
    found = await check_server(tree, here("3.0.0"))
    assert (found.status, "3.0.1 is installed" in found.text) == ("warning", True)
    assert found.mend == "sudo kill 15; sudo usb-remote server"
    tree.write(f"etc/systemd/system/{local.UNIT}")
    found = await check_server(tree, here("3.0.0"))
    assert found.mend == "sudo usb-remote install-service server"


async def test_a_port_of_the_server_that_another_program_has(tree: Tree) -> None:
    tree.write("proc/net/tcp", TCP.format(listening=5055))
    tree.runs(15, "nc", inode="4711")
    found = await check_server(tree, Answer(), asked=False)
    assert (found.status, found.text) == ("failed", "TCP port 5055 is taken by nc (pid 15)")


def test_a_server_that_is_not_root(tree: Tree) -> None:
    table = TCP.format(listening=5055)
    tree.write("proc/net/tcp", table.replace(" 0 0 4711", " 54321 0 4711"))
    found = local.check_server_permission(tree.machine(), ServerConfig(), runs=True)
    assert found.status == "failed"
    assert "runs as 54321" in found.text
    tree.runs(16, "python3", "python3", "-m", "usb_remote", "server", "--virtual", inode="4711")
    assert local.check_server_permission(tree.machine(), ServerConfig(), runs=True).status == "ok"
    tree.write("proc/net/tcp", table)
    assert local.check_server_permission(tree.machine(), ServerConfig(), runs=True).status == "ok"
    found = local.check_server_permission(tree.machine(), ServerConfig(), runs=False)
    assert found.status == "skipped"


def test_whether_a_server_is_announced() -> None:
    heard = [Server(id="a" * 32, name="bench")]
    assert local.check_announced(here(), heard, advertise=True).status == "ok"
    assert local.check_announced(here(), [], advertise=True).status == "failed"
    assert local.check_announced(here(), [], advertise=False).status == "skipped"
    assert local.check_announced(Answer(), heard, advertise=True).status == "skipped"


BOTH = (5055, 3240)


async def test_without_a_firewall(tree: Tree) -> None:
    assert (await firewall.check_firewall(tree.machine(), BOTH)).status == "ok"
    tree.answers["nft"] = 1, "Operation not permitted (you must be root)"
    found = await firewall.check_firewall(tree.machine(1000), BOTH)
    assert (found.status, found.text) == (
        "skipped", "the rules of nftables are only shown to root",
    )  # fmt: skip
    tree.answers["nft"] = 0, '{"nftables": [{"metainfo": {"version": "1.0.6"}}]}'
    assert (await firewall.check_firewall(tree.machine(), BOTH)).status == "ok"


async def test_firewalld(tree: Tree) -> None:
    tree.answers["firewall-cmd"] = 0, "running\n"
    assert (await firewall.check_firewall(tree.machine(), BOTH)).status == "ok"


@pytest.mark.parametrize(
    ("rules", "status", "words"),
    [
        ([], "failed", "sudo ufw allow 5055/tcp; sudo ufw allow 3240/tcp"),
        (["-p tcp --dport 5055 -j ACCEPT"], "failed", "sudo ufw allow 3240/tcp"),
        (["-p tcp -m multiport --dports 5055,3240 -j ACCEPT"], "ok", "lets the server's ports in"),
        (["-p tcp -m multiport --dports 22,3000:6000 -j ACCEPT"], "ok", "the server's ports"),
        (["-p tcp -m multiport --dports 22,80 -j ACCEPT"], "failed", "5055"),
        (["-p udp -m multiport --dports 5055,3240 -j ACCEPT"], "failed", "5055"),
        (["-s 192.168.1.0/24 -j ACCEPT"], "ok", "for some networks"),
        (["-i eth0 -j ACCEPT"], "ok", "for some networks"),
        (["-j ACCEPT"], "ok", "the server's ports"),
        (["-p tcp --dport 3240 -j DROP", "-j ACCEPT"], "failed", "3240"),
    ],
)
async def test_ufw(tree: Tree, rules: list[str], status: str, words: str) -> None:
    tree.write("etc/ufw/ufw.conf", "ENABLED=yes\n")
    assert (await firewall.check_firewall(tree.machine(), BOTH)).status == "skipped"
    lines = ["*filter", "### RULES ###", *(f"-A ufw-user-input {rule}" for rule in rules)]
    tree.write("etc/ufw/user.rules", "\n".join([*lines, "COMMIT", ""]))
    found = await firewall.check_firewall(tree.machine(), BOTH)
    assert (found.status, words in f"{found.text} {found.mend}") == (status, True), found


# -- multicast


def probed(name: str, error: int | None = None, *, heard: bool = True) -> Probed:
    failure = OSError(error, "reason") if error else None
    return Probed(name, "10.0.0.1", failure, heard)


def test_multicast_out() -> None:
    assert multicast.check_out([probed("eth0")]).status == "ok"
    assert multicast.check_out([]).status == "warning"
    assert multicast.check_out([probed("eth0"), probed("eth1", errno.EPERM)]).status == "warning"
    found = multicast.check_out([probed("eth0", errno.EPERM)])
    assert found.status == "failed"
    assert "a firewall of this machine drops it" in found.text
    found = multicast.check_out([probed("eth0", errno.ENETUNREACH)])
    assert found.mend == "sudo ip route add 224.0.0.0/4 dev eth0"


@pytest.mark.parametrize(("role", "status"), [(Role.CLIENT, "warning"), (Role.SERVER, "failed")])
def test_multicast_in(role: Role, status: str) -> None:
    assert multicast.check_in([probed("eth0")], role).status == "ok"
    assert multicast.check_in([probed("eth0", heard=False)], role).status == status
    some = [probed("eth0"), probed("eth1", heard=False)]
    assert multicast.check_in(some, role).status == "warning"
    assert multicast.check_in([probed("eth0", errno.EPERM)], role).status == "skipped"


def test_interfaces_without_a_link_are_left_out(tree: Tree) -> None:
    tree.write("sys/class/net/eth0/carrier", "1\n")
    tree.write("sys/class/net/docker0/carrier", "0\n")
    found = multicast.linked(tree.machine(), map(probed, ("eth0:1", "docker0", "gone")))
    assert [p.interface for p in found] == ["eth0:1"]


# -- the way to a server


SERVER = Server(name="bench", addresses=("10.0.0.7",))


@pytest.mark.parametrize(
    ("way", "pings", "words", "mend"),
    [
        (Way.REFUSED, True, "is refused", "on bench: sudo systemctl start"),
        (Way.DROPPED, True, "a firewall swallows this port", "on bench: sudo ufw allow 5055"),
        (Way.DROPPED, False, "nor does the machine answer ping", "ping 10.0.0.7"),
        (Way.REJECTED, True, "is rejected by a firewall", "on bench: sudo ufw allow 5055"),
        (Way.REJECTED, False, "nor does the machine answer ping", "ping 10.0.0.7"),
        (Way.UNROUTED, False, "there is no route", "ip route"),
        (Way.NAMELESS, False, "no address is known of", "getent hosts"),
    ],
)
def test_a_control_port_that_is_closed(way: Way, pings: bool, words: str, mend: str) -> None:
    reach = Reach(way, "10.0.0.7", "why")
    found = servers.check_control_port(SERVER, reach, Answer(), pings=pings, heard=False)
    assert found.status == "failed"
    assert words in found.text
    assert str(found.mend).startswith(mend)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (errors.InvalidReply("it says HTTP"), "is another program's: it says HTTP"),
        (errors.Unreachable("bench did not answer within 1 s"), "is open, but nobody answers"),
        (errors.Unreachable("bench closed the connection"), "not in its server.allow_from"),
    ],
)
def test_a_control_port_that_is_open_and_of_no_use(
    error: errors.UsbRemoteError, words: str
) -> None:
    reach = Reach(Way.OPEN, "10.0.0.7")
    answer = Answer(error=error)
    found = servers.check_control_port(SERVER, reach, answer, pings=True, heard=True)
    assert (found.status, words in found.text) == ("failed", True)


@pytest.mark.parametrize(("runs", "mend"), [(True, "sudo ufw allow"), (False, "sudo systemctl st")])
def test_a_usbip_port_that_is_refused_is_mended_as_the_control_port(runs: bool, mend: str) -> None:
    reach = Reach(Way.REFUSED, "10.0.0.7")
    found = servers.check_usbip_port("bench", reach, 3240, pings=True, runs=runs)
    assert str(found.mend).startswith(f"on bench: {mend}")


def test_a_port_that_is_refused_by_a_server_that_is_heard_is_a_firewall() -> None:
    reach = Reach(Way.REFUSED, "10.0.0.7")
    found = servers.check_control_port(SERVER, reach, Answer(), pings=True, heard=True)
    assert "ufw allow 5055" in str(found.mend)


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (here("3.0.4"), "ok"),
        (here("3.1.0"), "warning"),
        (Answer(InfoNow(id="a", name="b", version="3.0.0", protocol=2)), "failed"),
        (Answer(error=errors.Refused("2.x")), "warning"),
        (Answer(error=errors.InvalidRequest("v: this server speaks 2")), "failed"),
        (Answer(error=errors.Unreachable("mute")), "skipped"),
        (Answer(), "skipped"),
    ],
)
def test_versions(answer: Answer, status: str) -> None:
    assert servers.check_version("bench", answer, "3.0.0").status == status


@pytest.mark.parametrize(
    ("there", "mend"),
    [
        (here("2.99.0"), f"on bench: {servers.PIPX.format('upgrade')}"),
        (here("3.10.0"), machine.upgrade()),
        (Answer(InfoNow(id="a", name="b", version="4.0", protocol=2)), machine.upgrade()),
        (Answer(error=errors.Refused("2.x")), f"on bench: {servers.PIPX.format('install')}"),
    ],
)
def test_the_older_one_is_upgraded(there: Answer, mend: str) -> None:
    assert servers.check_version("bench", there, "3.9.0").mend == mend


@pytest.mark.parametrize(
    ("prefix", "command"),
    [
        ("/opt/pipx/venvs/usb-remote",
         "sudo PIPX_HOME=/opt/pipx PIPX_BIN_DIR=/usr/local/bin pipx upgrade usb-remote"),
        ("~/.local/share/pipx/venvs/usb-remote", "pipx upgrade usb-remote"),
        ("~/.local/share/uv/tools/usb-remote", "uv tool upgrade usb-remote"),
        ("/opt/usb-remote", "sudo /opt/usb-remote/bin/pip install --upgrade usb-remote"),
    ],
)  # fmt: skip
def test_it_is_upgraded_as_it_was_installed(prefix: str, command: str) -> None:
    assert machine.upgrade(Path(prefix).expanduser()) == command


@pytest.mark.parametrize(
    ("ahead", "status", "words"),
    [(0.2, "ok", "agree"), (-30.0, "warning", "30 s behind"), (7199.9, "warning", "2 hours ahead"),
     (None, "skipped", "")],
)  # fmt: skip
def test_clocks(ahead: float | None, status: str, words: str) -> None:
    found = servers.check_clock(ahead, asked=True)
    assert (found.status, words in found.text) == (status, True)


async def test_a_real_server_answers_all_that_is_asked(bench: Running) -> None:
    control = await path.reach([HOST], bench.control.port)
    assert control == Reach(Way.OPEN, HOST)
    answer = await path.ask_info(bench.server, HOST, 20)
    assert answer.info is not None
    assert answer.seconds_ahead is not None
    assert abs(answer.seconds_ahead) < 1
    assert await path.reach([HOST], bench.exporter.port, path.ask_devices) == control
    mistaken = await path.reach([HOST], bench.control.port, path.ask_devices)
    assert mistaken.reason
    refused = await path.reach([HOST], 1)
    assert refused.way is Way.REFUSED


# -- attachments


async def test_attachments_that_their_server_knows_nothing_of(bench: Running) -> None:
    def server_at(_address: str) -> Server:
        return bench.server

    async def check(*attachments: Attachment) -> list[Finding]:
        return await local.check_attachments(list(attachments), server_at, "me")

    attached = Attachment(vhci_port=3, address=HOST, bus_id=BusId("1-1"))
    assert [f.status for f in await check()] == ["ok"]
    [stale] = await check(attached)
    assert stale.status == "failed"
    assert stale.fix is not None
    assert stale.fix.commands == (("usbip", "detach", "--port", "3"),)
    [unseen] = await check(attached.model_copy(update={"bus_id": None}))
    assert unseen.status == "skipped"


# -- all together


async def nobody() -> list[Probed]:
    return []


async def browse_badly() -> object:
    raise RuntimeError("a bug")
    yield


async def broken() -> list[Probed]:
    raise RuntimeError("a bug")


async def browse_nobody() -> object:
    raise OSError("no network interface to ask on")
    yield


def doctor(tree: Tree, config: Config | errors.ConfigError = Config()) -> Doctor:
    return Doctor(tree.machine(), config, browse_nobody, nobody, "3.0.0")  # type: ignore[arg-type]


async def test_roles_are_what_the_machine_seems_to_be(tree: Tree, bench: Running) -> None:
    section = ServerConfig(listen=[HOST], port=bench.control.port)
    nothing = Config(server=ServerConfig(listen=[HOST], port=1))
    assert (await doctor(tree, nothing).examine()).roles == (Role.CLIENT,)
    assert (await doctor(tree, nothing).examine(Role.SERVER)).roles == (Role.SERVER,)
    report = await doctor(tree, Config(server=section)).examine()
    assert (report.roles, report.why) == ((Role.CLIENT, Role.SERVER), "a server runs here")
    tree.write("sys/module/usbip_host/refcnt")
    assert len((await doctor(tree, nothing).examine()).roles) == 2


async def test_every_check_is_done_and_a_broken_one_stops_nothing(tree: Tree) -> None:
    config = Config(server=ServerConfig(listen=[HOST], port=1), servers=[f"{HOST}:1"])
    tree.write("sys/module/usbip_host/refcnt")
    report = await doctor(tree, config).examine()
    assert {finding.check for finding in report.findings} == set(Check)
    examined = Doctor(tree.machine(), config, browse_badly, broken, "3")  # type: ignore[arg-type]
    bugs = [f for f in (await examined.examine()).findings if "itself failed" in f.text]
    assert {f.check for f in bugs} == {Check.ANNOUNCED, Check.MULTICAST_OUT, Check.SERVERS}
    assert {f.status for f in bugs} == {Status.WARNING}


async def test_a_broken_configuration_is_a_finding(tree: Tree) -> None:
    report = await doctor(tree, errors.ConfigError("FILE:1: timout: unknown key")).examine()
    assert report.findings[0].text == "FILE:1: timout: unknown key"
    assert not report.is_well


def test_a_fix_is_offered_once() -> None:
    fix = Fix(what="load it", commands=(("modprobe", "usbip_host"),))
    finding = Finding(check=Check.SERVER, status=Status.WARNING, text="", fix=fix)
    report = Report(roles=(Role.CLIENT,), why="", findings=(finding, finding))
    assert (report.fixes, report.is_well) == ([fix], True)
