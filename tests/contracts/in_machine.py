"""The contracts on a real kernel: python3 -m tests.contracts.in_machine NAME, as root.

What belongs here: what runs inside of a machine of tests/kernel, where there is no pytest.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from tests.contracts import exporting, importing, nodes
from tests.serving import QUICK, running_server
from usb_remote.client import Importer
from usb_remote.lease import ExportHost
from usb_remote.udev.nodes import list_parts
from usb_remote.usbip_host import SYSFS, Host, write_attribute
from usb_remote.values import BusId
from usb_remote.vhci import Vhci
from usb_remote.virtual import KINDS, VirtualDevices

T = TypeVar("T")
GADGET = Path("/sys/kernel/config/usb_gadget/board")
UDC = Path("/sys/class/udc")
DEVICES = Path("/sys/bus/usb/devices")
PATIENCE = float(os.environ["CONTRACT_SECONDS"])


class KernelBench:
    """A serial gadget of dummy_hcd, which can be plugged and pulled from within.

    Once it has been bound, it stays plugged in: pulled just after a session, or during one, it
    crashed Linux 6.1 now and then (usb_disconnect, device_del, osq_lock).
    """

    def __init__(self) -> None:
        self.host: ExportHost = Host()
        self.patience = PATIENCE
        self.plug()
        self.bus_id = BusId(wait(lambda: find("BOARD")).name)

    def plug(self) -> None:
        (GADGET / "UDC").write_text(next(UDC.iterdir()).name)
        wait(lambda: (found := find("BOARD")) and (found / "driver").exists())

    def pull(self) -> None:
        (GADGET / "UDC").write_text("\n")
        wait(lambda: find("BOARD") is None)

    def has_own_driver(self) -> bool:
        driver = DEVICES / self.bus_id / "driver"
        return driver.exists() and driver.readlink().name == "usb"

    def write(self, attribute: str, text: str) -> None:
        write_attribute(SYSFS / "bus/usb" / attribute, text)

    def list_parts(self) -> nodes.Parts:
        return list_parts(self.bus_id)


async def check_exporting() -> None:
    """Each check in its turn, on a device that nothing is bound to; says which have passed."""
    make_gadget()
    bench = KernelBench()
    for look in nodes.CHECKS:
        look(bench)
        print("passed", look.__name__, flush=True)
    bench.pull()
    bench.plug()
    for check in (*exporting.CHECKS, *exporting.KERNEL_CHECKS):
        await check(bench)
        await bench.host.unbind(bench.bus_id)
        assert bench.has_own_driver()
        print("passed", check.__name__, flush=True)


class ImportBench:
    """Debian's vhci and usbip, and a server of this process."""

    def __init__(self, devices: VirtualDevices, usbip_port: int) -> None:
        self.importer: Importer = Vhci()
        self.devices, self.usbip_port, self.patience = devices, usbip_port, PATIENCE


async def check_importing() -> None:
    """Each check on a server of its own; says which have passed."""
    await Vhci().prepare()
    for check in importing.CHECKS:
        async with running_server(*KINDS, times=QUICK) as server:
            bench = ImportBench(server.devices, server.exporter.port)
            await check(bench)
            for attachment in bench.importer.list_attachments():
                await importing.enumerated(bench, attachment)
                await importing.detach(bench, attachment.vhci_port)
        print("passed", check.__name__, flush=True)


def find(serial: str) -> Path | None:
    for file in DEVICES.glob("*-*/serial"):
        with contextlib.suppress(OSError):  # it is just going
            if file.read_text().strip() == serial:
                return file.parent
    return None


def wait(condition: Callable[[], T | None]) -> T:
    deadline = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return found


def make_gadget() -> None:
    run("modprobe", "-a", "usbip_host", "dummy_hcd", "libcomposite")
    if not GADGET.parent.is_dir():
        run("mount", "-t", "configfs", "none", "/sys/kernel/config")
    for folder in ("strings/0x409", "configs/c.1", "functions/acm.0"):
        (GADGET / folder).mkdir(parents=True)
    (GADGET / "configs/c.1/acm.0").symlink_to(GADGET / "functions/acm.0")
    for name, value in (("idVendor", "0x1d6b"), ("idProduct", "0x0104")):
        (GADGET / name).write_text(value)
    (GADGET / "strings/0x409/serialnumber").write_text("BOARD")


def run(*command: str) -> None:
    subprocess.run(command, check=True)


if __name__ == "__main__":
    checks = {"exporting": check_exporting, "importing": check_importing}
    asyncio.run(checks[sys.argv[1]]())
