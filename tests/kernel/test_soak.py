"""A bad day in the lab, quickly: plugs, flashes, cuts, restarts, reboots and kills at random; then
all must be well.

USB_REMOTE_SOAK is how many minutes it goes on, one unless given, then the same minute each time.
`make soak` makes it ten, of another day each time; USB_REMOTE_SEED repeats one.
"""

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

from tests.kernel.guest import Running
from tests.kernel.lab import until
from tests.kernel.product import (
    devices,
    flash,
    is_resident,
    links,
    plug_disk,
    ports_in_use,
    reside,
    serve,
    sessions,
    wish,
)
from tests.kernel.vm import VM

MINUTES = float(os.environ.get("USB_REMOTE_SOAK") or 1)
WISHES = """attach:
- SER-0001
- serial: KBD-0001
- {{server: server, port: {}, name: board}}
"""
NAMES = ("SER-0001", "KBD-0001", "board")
LINKS = {"SER-0001/disk", "KBD-0001/event0", "board/tty0"}
HOLDING = """
import usb_remote
while True:
    try:
        with usb_remote.attach("MOUSE-01", wait=0) as device:
            device.wait_lost()
    except usb_remote.UsbRemoteError as error:
        print(error, flush=True)
"""
USE = """cd /dev/usb-remote && test -c KBD-0001/event0 -a -c board/tty0 &&
dd if=SER-0001/disk of=/dev/null bs=512 count=1 iflag=direct"""
HOLD = f"PYTHONPATH=/opt/usb-remote:/opt/py exec python3 -c '{HOLDING}'"
LEFT_BEHIND = (
    "ps -eo pid,stat,args | grep -E '[ /]usbip |modprobe| D[s+]* ' | grep -vE 'grep|ps -eo'"
)
DESCRIPTORS = "ls /proc/$(pgrep -of 'usb_remote {}')/fd | wc -l"
TASKS = "ls /proc/$(pgrep -of 'usb_remote {}')/task | wc -l"
PASSING = 4
"""Descriptors of what is under way at any moment: a connection that is tried, a look-up."""


class Day:
    """What can happen; each method leaves the lab as bad as such things do."""

    def __init__(self, server: VM, client: VM, image: Path) -> None:
        self.server, self.client, self._image = server, client, image
        self._plugged = {"stick": False, "kbd": False, "mouse": False}
        self._ports = {"stick": 1, "kbd": 2, "mouse": 3}
        self._flashed, self._is_cut = 0, False
        self.flash()
        self.serving = serve(server)
        (self._place,) = until(lambda: devices(server))
        for name in self._plugged:
            self.plug(name)
        self.agent = reside(client, WISHES.format(self._place))
        self.holding = client.start(HOLD)

    def plug(self, name: str) -> None:
        if not self._plugged[name]:
            self._plugged[name], port = True, str(self._ports[name])
            if name == "stick":
                plug_disk(self.server, self._image, port=port)
            else:
                serial = {"kbd": "KBD-0001", "mouse": "MOUSE-01"}[name]
                self.server.usb_add(f"usb-{name}", name, port, serial=serial)

    def pull(self, name: str) -> None:
        if self._plugged[name]:
            self._plugged[name] = False
            self.server.usb_del(name)

    def move(self, name: str) -> None:
        """Plug it into another port."""
        self.pull(name)
        self._ports[name] = 9 - self._ports[name]  # 1 to 3, or 8 to 6
        self.plug(name)

    def flash(self) -> None:
        self._flashed += 1
        flash(self.server, f"1209:000{1 + self._flashed % 2}", f"F{self._flashed % 2}")

    def cut(self) -> None:
        self.server.set_link(self._is_cut)
        self._is_cut = not self._is_cut

    def restart_server(self, number: int) -> None:
        _end(self.serving, number)
        self.serving = self.server.start("exec usb-remote server")

    def restart_agent(self, number: int) -> None:
        _end(self.agent, number)
        self.agent = self.client.start("exec usb-remote agent")

    def restart_program(self) -> None:
        _end(self.holding, signal.SIGKILL)
        self.holding = self.client.start(HOLD)

    def reboot_server(self) -> None:
        self.server.reboot()
        if self._is_cut:
            self.server.set_link(False)
        self.flash()
        self.serving = self.server.start("exec usb-remote server")

    def reboot_client(self) -> None:
        self.client.reboot()
        self.agent = reside(self.client, WISHES.format(self._place))
        self.holding = self.client.start(HOLD)

    def mend(self) -> None:
        """The evening: everything is plugged in and switched on, and the program is killed."""
        if self._is_cut:
            self.cut()
        for name in self._plugged:
            self.plug(name)
        for program in (self.serving, self.agent, self.holding):
            assert program.rc is None, program.errors
        _end(self.holding, signal.SIGKILL)

    def choices(self) -> list[tuple[str, Callable[[], None]]]:
        name = "stick", "kbd", "mouse"
        return [
            *((f"plug the {n}", lambda n=n: self.plug(n)) for n in name),
            *((f"pull the {n}", lambda n=n: self.pull(n)) for n in name),
            *((f"move the {n}", lambda n=n: self.move(n)) for n in name),
            ("flash the board", self.flash),
            ("cut or mend the cable", self.cut),
            ("stop and start the server", lambda: self.restart_server(signal.SIGTERM)),
            ("kill and start the server", lambda: self.restart_server(signal.SIGKILL)),
            ("stop and start the agent", lambda: self.restart_agent(signal.SIGTERM)),
            ("kill and start the agent", lambda: self.restart_agent(signal.SIGKILL)),
            ("kill and start the program", self.restart_program),
            ("reboot the server", self.reboot_server),
            ("reboot the client", self.reboot_client),
        ]


def _end(program: Running, number: int) -> None:
    if program.rc is None:
        program.stop(number)


def test_after_a_bad_day_wishes_and_reality_agree_and_nothing_is_left_behind(
    pair: tuple[VM, VM], disk: Path
) -> None:
    server, client = pair
    seed = int(os.environ.get("USB_REMOTE_SEED") or 11)
    print(f"USB_REMOTE_SEED={seed} USB_REMOTE_SOAK={MINUTES:g}")
    day, chance = Day(server, client, disk), random.Random(seed)
    _all_is_well(client)
    before = {counted: _count(*counted) for counted in _counted(server, client)}
    end = time.monotonic() + 60 * MINUTES
    while time.monotonic() < end:
        name, happen = chance.choice(day.choices())
        pause = chance.choice([0.0, 0.5, 2.0, 6.0, 12.0])
        print(f"{end - time.monotonic():5.1f} s left: {name}, then {pause} s")
        happen()
        time.sleep(pause)
    day.mend()
    _all_is_well(client)
    until(lambda: len(sessions(server)) == len(ports_in_use(client)) == 3)  # none for the mouse
    until(lambda: {link.partition("/")[0] for link in links(client)} == set(NAMES))
    for counted, count in before.items():
        until(lambda counted=counted, most=count + PASSING: _count(*counted) <= most)  # type: ignore[misc]
    for machine in (server, client):
        until(lambda machine=machine: machine.sh(LEFT_BEHIND).out == "")  # type: ignore[misc]


def _counted(server: VM, client: VM) -> list[tuple[VM, str]]:
    """What must not become more and more."""
    return [
        (machine, what.format(program))
        for machine, program in ((server, "server"), (client, "agent"))
        for what in (DESCRIPTORS, TASKS)
    ]


def _count(machine: VM, command: str) -> int:
    return int(machine.sh(command).ok().out)


def _all_is_well(client: VM) -> None:
    """All are attached once, under their paths, and can be used; within two minutes."""
    until(lambda: is_resident(client))
    for name in NAMES:
        until(lambda name=name: wish(client, name).get("stage") == "attached")  # type: ignore[misc]
    until(lambda: links(client).keys() >= LINKS)
    until(lambda: client.sh(USE).rc == 0)  # not at once if it was cut off just before the evening
