"""Something is missing or in the way: what usb-remote says, and that it leaves nothing broken."""

import re
from pathlib import Path

from tests.kernel.lab import until
from tests.kernel.product import (
    BAN,
    attach,
    clock,
    devices,
    plug_disk,
    ports_in_use,
    refused,
    run,
    serve,
    wait_until_untouched,
    watch_port,
)
from tests.kernel.vm import VM
from tests.patience import patience

DROP = "add rule inet lab input tcp dport 3240 drop"
REDIRECT = "add rule inet lab nat tcp dport 3240 redirect to :9999"
CONTAINER = """exec unshare --mount sh -c 'mkfs.ext4 -q /dev/sdc && mount /dev/sdc /mnt &&
echo mounted && exec sleep 999'"""
ROUTED = "carries the default route of this server"
USES = (
    ("2-1", "mkswap -q /dev/sda; swapon /dev/sda", "sda is used for swap", "swapoff /dev/sda"),
    (
        "2-1",
        "modprobe loop; losetup /dev/loop1 /dev/sda",
        "sda is part of loop1",
        "losetup --detach /dev/loop1",
    ),
    ("1-3", "ip route add default via 10.56.0.2", f"usb0 {ROUTED}", "ip route delete default"),
)
RULES = """add table inet lab
add chain inet lab {name} {{ type {kind} hook {hook} priority 0; }}
{rule}
"""
MUTE = """import socket
listener = socket.create_server(("", 9999), family=socket.AF_INET6, dualstack_ipv6=True)
print("mute", flush=True)
peers = [listener.accept() for _ in range(9)]"""
ECHO = "exec 3<>/dev/ttyACM0; stty -F /dev/ttyACM0 raw -echo; echo hello >&3; head -n 1 <&3"


def test_a_client_without_module_or_tool_asks_nobody_for_anything(
    pair: tuple[VM, VM], disk: Path
) -> None:
    server, client = pair
    plug_disk(server, disk)
    program = serve(server)
    told = len(program.errors)
    client.sh(BAN.format("vhci_hcd")).ok()
    assert "hint: type: sudo modprobe vhci_hcd" in refused(client, "attach 2-1", 5)
    client.sh("rm /etc/modprobe.d/ban.conf; modprobe vhci_hcd").ok()
    client.sh("mv /usr/sbin/usbip /usr/sbin/usbip.away").ok()
    complaint = refused(client, "attach 2-1", 5)
    assert "usbip command is missing" in complaint
    assert "apt install usbip" in complaint
    assert len(program.errors) == told
    wait_until_untouched(server, "/dev/sda")


def test_a_user_without_root_sees_everything_and_is_told_what_attaching_needs(
    pair: tuple[VM, VM], disk: Path
) -> None:
    server, client = pair
    plug_disk(server, disk)
    serve(server)
    client.sh("modprobe vhci_hcd").ok()
    assert "SER-0001" in run(client, "list", user="alice").ok().out
    seen = client.start("exec usb-remote watch", user="alice")
    seen.wait_for("SER-0001")
    complaint = refused(client, "attach 2-1", 5, user="alice")
    assert re.search("needs root.*\nhint: .*(sudo|root)", complaint), complaint
    assert devices(server)["2-1"]["state"] == "available"
    wait_until_untouched(server, "/dev/sda")


def test_a_server_without_its_module_lists_and_says_what_to_type(
    pair: tuple[VM, VM], disk: Path
) -> None:
    server, client = pair
    plug_disk(server, disk)
    server.sh(BAN.format("usbip_host")).ok()
    program = serve(server)
    assert "sudo modprobe usbip_host" in program.errors
    complaint = refused(client, "attach SER-0001", 5)
    assert "usbip_host" in complaint
    assert re.search(r"hint: .*sudo modprobe usbip_host", complaint), complaint
    assert devices(server)["2-1"]["state"] == "available"
    wait_until_untouched(server, "/dev/sda")
    server.sh("rm /etc/modprobe.d/ban.conf; modprobe usbip_host").ok()
    attach(client, "SER-0001")


def test_a_server_without_root_lists_and_its_programs_are_real_devices_elsewhere(
    pair: tuple[VM, VM], disk: Path
) -> None:
    server, client = pair
    plug_disk(server, disk)
    server.sh("modprobe usbip_host").ok()
    program = serve(server, user="alice")
    assert "no permission" in program.errors
    assert "sudo" in program.errors
    assert devices(server)["2-1"]["state"] == "available"
    complaint = refused(client, "attach SER-0001", 5)
    assert "root" in complaint
    wait_until_untouched(server, "/dev/sda")
    assert program.stop() == 0

    program = serve(server, "--virtual", user="alice")
    kinds = {device["description"]: bus_id for bus_id, device in devices(server).items()}
    serial = next(bus_id for text, bus_id in kinds.items() if "serial" in text.lower())
    drive = next(bus_id for text, bus_id in kinds.items() if "disk" in text.lower())
    assert attach(client, serial)[1][0] == "/dev/ttyACM0"
    assert client.sh(f"bash -c '{ECHO}'").ok().out == "hello\n"
    assert "/dev/sda" in attach(client, drive)[1]
    assert "usb-remote" in client.sh("head -c 512 /dev/sda | tr -d '\\0'").ok().out
    assert program.stop() == 0
    until(lambda: ports_in_use(client) == [])


def test_a_server_whose_port_is_taken_names_usbipd_and_the_command_that_frees_it(vm: VM) -> None:
    vm.sh("usbipd -D").ok()
    until(lambda: ":3240" in vm.sh("ss -Hltn").out)
    complaint = refused(vm, "server", 5)
    pattern = r"error: .*3240.* by usbipd \(pid (\d+)\)\nhint: type: (sudo kill \1)\n"
    found = re.search(pattern, complaint)
    assert found, complaint
    vm.sh(found[2])
    until(lambda: ":3240" not in vm.sh("ss -Hltn").out)


def test_a_usbip_port_that_drops_or_is_mute_ends_in_time_and_frees_the_device(
    pair: tuple[VM, VM], disk: Path
) -> None:
    server, client = pair
    plug_disk(server, disk)
    serve(server)
    for name, kind, hook, rule in (
        ("input", "filter", "input", DROP),
        ("nat", "nat", "prerouting", REDIRECT),
    ):
        mute = server.start(f"exec python3 -c '{MUTE}'")
        mute.wait_for("mute")
        rules = RULES.format(name=name, kind=kind, hook=hook, rule=rule)
        server.sh("nft -f -", stdin=rules).ok()
        before = clock(client)
        complaint = refused(client, "attach SER-0001", 6)
        assert clock(client) - before < patience(40)
        assert "3240" in complaint
        assert "hint: " in complaint
        assert devices(server)["2-1"]["state"] == "available"
        assert client.sh("pgrep -x usbip").out == ""
        assert ports_in_use(client) == []
        wait_until_untouched(server, "/dev/sda")
        server.sh("nft delete table inet lab").ok()
        mute.stop()
    attach(client, "SER-0001")


def test_disks_that_the_server_uses_are_listed_with_the_reason_and_refused(
    pair: tuple[VM, VM], disk: Path, tmp_path: Path
) -> None:
    server, client = pair
    plug_disk(server, disk)
    below = tmp_path / "below.img"
    below.write_bytes(bytes(1 << 20))
    hidden = tmp_path / "hidden.img"
    hidden.write_bytes(bytes(1 << 20))
    serve(server)
    plug_disk(server, below, "below", port="2", serial="SER-0002")
    until(lambda: server.sh("test -b /dev/sda && test -b /dev/sdb").rc == 0)
    plug_disk(server, hidden, "hidden", port="3", serial="SER-0003")
    until(lambda: server.sh("test -b /dev/sdc").rc == 0)
    server.sh(
        "set -e; mkfs.ext4 -q /dev/disk/by-id/*SER-0001-0:0; mkdir /tmp/a /tmp/b\n"
        "mount /dev/disk/by-id/*SER-0001-0:0 /tmp/a; echo kept >/tmp/a/file\n"
        'echo "0 2048 linear $(readlink -f /dev/disk/by-id/*SER-0002-0:0) 0" | dmsetup create lin\n'
        "mkfs.ext4 -q /dev/mapper/lin; mount /dev/mapper/lin /tmp/b; echo kept >/tmp/b/file"
    ).ok()
    container = server.start(CONTAINER)
    container.wait_for("mounted")
    client.sh("modprobe vhci_hcd").ok()
    assert "-1:" not in client.sh("usbip list -r 10.55.0.1").out
    for bus_id, reason in (("2-1", "is mounted at /tmp/a"), ("2-2", "is part of dm-0")):
        complaint = refused(client, f"attach {bus_id}", 4)
        assert "is protected" in complaint
        assert reason in complaint
        assert client.sh(f"usbip attach -r 10.55.0.1 -b {bus_id}").rc == 1
    complaint = refused(client, "attach 2-3", 4)
    assert "2-3 is protected: sdc is in use by something on this server" in complaint
    assert client.sh("usbip attach -r 10.55.0.1 -b 2-3").rc == 1
    assert server.sh("echo 3 >/proc/sys/vm/drop_caches; cat /tmp/a/file /tmp/b/file").out == (
        "kept\nkept\n"
    )
    wait_until_untouched(server, "/dev/sda", "/dev/sdb", "/dev/sdc")
    container.stop()
    until(lambda: client.sh("usbip attach -r 10.55.0.1 -b 2-3").rc == 0)


def test_a_device_is_listed_as_protected_as_soon_as_it_is_used_and_no_longer(
    vm: VM, disk: Path
) -> None:
    plug_disk(vm, disk)
    serve(vm)
    until(lambda: vm.sh("test -b /dev/sda").rc == 0)
    states = watch_port(vm)
    states.until_state("2-1", "available")
    vm.sh("mkfs.ext4 -q /dev/sda; mkdir /tmp/a; mount /dev/sda /tmp/a").ok()
    device = states.until_state("2-1", "protected", patience(10))
    assert device["reason"] == "sda is mounted at /tmp/a"
    assert re.search("SER-0001 +protected: sda is mounted at /tmp/a", run(vm, "list").ok().out)
    vm.sh("umount /tmp/a").ok()
    states.until_state("2-1", "available", patience(10))
    vm.qmp.execute("netdev_add", type="hubport", id="adapter", hubid=9)
    vm.usb_add("usb-net", "adapter", "3", netdev="adapter")
    states.until_state("1-3", "available")
    until(lambda: vm.sh("ip link set usb0 up && ip address add 10.56.0.1/24 dev usb0").rc == 0)
    for bus_id, use, reason, end in USES:
        vm.sh(use).ok()
        assert states.until_state(bus_id, "protected", patience(10))["reason"] == reason
        vm.sh(end).ok()
        states.until_state(bus_id, "available", patience(10))
