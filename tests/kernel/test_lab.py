"""The lab does what the other tests here rely on; nothing of usb-remote is used."""

import hashlib
import signal
from pathlib import Path

import pytest
from tests.kernel.guest import GuestError
from tests.kernel.lab import until
from tests.kernel.vm import VM
from tests.patience import patience

pytestmark = pytest.mark.soak  # of the lab, not of usb-remote: `make soak` runs them

LISTEN = """
import socket
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.bind(("", 7777))
member = socket.inet_aton("239.77.0.1") + socket.inet_aton("0.0.0.0")
sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, member)
print("listening", flush=True)
while True:
    data, sender = sock.recvfrom(100)
    print(data.decode(), "from", sender[0], flush=True)
"""
SEND = """
import socket
socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"hello", ("239.77.0.1", 7777))
"""
FOREVER = "while :; do sleep 1; done"
PING = "ping -c 1 -W 1 10.55.0.1"


def attach(server: VM, client: VM, disk: Path) -> None:
    server.usb_add("usb-storage", "stick", "1", image=disk, serial="SER-0001")
    server.sh("modprobe usbip_host && usbipd -D").ok()
    client.sh("modprobe vhci_hcd").ok()
    until(lambda: server.sh("test -b /dev/sda").rc == 0)
    server.sh("usbip bind -b 2-1").ok()
    client.sh("usbip attach -r 10.55.0.1 -b 2-1").ok()
    until(lambda: client.sh("test -b /dev/sda").rc == 0)


def test_a_device_travels_and_is_pulled_out(pair: tuple[VM, VM], disk: Path) -> None:
    server, client = pair
    attach(server, client, disk)
    content = client.sh("sha256sum /dev/sda").ok().out.split()[0]
    assert content == hashlib.sha256(disk.read_bytes()).hexdigest()
    server.usb_del("stick")
    until(lambda: client.sh("test -b /dev/sda").rc != 0)


def test_a_cable_is_cut_and_mended(pair: tuple[VM, VM]) -> None:
    server, client = pair
    client.sh(PING).ok()
    client.sh("ping -6 -c 1 -W 1 fe80::5054:ff:fe00:1%eth0").ok()
    server.set_link(False)
    assert client.sh(PING).rc == 1
    server.set_link(True)
    until(lambda: client.sh(PING).rc == 0)


def test_a_reboot_keeps_devices_and_name_but_not_files(pair: tuple[VM, VM], disk: Path) -> None:
    server, client = pair
    identity = "hostname; cat /etc/machine-id"
    server.usb_add("usb-storage", "stick", "1", image=disk)
    server.put("/etc/lost", "soon")
    before = server.sh(identity).ok().out
    boot = server.sh("cat /proc/sys/kernel/random/boot_id").ok().out
    server.reboot()
    assert server.sh(identity).ok().out == before != client.sh(identity).ok().out
    assert server.sh("cat /proc/sys/kernel/random/boot_id").ok().out != boot
    assert server.sh("test -e /etc/lost").rc == 1
    client.sh(PING).ok()
    until(lambda: server.sh("test -b /dev/sda").rc == 0)
    server.sh("test -d /opt/usb-remote/usb_remote").ok()


def test_lines_arrive_while_a_program_runs(vm: VM) -> None:
    program = vm.start(f"trap 'echo bye; exit 3' INT; echo one; echo two >&2; {FOREVER}")
    until(lambda: (program.output, program.errors) == ("one\n", "two\n"))
    assert program.rc is None
    assert program.stop(signal.SIGINT) == 3
    assert list(program.lines()) == ["one", "bye"]
    assert program.errors == "two\n"
    with pytest.raises(GuestError, match="ended"):
        program.wait_for("three")


def test_a_command_has_a_user_an_input_and_a_limit(vm: VM) -> None:
    assert vm.sh("id -un; pwd; cat", stdin="text", user="alice").out == "alice\n/home/alice\ntext"
    slow = vm.sh("echo first; sleep 100", timeout=patience(1))
    assert (slow.rc, slow.out) == ("timeout", "first\n")
    with pytest.raises(GuestError, match="exit status 7"):
        vm.sh("exit 7").ok()


def test_waiting_ends_when_the_machine_does(vm: VM) -> None:
    program = vm.start("sleep 100")
    vm.power_off()
    assert program.wait() == "agent-error"
    with pytest.raises(GuestError, match="gone"):
        vm.sh("true")


def test_three_machines_hear_each_other_by_multicast(trio: tuple[VM, VM, VM]) -> None:
    server, *others = trio
    listeners = [machine.start(f"python3 -c '{LISTEN}'") for machine in others]
    for listener in listeners:
        listener.wait_for("listening")
    server.sh(f"python3 -c '{SEND}'").ok()
    for listener in listeners:
        listener.wait_for("hello from 10.55.0.1")


def test_usbip_is_not_loaded_and_the_old_release_runs(vm: VM) -> None:
    assert "usbip" not in vm.sh("lsmod").ok().out
    assert "vhci" not in vm.sh("lsmod").ok().out
    assert vm.sh("usb-remote-2x --version").ok().out == "usb-remote 2.3.2\n"


def test_a_program_that_is_a_fork_is_like_any_other(vm: VM) -> None:
    tell = 'p=$(pgrep -of "usb_remote server"); ps -o user=,args= $p; readlink /proc/$p/cwd'
    program = vm.start("exec usb-remote server --virtual --name 'two words'", user="alice")
    program.wait_for("as two words")
    who, home = vm.sh(tell).ok().out.splitlines()
    assert who.split(maxsplit=1) == [
        "alice", "python3 -m usb_remote server --virtual --name two words",
    ]  # fmt: skip
    assert home == "/home/alice"
    assert program.stop(signal.SIGKILL) == -signal.SIGKILL
    refused = vm.sh("usb-remote config show", env={"USB_REMOTE_CONFIG": "/nowhere"})
    assert (refused.rc, refused.out) == (2, "")
    assert "/nowhere" in refused.err
