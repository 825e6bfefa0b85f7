"""The lab: builds what it needs once, and makes groups of machines that see each other."""

import contextlib
import hashlib
import io
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from compileall import compile_dir
from concurrent.futures import ThreadPoolExecutor
from fcntl import LOCK_EX, flock
from pathlib import Path
from py_compile import PycInvalidationMode
from typing import TypeVar

from tests.kernel import vm
from tests.kernel.vm import VM, Images, Installation
from tests.patience import patience

T = TypeVar("T")
HERE = Path(__file__).parent
SOURCE = HERE.parent.parent / "src"
TOOLS = {
    "qemu-system-x86_64": "qemu-system-x86",
    "busybox": "busybox-static",
    "cpio": "cpio",
    "debootstrap": "debootstrap",
    "mksquashfs": "squashfs-tools",
    "mkfs.ext4": "e2fsprogs",
    "apt-get": "apt",
}
# Run once before the snapshot is taken, so that its memory holds what tests will need.
# Not usbip's own modules: whether they are loaded is what some tests are about.
WARM_UP = """
modprobe -a usb_storage uas sd_mod usbhid hid_generic usbserial ftdi_sio cdc_acm evdev
usbip version; lsusb; udevadm info --export-db | wc -l; ip address; sudo -n true
usb-remote-2x --version
cat /usr/sbin/usbip /usr/sbin/usbipd /usr/share/hwdata/usb.ids /lib/udev/hwdb.bin >/dev/null
sync
"""


def folder() -> Path:
    """Where the lab lives, outside of the checkout."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("USB_REMOTE_LAB") or Path(cache) / "usb-remote-lab").absolute()


def obstacle() -> str | None:
    """Say why there can be no virtual machines here, and how to change that."""
    if platform.machine() != "x86_64" or sys.platform != "linux":
        return "virtual machines need Linux on x86_64"
    if missing := [package for tool, package in TOOLS.items() if not shutil.which(tool)]:
        return f"virtual machines need packages: apt-get install {' '.join(missing)}"
    if platform.freedesktop_os_release().get("VERSION_CODENAME") != "bookworm":
        return "virtual machines are built from Debian 12's packages: run this on Debian 12"
    if os.geteuid() != 0:
        return "building virtual machines needs root"
    return None


def until(condition: Callable[[], T], timeout: float | None = None) -> T:
    """Poll until it is true, and return it; `timeout` is patience(120) unless given.

    Less and less often: to ask an emulated machine costs it what it needs to get there.
    """
    timeout = timeout or patience(120)
    begin = time.monotonic()
    while not (result := condition()):
        waited = time.monotonic() - begin
        if waited > timeout:
            raise TimeoutError(f"not so after {timeout:.0f} s")
        time.sleep(min(0.05 + waited / 5, 1))
    return result


def build() -> Images:
    """Build whatever is not there yet: two minutes the first time, seconds for changed sources."""
    environment = {**os.environ, "USB_REMOTE_LAB": str(folder()), "PYTHON": sys.executable}
    command = [str(HERE / "build.sh")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    images = Images(folder())
    with locked():
        booted = snapshot(images, "booted", fingerprint(images), warm_up)
        return snapshot(booted, "ready", fingerprint(images, SOURCE / "usb_remote"), install)


@contextlib.contextmanager
def locked() -> Iterator[None]:
    """One process at a time makes snapshots."""
    with (folder() / "snapshot.lock").open("w") as lock:
        flock(lock, LOCK_EX)
        yield


def snapshot(base: Images, kind: str, digest: str, prepare: Callable[[VM], None]) -> Images:
    """Keep the state of a running machine, instead of what was kept of this kind.

    To boot takes 12 s and to load usb-remote 2; machines restored from this are up in one.
    """
    target = base.folder / f"{kind}-{digest}"
    if not target.exists():
        for stale in base.folder.glob(f"{kind}-*"):
            shutil.rmtree(stale)
        new = base.folder / "new"
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir()
        with tempfile.TemporaryDirectory(prefix="vm-") as place:
            machine = VM("base", base.for_saving(new), Path(place))
            try:
                prepare(machine.power_on())
                machine.save(new)
            finally:
                machine.power_off()
        new.rename(target)
    return Images(base.folder, target)


def warm_up(machine: VM) -> None:
    machine.sh(WARM_UP).ok()
    machine.guest.call("warm")


def install(machine: VM) -> None:
    """Install the command `usb-remote`, and have it loaded: each one to come is a fork."""
    machine.guest.untar("/opt/usb-remote", package())
    machine.sh("usb-remote --version").ok()


def fingerprint(images: Images, *sources: Path) -> str:
    """Name everything that a snapshot depends on; some sources are installed in it."""
    files = [images.folder / name for name in ("vmlinux", "initrd.cpio", "root.sqfs")]
    stats = [(file.stat().st_mtime_ns, file.stat().st_size) for file in files]
    qemu = subprocess.run(["qemu-system-x86_64", "--version"], capture_output=True, check=True)
    machine = (vm.HARDWARE, vm.MEMORY, vm.KERNEL_OPTIONS, WARM_UP)
    digest = hashlib.sha256(repr((stats, qemu.stdout, machine)).encode())
    for source in sources:
        for file in sorted([source, *source.rglob("*")]):
            if file.is_file() and "__pycache__" not in file.parts:
                digest.update(f"{file.relative_to(source.parent)}\n".encode() + file.read_bytes())
    return digest.hexdigest()[:12]


@contextlib.contextmanager
def machines(
    images: Images, *names: str, systemd: Collection[str] = (), snapshot: Path | None = None
) -> Iterator[list[VM]]:
    """Make machines 10.55.0.1, .2 and so on, on a network of their own, that end with the block.

    Each has the command `usb-remote`. But those named by `systemd` boot with it, from a disk of
    their own, and get what a test installs; or they go on from a snapshot of such a machine.
    """
    with tempfile.TemporaryDirectory(prefix="vm-") as place, contextlib.ExitStack() as stack:
        made = []
        for number, (name, cable) in enumerate(zip(names, cables(place, names), strict=True), 1):
            ip, disk = f"10.55.0.{number}", Path(place, f"{name}.disk")
            alone = Installation(images.folder, snapshot, disk=disk, name=name, ip=ip)
            boots = alone if name in systemd else images
            made.append(VM(name, boots, Path(place, name), ip=ip, netdev=cable))
        for machine in made:
            stack.callback(machine.power_off)
        with ThreadPoolExecutor(len(made)) as pool:
            list(pool.map(VM.power_on, made))
        yield made


def cables(place: str, names: tuple[str, ...]) -> list[str]:
    """Two are wired back to back by unix sockets, more by multicast that stays on loopback.

    Neither uses an address of this machine's; any end may be killed and come back.
    """
    if len(names) == 1:
        return [vm.ALONE]
    if len(names) == 2:
        ends = [f"{place}/{name}.cable" for name in names]
        to = "dgram,local.type=unix,local.path={},remote.type=unix,remote.path={}"
        return [to.format(*ends), to.format(*reversed(ends))]
    port = 20000 + os.getpid() % 20000
    return [f"socket,mcast=230.0.0.1:{port},localaddr=127.0.0.1"] * len(names)


def package(source: Path = SOURCE / "usb_remote") -> bytes:
    """Pack a Python package for a guest, compiled if our Python is the guest's.

    The same source makes the same bytes.
    """
    with tempfile.TemporaryDirectory() as place:
        copy = Path(place, source.name)
        shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__"))
        if sys.version_info[:2] == (3, 11):
            mode = PycInvalidationMode.UNCHECKED_HASH
            compile_dir(copy, quiet=1, stripdir=place, invalidation_mode=mode)
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            archive.add(copy, source.name, filter=_timeless)
        return buffer.getvalue()


def _timeless(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.mtime = 0
    return member
