"""A virtual machine: QEMU with a guest that takes commands, and USB devices to plug and pull."""

import contextlib
import os
import shlex
import subprocess
import time
import uuid
from base64 import b64encode
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from tests.kernel.guest import Guest, GuestError, Result, Running
from tests.kernel.qmp import Qmp, QmpError
from tests.patience import patience

MEMORY = 512  # MiB
KERNEL_OPTIONS = (
    "console=ttyS0 quiet loglevel=4 panic=-1 mitigations=off random.trust_cpu=on nokaslr "
    "net.ifnames=0 tsc=reliable no_timer_check"
)
"""`no_timer_check`: on a busy host an emulated timer may not tick while the kernel looks whether it
does, and that ends in a panic (arch/x86/kernel/apic/io_apic.c, check_timer)."""
HARDWARE = """
-accel tcg,tb-size=128 -cpu Westmere -smp 1 -nodefaults -no-reboot -display none
-device virtio-rng-pci -device qemu-xhci,p2=8,p3=8,id=xhci
-device virtio-serial -device virtserialport,chardev=agent,name=lab.agent
-device virtio-net-pci,netdev=net,id=nic,romfile=
"""
ALONE = "hubport,hubid=0"
SYSTEMD = (
    "init=/lib/systemd/systemd lab.disk=/dev/vdb lab.ip={ip} "
    "systemd.hostname={name} systemd.machine_id={id}"
)
DISK_SIZE = 1 << 30


@dataclass(frozen=True)
class Images:
    """The files that build.sh leaves, and the snapshot of a running machine made from them."""

    folder: Path
    snapshot: Path | None = None
    memory: Path | None = None

    def for_saving(self, folder: Path) -> "Images":
        """The same, for a machine that is to be saved there: its memory is that file."""
        memory = folder / "memory"
        if self.snapshot:
            copy = ("cp", "--sparse=always", self.snapshot / "memory", memory)
            subprocess.run(copy, check=True)
        return Images(self.folder, self.snapshot, memory)

    def next_boot(self) -> "Images":
        """What it starts from when its power was off."""
        return self

    def arguments(self) -> list[str]:
        """Say what to boot. A snapshot's memory is mapped, not read: that is what makes it fast."""
        assert self.memory or self.snapshot
        return self._boot(KERNEL_OPTIONS)

    def _memory(self) -> str:
        if not (self.memory or self.snapshot):
            return f"memory-backend-ram,id=ram,size={MEMORY}M"
        place = self.memory or f"{self.snapshot}/memory"
        share = "on" if self.memory else "off"
        return f"memory-backend-file,id=ram,size={MEMORY}M,share={share},mem-path={place}"

    def _boot(self, options: str) -> list[str]:
        saved = self.snapshot is not None
        return [
            *("-m", str(MEMORY), "-machine", "q35,memory-backend=ram"),
            *("-object", self._memory()),
            *("-kernel", f"{self.folder}/vmlinux", "-initrd", f"{self.folder}/initrd.cpio"),
            *("-append", options),
            *("-drive", f"if=none,id=root,file={self.folder}/root.sqfs,format=raw,readonly=on"),
            *("-device", "virtio-blk-pci,drive=root"),
            *(["-incoming", "defer"] if saved else []),
        ]


@dataclass(frozen=True, kw_only=True)
class Installation(Images):
    """What boots with systemd as pid 1, from a disk that keeps its files.

    A snapshot has a disk, too. It is good for one start: the files may be others when it ends.
    """

    disk: Path
    name: str
    ip: str

    def for_saving(self, folder: Path) -> "Installation":
        return replace(self, memory=folder / "memory", disk=folder / "disk")

    def next_boot(self) -> "Installation":
        return replace(self, snapshot=None)

    def arguments(self) -> list[str]:
        """Name the disk, and on the kernel's command line who this machine is."""
        if self.snapshot:
            copy = ("cp", "--sparse=always", self.snapshot / "disk", self.disk)
            subprocess.run(copy, check=True)
        elif not self.disk.exists():
            make_file_system(self.disk)
        who = SYSTEMD.format(ip=self.ip, name=self.name, id=machine_id(self.name))
        return [
            *self._boot(f"{KERNEL_OPTIONS} {who}"),
            *("-drive", f"if=none,id=disk,file={self.disk},format=raw"),
            *("-device", "virtio-blk-pci,drive=disk"),
        ]


def make_file_system(image: Path) -> None:
    image.touch()
    os.truncate(image, DISK_SIZE)
    subprocess.run(["mkfs.ext4", "-q", str(image)], check=True)


def machine_id(name: str) -> str:
    return uuid.uuid5(uuid.NAMESPACE_DNS, name).hex


class VM:
    """One machine. `folder` is its own, for its sockets and logs; `netdev` its network cable."""

    def __init__(
        self, name: str, images: Images, folder: Path, *, ip: str = "", netdev: str = ALONE
    ) -> None:
        self.name, self.ip = name, ip
        self._images, self._folder, self._netdev = images, folder, netdev
        self._plugged: dict[str, dict[str, Any]] = {}
        self._stack = contextlib.ExitStack()

    # its life

    def power_on(self) -> Self:
        """Boot, or restore the snapshot."""
        self._folder.mkdir(exist_ok=True)
        for stale in ("qmp", "agent"):
            (self._folder / stale).unlink(missing_ok=True)
        with (self._folder / "qemu.log").open("wb") as log:
            self._process = subprocess.Popen(
                self._command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        self._stack.callback(self._process.wait)
        self._stack.callback(self._process.kill)
        try:
            self._connect()
        except BaseException as error:
            error.add_note(self.log()[-3000:])
            self.power_off()
            raise
        return self

    def power_off(self) -> None:
        """Cut the power."""
        self._stack.close()
        self._images = self._images.next_boot()

    def reboot(self) -> None:
        """Cut the power, start again. Its devices are still plugged in, its files are gone.

        An `Installation` has its files, and its devices before it boots.
        """
        self.power_off()
        self.power_on()

    def shut_down(self) -> None:
        """Have systemd end everything in order, and wait until the power is off."""
        with contextlib.suppress(GuestError):  # it may be off before it has answered
            self.sh("systemctl --no-block poweroff").ok()
        self._process.wait(patience(180))
        self.power_off()

    def save(self, folder: Path) -> None:
        """Save the state of a machine that booted; its memory is in a file already."""
        self.qmp.execute("stop")
        self._migrate("migrate", f"exec:cat > {shlex.quote(str(folder))}/state")

    def log(self) -> str:
        """Say what QEMU and the guest's kernel had to say."""
        files = [self._folder / "qemu.log", self._folder / "console"]
        return "".join(file.read_text(errors="replace") for file in files if file.exists())

    # commands and files in it

    def sh(
        self,
        cmd: str,
        timeout: float | None = None,
        *,
        stdin: str = "",
        env: dict[str, str] | None = None,
        user: str = "root",
    ) -> Result:
        """Run a shell command to its end."""
        return self.guest.run(cmd, timeout, stdin=stdin, env=env, user=user)

    def start(self, cmd: str, *, env: dict[str, str] | None = None, user: str = "root") -> Running:
        """Start a shell command that goes on while the test does."""
        return self.guest.start(cmd, env=env, user=user)

    def put(self, path: str, data: bytes | str, mode: int = 0o644) -> None:
        """Write a file, and the folders it needs."""
        self.guest.put(path, data, mode)

    # the outside world

    def usb_add(
        self,
        driver: str,
        name: str,
        port: str | None = None,
        *,
        image: Path | None = None,
        readonly: bool = False,
        chardev: dict[str, Any] | None = None,
        **properties: Any,
    ) -> None:
        """Plug a device in: `port` "1" to "8", "6.1" behind a hub on 6; usb-storage is bus 2."""
        place = {} if port is None else {"port": port}
        device = {"driver": driver, "id": name, "bus": "xhci.0", **place, **properties}
        file = {"driver": "file", "filename": str(image), "read-only": readonly}
        disk = {"driver": "raw", "read-only": readonly, "file": file} if image else None
        self._plugged[name] = {"device": device, "disk": disk, "chardev": chardev}
        self._plug(**self._plugged[name])

    def usb_del(self, name: str) -> None:
        """Pull a device out."""
        del self._plugged[name]
        since = len(self.qmp.events)
        self.qmp.execute("device_del", id=name)
        self.qmp.wait_event(
            lambda e: e["event"] == "DEVICE_DELETED" and e["data"].get("device") == name, since
        )
        with contextlib.suppress(QmpError):
            self.qmp.execute("blockdev-del", **{"node-name": f"disk-{name}"})
        with contextlib.suppress(QmpError):
            self.qmp.execute("chardev-remove", id=f"chardev-{name}")

    def set_link(self, up: bool) -> None:
        """Pull the network cable out of this machine, or put it back; peers do not notice."""
        self.qmp.execute("set_link", name="nic", up=up)

    def freeze(self) -> None:
        """Stop the processor: the machine answers nothing, until `thaw`."""
        self.qmp.execute("stop")

    def thaw(self) -> None:
        self.qmp.execute("cont")

    def _plug(
        self, device: dict[str, Any], disk: dict[str, Any] | None, chardev: dict[str, Any] | None
    ) -> None:
        name, backends = device["id"], {}
        if disk:
            backends["drive"] = f"disk-{name}"
            self.qmp.execute("blockdev-add", **{"node-name": f"disk-{name}", **disk})
        if chardev:
            backends["chardev"] = f"chardev-{name}"
            self.qmp.execute("chardev-add", id=f"chardev-{name}", backend=chardev)
        self.qmp.execute("device_add", **device, **backends)

    def _command(self) -> list[str]:
        return [
            *("qemu-system-x86_64", "-name", self.name, *HARDWARE.split()),
            *self._images.arguments(),
            *("-serial", f"file:{self._folder}/console"),
            *("-qmp", f"unix:{self._folder}/qmp,server=on,wait=off"),
            *("-chardev", f"socket,id=agent,path={self._folder}/agent,server=on,wait=off"),
            *("-netdev", f"{self._netdev},id=net"),
        ]

    def _connect(self) -> None:
        self.qmp = self._stack.enter_context(contextlib.closing(Qmp(self._folder / "qmp")))
        if snapshot := self._images.snapshot:
            self._migrate("migrate-incoming", f"exec:cat {shlex.quote(str(snapshot))}/state")
            self.qmp.execute("cont")  # it was saved while stopped
        for device in list(self._plugged.values()):
            self._plug(**device)
        self.guest = self._stack.enter_context(contextlib.closing(Guest(self._folder / "agent")))
        if not snapshot:
            self.guest.wait_ready(120)
        elif self.ip:
            self._become()

    def _become(self) -> None:
        """Give a restored machine its own name, address and randomness."""
        self.guest.call(
            "become",
            name=self.name,
            ip=self.ip,
            mac=f"52:54:00:00:00:{int(self.ip.rpartition('.')[2]):02x}",
            time=time.time(),
            seed=b64encode(os.urandom(64)).decode(),
            machine_id=machine_id(self.name),
            boot_id=str(uuid.uuid4()),
        )

    def _migrate(self, command: str, uri: str) -> None:
        names = ("x-ignore-shared", "events")
        capabilities = [{"capability": name, "state": True} for name in names]
        self.qmp.execute("migrate-set-capabilities", capabilities=capabilities)
        since = len(self.qmp.events)
        self.qmp.execute(command, uri=uri)
        ends = ("completed", "failed")
        event = self.qmp.wait_event(
            lambda e: e["event"] == "MIGRATION" and e["data"]["status"] in ends, since
        )
        if event["data"]["status"] == "failed":
            raise QmpError(f"{command} failed\n{self.log()}")
