"""The contracts of the seams, kept by the fakes and by virtual devices.

The real kernel keeps them in tests/kernel/test_contracts.py.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.contracts import exporting, importing, nodes
from tests.fakes.client_kernel import ClientKernel
from tests.fakes.export_host import OWN, FakeHost
from tests.fakes.host_kernel import HostKernel
from tests.fakes.nodes import Nodes
from tests.importing import Bell, NoticingImporter
from tests.patience import patience
from tests.serving import QUICK, running_server
from usb_remote.client import Importer
from usb_remote.lease import ExportHost
from usb_remote.usbip_host import Host
from usb_remote.values import BusId
from usb_remote.vhci import Vhci
from usb_remote.virtual import KINDS, VirtualDevices


class FolderBench:
    """usbip_host.Host on files."""

    def __init__(self, root: Path) -> None:
        self.kernel = HostKernel(root)
        self.host: ExportHost = Host(root, write=self.kernel.write)
        self.bus_id = BusId("2-1")
        self.patience = patience(10)
        self.plug()

    def plug(self) -> None:
        self.kernel.plug(self.bus_id)

    def pull(self) -> None:
        self.kernel.pull(self.bus_id)

    def has_own_driver(self) -> bool:
        return self.kernel.driver(self.bus_id) == "usb"

    def write(self, attribute: str, text: str) -> None:
        self.kernel.write(self.kernel.root / "bus/usb" / attribute, text)

    def close(self) -> None:
        self.kernel.close()
        assert self.kernel.crashes == []


class VirtualBench:
    """Devices that are programs: their own driver has them whenever nobody else has."""

    def __init__(self) -> None:
        self.devices = VirtualDevices("serial")
        self.host: ExportHost = self.devices
        self.bus_id = BusId("1-1")
        self.patience = patience(10)

    def plug(self) -> None:
        self.devices.plug("serial")

    def pull(self) -> None:
        self.devices.pull("serial")

    def has_own_driver(self) -> bool:
        return self.bus_id not in self.devices.list_bound()

    def close(self) -> None:
        self.devices.close()


class MemoryBench:
    """The fake of those who test what is above: leases and queues."""

    def __init__(self) -> None:
        self.fake = FakeHost(reset=0.02)
        self.host: ExportHost = self.fake
        self.bus_id = BusId("2-1")
        self.patience = patience(10)
        self.plug()

    def plug(self) -> None:
        self.fake.plug(self.bus_id, "A")

    def pull(self) -> None:
        self.fake.pull(self.bus_id)

    def has_own_driver(self) -> bool:
        return self.fake.drivers[self.bus_id] == OWN

    def close(self) -> None:
        self.fake.close()


Made = FolderBench | VirtualBench | MemoryBench


@pytest.fixture(params=["in a folder", "virtual", "in memory"])
async def exports(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Made]:
    made: Made
    match request.param:
        case "in a folder":
            made = FolderBench(tmp_path)
        case "virtual":
            made = VirtualBench()
        case _:
            made = MemoryBench()
    yield made
    made.close()


@pytest.mark.parametrize(
    "check", [*exporting.CHECKS, *exporting.PULLS], ids=lambda check: check.__name__
)
async def test_export(exports: Made, check: exporting.Check) -> None:
    await check(exports)


@pytest.mark.parametrize("check", exporting.KERNEL_CHECKS, ids=lambda check: check.__name__)
async def test_export_by_the_kernel(tmp_path: Path, check: exporting.KernelCheck) -> None:
    bench = FolderBench(tmp_path)
    await check(bench)
    bench.close()


class NodesBench:
    """The fake of those who test what is above: links, keepers."""

    def __init__(self, folder: Path) -> None:
        self.fake = Nodes(folder)
        self.patience = patience(10)
        self.plug()

    def plug(self) -> None:
        self.fake.appear("9-1")

    def pull(self) -> None:
        self.fake.vanish("9-1")

    def list_parts(self) -> nodes.Parts:
        return self.fake.list_parts("9-1")


@pytest.mark.parametrize("check", nodes.CHECKS, ids=lambda check: check.__name__)
def test_nodes(tmp_path: Path, check: nodes.Check) -> None:
    check(NodesBench(tmp_path))


class ImportBench:
    """An importer, and a server of this process."""

    def __init__(self, importer: Importer, devices: VirtualDevices, usbip_port: int) -> None:
        self.importer, self.devices, self.usbip_port = importer, devices, usbip_port
        self.patience = patience(10)


@pytest.fixture
def vhci(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Importer]:
    kernel = ClientKernel(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    yield Vhci(tmp_path / "sys", kernel.state, kernel.status, sudo=())
    kernel.close()


@pytest.fixture
async def in_process(tmp_path: Path) -> AsyncIterator[Importer]:
    bell = Bell()
    importer = NoticingImporter(bell, tmp_path)
    yield importer
    for attachment in importer.list_attachments():
        await importer.detach(attachment.vhci_port)
    bell.close()


@pytest.fixture(params=["vhci", "in_process"])
def importer(request: pytest.FixtureRequest) -> Importer:
    found: Importer = request.getfixturevalue(request.param)
    return found


@pytest.mark.parametrize("check", importing.CHECKS, ids=lambda check: check.__name__)
async def test_import(importer: Importer, check: importing.Check) -> None:
    async with running_server(*KINDS, times=QUICK) as server:
        await check(ImportBench(importer, server.devices, server.exporter.port))
