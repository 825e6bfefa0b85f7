"""`usb-remote doctor` names what is wrong with real kernels, and mends what is safe."""

import json
import re
from pathlib import Path
from typing import Any

from tests.kernel.lab import until
from tests.kernel.product import (
    BAN,
    attach,
    plug_disk,
    ports_in_use,
    run,
    serve,
    wait_until_untouched,
)
from tests.kernel.vm import VM

REMOVE = "mv /lib/modules/*/kernel/drivers/usb/usbip/{}.ko /root && depmod"
AT_BOOT = "/etc/modules-load.d/usb-remote.conf"
EXHAUST = """import socket, threading
listener = socket.create_server(("127.0.0.1", 0))
kept = []
for path in {paths!r}:
    for line in open(path).read().splitlines()[1:]:
        hub, port = line.split()[:2]
        if hub == "hs":
            ours = socket.create_connection(listener.getsockname())
            kept += [ours, listener.accept()[0]]
            with open("/sys/devices/platform/vhci_hcd.0/attach", "w") as file:
                file.write(f"{{int(port)}} {{ours.fileno()}} 65538 3")
print("exhausted", flush=True)
threading.Event().wait()"""

AGENT = """import os, socket, threading
os.makedirs("/run/usb-remote", mode=0o755, exist_ok=True)
os.chmod("/run/usb-remote", 0o755)
listener = socket.socket(socket.AF_UNIX)
listener.bind("/run/usb-remote/agent.sock")
listener.listen()
print("listening", flush=True)
threading.Event().wait()"""

Findings = dict[str, dict[str, Any]]


def doctor(machine: VM, words: str = "", *, user: str = "root") -> Findings:
    """What it finds, by the name of the check."""
    done = run(machine, f"doctor {words} --json", user=user)
    assert "Traceback" not in done.err
    report = json.loads(done.out)
    assert done.rc == (5 if report["failed"] else 0), done
    return {finding["check"]: finding for finding in report["findings"]}


def bad(found: Findings) -> dict[str, str]:
    return {c: f["status"] for c, f in found.items() if f["status"] in ("warning", "failed")}


def test_a_healthy_pair_is_well_after_fix_has_loaded_the_module(
    pair: tuple[VM, VM], disk: Path
) -> None:
    server, client = pair
    plug_disk(server, disk)
    serve(server)

    found = doctor(client)
    assert bad(found) == {"client-module": "warning"}
    assert found["client-module"]["mend"] == "sudo modprobe vhci_hcd"

    assert run(client, "doctor --fix").rc == 2  # no terminal, and nobody said yes
    assert not bad(doctor(client, "--fix --yes"))
    assert client.sh(f"cat {AT_BOOT}").ok().out == "vhci_hcd\n"
    said = run(client, "doctor").ok()
    assert "all is well" in said.err
    assert re.search("^ok +client-module +vhci_hcd is loaded$", said.out, re.M)
    assert not bad(doctor(server, "server"))
    assert bad(doctor(client, user="alice")) == {"permission": "warning"}

    attached = client.sh('script -qec "usb-remote attach SER-0001" /dev/null').ok().out
    assert "next: sudo usb-remote detach server/2-1 gives it back" in attached  # on a terminal
    assert not bad(doctor(client))


def test_modules_that_are_missing_or_forbidden(pair: tuple[VM, VM]) -> None:
    server, client = pair
    client.sh(BAN.format("vhci_hcd")).ok()
    found = doctor(client, "client")["client-module"]
    assert found["status"] == "failed"
    assert "forbidden by /etc/modprobe.d/ban.conf" in found["text"]
    client.sh(found["mend"]).ok()
    assert doctor(client, "client")["client-module"]["status"] == "warning"

    for machine, module, role in ((client, "vhci_hcd", "client"), (server, "usbip_host", "server")):
        machine.sh(REMOVE.format(module.replace("_", "-"))).ok()
        found = doctor(machine, role)[f"{role}-module"]
        assert found["status"] == "failed"
        assert f"{module} is missing: kernel 6.1" in found["text"]
        assert "sudo apt install linux-image-$(dpkg --print-architecture)" in found["mend"]
        assert found["fix"] is None
    server.sh("mv /lib/modules/$(uname -r) /root").ok()
    found = doctor(server, "server")["server-module"]
    assert "of the running kernel 6.1" in found["text"]
    assert found["mend"] == "sudo reboot"


def test_a_tool_that_is_missing_or_does_not_run_and_a_user_who_is_not_root(vm: VM) -> None:
    vm.sh("modprobe vhci_hcd").ok()
    found = doctor(vm, "client", user="alice")["permission"]
    assert found["status"] == "warning"
    assert found["mend"].startswith("sudo usb-remote install-service agent; sudo usermod")

    vm.put("/root/agent.py", AGENT)
    vm.start("umask 077; exec python3 /root/agent.py").wait_for("listening")
    assert doctor(vm, "client")["agent"]["status"] == "ok"
    found = doctor(vm, "client", user="alice")["agent"]
    assert found["status"] == "warning"
    assert "sudo usermod --append --groups usb-remote" in found["mend"]

    vm.sh("mv /usr/sbin/usbip /root").ok()
    found = doctor(vm, "client")["usbip-tool"]
    assert (found["status"], found["mend"]) == ("failed", "sudo apt install usbip")
    ubuntu = "#!/bin/sh\necho WARNING: usbip not found for kernel 6.1 >&2; exit 2\n"
    vm.put("/usr/sbin/usbip", ubuntu, 0o755)
    found = doctor(vm, "client")["usbip-tool"]
    assert found["status"] == "failed"
    assert "usbip not found for kernel 6.1" in found["text"]


def test_vhci_ports_that_are_all_in_use(vm: VM) -> None:
    vm.sh("modprobe vhci_hcd").ok()
    assert doctor(vm, "client")["vhci-ports"]["status"] == "ok"
    paths = vm.sh("ls /sys/devices/platform/vhci_hcd.0/status*").ok().out.split()
    vm.put("/root/exhaust.py", EXHAUST.format(paths=paths))
    program = vm.start("exec python3 /root/exhaust.py")
    program.wait_for("exhausted")

    found = doctor(vm, "client")["vhci-ports"]

    assert found["status"] == "failed"
    assert "no vhci port for USB 2 devices is free (0 of " in found["text"]
    program.stop()


def test_a_usbipd_has_the_port_and_fix_ends_it(vm: VM) -> None:
    vm.sh("usbipd -D").ok()
    until(lambda: ":3240" in vm.sh("ss -Hltn").out)
    found = doctor(vm, "server")
    assert {"server-usbip-port": "failed", "server": "failed"}.items() <= bad(found).items()
    assert "TCP port 3240 is taken by usbipd (pid " in found["server-usbip-port"]["text"]
    assert re.fullmatch(r"sudo kill \d+", found["server-usbip-port"]["mend"])

    found = doctor(vm, "server --fix --yes")
    assert bad(found) == {"server": "failed"}
    vm.sh("test -d /sys/module/usbip_host").ok()
    serve(vm)
    assert not bad(doctor(vm, "server"))


def test_a_server_that_is_not_root_or_whose_clock_is_wrong(pair: tuple[VM, VM]) -> None:
    server, client = pair
    server.sh("modprobe usbip_host; date -s '+2 hours'").ok()
    client.sh("modprobe vhci_hcd").ok()
    program = serve(server, user="alice")
    assert bad(doctor(server, "server")) == {"server-permission": "failed"}
    found = doctor(client)
    assert bad(found) == {"clock": "warning"}
    assert "its clock is 2 hours ahead" in found["clock"]["text"]
    program.stop()


def test_what_a_lost_server_left_behind(pair: tuple[VM, VM], disk: Path) -> None:
    server, client = pair
    plug_disk(server, disk)
    serve(server)
    attach(client, "SER-0001")
    server.reboot()
    found = doctor(client)["attachments"]
    assert found["status"] == "warning"
    assert "its server does not answer" in found["text"]
    serve(server)

    found = doctor(client)["attachments"]
    assert found["status"] == "failed"
    assert "/2-1 is attached here" in found["text"]
    assert found["mend"].startswith("sudo usbip detach --port ")

    assert not bad(doctor(client, "--fix --yes"))
    assert ports_in_use(client) == []


def test_a_device_that_usbip_bind_has_left_without_a_driver(vm: VM, disk: Path) -> None:
    plug_disk(vm, disk)
    until(lambda: vm.sh("test -b /dev/sda").rc == 0)
    vm.sh("usbip bind -b 2-1")  # without the module
    found = doctor(vm, "server")["server-devices"]
    assert found["status"] == "warning"
    assert "no driver has 2-1" in found["text"]
    vm.sh(found["mend"]).ok()
    wait_until_untouched(vm, "/dev/sda")
    assert doctor(vm, "server")["server-devices"]["status"] == "ok"
