"""Kernel modules, the usbip command, vhci ports, and who may use them.

Rule of this file: it says whether a thing is there, can be had at once, or has to be installed.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping

from usb_remote import services
from usb_remote.doctor.machine import NO_PROGRAM, Machine, kernel_package, tool_package
from usb_remote.doctor.report import Check, Finding, Fix, failed, ok, skipped, warning

AT_BOOT = f"/{services.LOADED_AT_BOOT}"
AGENT_SOCKET = "run/usb-remote/agent.sock"
IN_CONTAINER = (".dockerenv", "run/.containerenv", "run/systemd/container")
"""Files that docker, podman and systemd-nspawn leave inside."""
FEW_PORTS = 2
"""So few free vhci ports are worth a warning."""
JOIN = "sudo usermod --append --groups usb-remote $USER  # then log in anew"
PATIENCE = 2.0
"""Seconds that a program may take to answer."""


# -- modules


async def check_module(machine: Machine, check: Check, module: str) -> Finding:
    """Built in, loaded, loadable, forbidden, or missing, and in which package it is then."""
    folder = f"lib/modules/{machine.release}"
    if f"/{module.replace('_', '-')}.ko" in machine.read(f"{folder}/modules.builtin"):
        return ok(check, f"{module} is built into the kernel")
    if machine.exists(f"sys/module/{module}"):
        return ok(check, f"{module} is loaded")
    if any(machine.exists(sign) for sign in IN_CONTAINER):
        text = f"{module} is not loaded, and this is a container, which cannot do that"
        return failed(check, text, f"on the host: sudo modprobe {module}")
    if not machine.exists(folder):
        text = f"the modules of the running kernel {machine.release} are not installed (upgraded?)"
        return failed(check, text, "sudo reboot")
    status, text = await machine.ask(["modprobe", "--show-depends", module], PATIENCE)
    if status == NO_PROGRAM:
        return failed(check, "modprobe is missing", "install the package kmod")
    if status != 0:
        text = f"{module} is missing: kernel {machine.release} comes without it"
        return failed(check, text, kernel_package(machine, module))
    if forbidden := re.search(r"^install (.*)$", text, re.MULTILINE):
        return failed(check, *_forbidden(machine, module, forbidden[1].strip()))
    mend = f"sudo modprobe {module}"
    return warning(check, f"{module} is not loaded, but can be", mend, _loading(module))


def _loading(module: str) -> Fix:
    remember = f"grep -qsx {module} {AT_BOOT} || echo {module} >>{AT_BOOT}"
    return Fix(
        what=f"load the module {module}, now and at every start ({AT_BOOT})",
        commands=(("modprobe", module), ("sh", "-c", f"mkdir -p /etc/modules-load.d; {remember}")),
    )


def _forbidden(machine: Machine, module: str, instead: str) -> tuple[str, str]:
    """A line ``install MODULE COMMAND`` (modprobe.d(5)), and which file it is in."""
    pattern = re.compile(rf"^\s*install\s+{module.replace('_', '[_-]')}\s", re.MULTILINE)
    for folder in ("etc", "run", "usr/local/lib", "usr/lib", "lib"):
        for path in sorted((machine.root / folder / "modprobe.d").glob("*.conf")):
            name = path.relative_to(machine.root)
            if pattern.search(machine.read(str(name))):
                text = f"{module} is forbidden by /{name}: it runs {instead} instead"
                return text, f"sudo sed -i '/install {module}/d' /{name}"
    text = f"{module} is forbidden: modprobe runs {instead} instead"
    return text, f"grep -rn 'install {module}' /etc/modprobe.d"


# -- the tool, and permissions


async def check_tool(machine: Machine) -> Finding:
    """Whether `usbip` is there and runs; Ubuntu's is a script that only finds its own kernel's."""
    path = machine.find("usbip")
    if path is None:
        return failed(Check.USBIP_TOOL, "the usbip command is missing", tool_package(machine))
    status, said = await machine.ask([path, "version"], PATIENCE)
    if status != 0:
        why = next(iter(said.strip().splitlines()), f"exit status {status}")
        return failed(Check.USBIP_TOOL, f"{path} does not run: {why}", tool_package(machine))
    return ok(Check.USBIP_TOOL, f"{path} is there and runs")


async def check_permission(machine: Machine) -> Finding:
    """Whether this user can attach: as root, through the agent, or by a sudo that asks nothing."""
    if machine.is_root:
        return ok(Check.PERMISSION, "root may attach")
    if _try_agent(machine) is None:
        return ok(Check.PERMISSION, "the agent attaches for this user")
    status, _ = await machine.ask(["sudo", "-n", "true"], PATIENCE)
    if status == 0:
        return ok(Check.PERMISSION, "sudo lets this user attach without a password")
    install = "" if machine.exists(AGENT_SOCKET) else "sudo usb-remote install-service agent; "
    mend = f"{install}{JOIN}"
    if status == NO_PROGRAM:
        mend = f"as root: {mend.replace('sudo ', '')}"
        return failed(Check.PERMISSION, "attaching needs root, and there is no sudo", mend)
    text = "attaching takes a sudo that asks for a password; the agent asks for none"
    return warning(Check.PERMISSION, text, mend)


def check_agent(machine: Machine) -> Finding:
    """The agent's socket: there, answered, and may this user use it?"""
    path = machine.root / AGENT_SOCKET
    error = _try_agent(machine)
    if error is None:
        return ok(Check.AGENT, f"the agent answers at {path}")
    if isinstance(error, FileNotFoundError):
        return skipped(Check.AGENT, "no agent runs here; it is for those who are not root")
    if isinstance(error, PermissionError):
        text = f"this user may not use the agent ({path})"
        return warning(Check.AGENT, text, JOIN)
    text = f"nobody answers at {path}: {error.strerror}"
    return failed(Check.AGENT, text, "sudo systemctl restart usb-remote-agent")


def _try_agent(machine: Machine) -> OSError | None:
    """Why the agent cannot be used; None if it can."""
    path = machine.root / AGENT_SOCKET
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.setblocking(False)
    try:
        path.stat()
        connection.connect(str(path))
    except BlockingIOError:
        return OSError(0, "its queue is full")
    except OSError as error:
        return error
    finally:
        connection.close()
    return None


# -- vhci ports, and what a server has bound


def check_vhci_ports(free: Mapping[str, tuple[int, int]]) -> Finding:
    """Free vhci ports; ``hs`` are for devices up to USB 2, ``ss`` for faster ones."""
    if not free:
        return skipped(Check.VHCI_PORTS, "not known as long as vhci_hcd is not loaded")
    words = {"hs": "USB 2", "ss": "USB 3"}
    said = ", ".join(f"{n} of {m} for {words.get(hub, hub)}" for hub, (n, m) in free.items())
    mend = "usb-remote ports  # then: sudo usb-remote detach DEVICE"
    if empty := [words.get(hub, hub) for hub, (count, _) in free.items() if count == 0]:
        text = f"no vhci port for {' and '.join(empty)} devices is free ({said})"
        return failed(Check.VHCI_PORTS, text, mend)
    if min(count for count, _ in free.values()) <= FEW_PORTS:
        return warning(Check.VHCI_PORTS, f"few vhci ports are free: {said}", mend)
    return ok(Check.VHCI_PORTS, f"free vhci ports: {said}")


def check_devices(machine: Machine) -> Finding:
    """Devices without a driver, or in an error state, and how many more can be bound."""
    folder = machine.root / "sys/bus/usb/devices"
    found = sorted(path for path in folder.glob("*-*") if ":" not in path.name)
    if stuck := [path.name for path in found if _is_stuck(machine, path.name)]:
        text = f"usbip-host cannot use {', '.join(stuck)}: it is in an error state"
        return failed(Check.SERVER_DEVICES, text, _reset(stuck[0]))
    if bare := [path.name for path in found if not (path / "driver").exists()]:
        text = f"no driver has {', '.join(bare)}: left behind by usbip bind without usbip_host?"
        mend = f"echo {bare[0]} | sudo tee /sys/bus/usb/drivers_probe"
        return warning(Check.SERVER_DEVICES, text, mend)
    taken = len(machine.read("sys/bus/usb/drivers/usbip-host/match_busid").split())
    if taken >= MAX_BOUND:
        text = f"usbip-host has room for {MAX_BOUND} devices, and all are taken"
        return failed(Check.SERVER_DEVICES, text, "usb-remote list  # then detach one")
    return ok(Check.SERVER_DEVICES, f"{len(found)} USB devices and hubs, each with its driver")


MAX_BOUND = 16
"""MAX_BUSID of drivers/usb/usbip/stub.h."""
ERROR = "3"
"""``usbip_status``: SDEV_ST_ERROR of drivers/usb/usbip/usbip_common.h."""


def _is_stuck(machine: Machine, bus_id: str) -> bool:
    return machine.read(f"sys/bus/usb/devices/{bus_id}/usbip_status").strip() == ERROR


def _reset(bus_id: str) -> str:
    return f"echo {bus_id} | sudo tee /sys/bus/usb/drivers/usbip-host/unbind  # or replug it"
