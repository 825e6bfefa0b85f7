"""It stays attached: the agent on real kernels, through replugs, reboots, cuts and kills."""

import contextlib
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.kernel.guest import Result
from tests.kernel.lab import until
from tests.kernel.product import (
    ask_agent,
    devices,
    flash,
    links,
    plug_disk,
    plug_serial,
    ports_in_use,
    refused,
    reside,
    run,
    serve,
    sessions,
    until_wish,
    wish,
)
from tests.kernel.vm import VM

READ = "dd if={} of=/dev/null bs=512 count=1 iflag=direct"
WANTED = "attach: [SER-0001]\n"
DISK = "/dev/usb-remote/SER-0001/disk"


def alice(client: VM, command: str) -> Result:
    """Run something as a user, with all groups."""
    return client.sh(f"runuser -u alice -- {command}")


def test_members_of_the_group_need_no_root_and_a_replug_changes_no_path(
    pair: tuple[VM, VM], disk: Path, tmp_path: Path
) -> None:
    server, client = pair
    plug_disk(server, disk)
    plug_serial(server, tmp_path / "wire")
    serve(server)
    agent = reside(client)
    complaint = refused(client, "attach --serial SER-0001", 4, user="alice")
    assert "only members of the group usb-remote" in complaint
    assert "sudo usermod -aG usb-remote alice" in complaint
    client.sh("usermod -aG usb-remote alice").ok()

    out = alice(client, "usb-remote attach --keep SER-0001").ok().out
    assert DISK in out
    alice(client, READ.format(DISK)).ok()  # the node is alice's
    assert "alice@client" in alice(client, "usb-remote list").ok().out
    alice(client, "usb-remote attach --keep server/1-2").ok()
    assert links(client)["server-1-2/tty0"].startswith("/dev/ttyUSB")

    server.usb_del("stick")
    agent.wait_for("lost SER-0001 .*unplugged")
    until(lambda: not any(link.startswith("SER-0001/") for link in links(client)))
    plug_disk(server, disk)
    until_wish(client, "SER-0001", "attached")
    alice(client, READ.format(DISK)).ok()

    server.usb_del("stick")
    agent.wait_for("lost SER-0001 .*unplugged")
    plug_disk(server, disk, port="3")  # by serial number wherever it is
    until_wish(client, "SER-0001", "attached")
    alice(client, READ.format(DISK)).ok()
    server.usb_del("adapter")
    until_wish(client, "server-1-2", "absent")
    server.usb_add("usb-kbd", "kbd", "4", serial="KBD-0001")  # by position only there
    server.usb_add("usb-mouse", "mouse", "2")
    until_wish(client, "server-1-2", "attached")
    assert any(link.startswith("server-1-2/event") for link in links(client))
    assert sorted(port["bus_id"] for port in ask_agent(client, "ports")) == ["1-2", "2-3"]

    assert "not kept any more" in alice(client, "usb-remote detach server/1-2").ok().err
    status = alice(client, "usb-remote status").ok().out
    assert "SER-0001  attached since" in status
    assert "unplugged" in status
    assert agent.stop(signal.SIGTERM) == 0
    assert len(ports_in_use(client)) == 1


def test_a_dead_server_does_not_hang_programs_and_gives_the_device_back_when_it_returns(
    pair: tuple[VM, VM], disk: Path
) -> None:
    server, client = pair
    plug_disk(server, disk)
    serve(server)
    agent = reside(client, WANTED)
    until_wish(client, "SER-0001", "attached")
    reading = client.start(f"while {READ.format(DISK)} 2>/dev/null; do :; done; echo over")
    server.power_off()
    reading.wait_for("over")  # an error, not a hang
    agent.wait_for("lost SER-0001")
    until(lambda: ports_in_use(client) == [])
    until(lambda: client.sh("ps -eo stat= | grep ^D").out == "")
    assert wish(client, "SER-0001")["losses"][-1].get("cause") is None

    server.reboot()
    serve(server)
    agent.wait_for("attached .*SER-0001")
    client.sh(READ.format(DISK)).ok()
    assert len(ports_in_use(client)) == 1

    server.reboot()  # back before anybody has noticed that it was away
    serve(server)
    until(lambda: sessions(server))
    until_wish(client, "SER-0001", "attached")
    client.sh(READ.format(DISK)).ok()
    assert len(ports_in_use(client)) == 1  # the stale one went before the new one came


def test_a_killed_agent_takes_up_what_is_attached_and_a_cut_cable_mends_itself(
    pair: tuple[VM, VM], disk: Path, tmp_path: Path
) -> None:
    server, client = pair
    plug_disk(server, disk)
    plug_serial(server, tmp_path / "wire")
    serve(server)
    agent = reside(client)
    run(client, "attach --keep SER-0001").ok()
    command = "echo on $USB_REMOTE_SERVER_1_2_TTY0; exec sleep 600"
    program = client.start(f"exec usb-remote run --with server/1-2 -- sh -c '{command}'")
    program.wait_for("^on /dev/usb-remote/server-1-2/tty0$")
    before, ports = sessions(server), ports_in_use(client)
    assert sorted(before) == ["1-2", "2-1"]

    assert agent.stop(signal.SIGKILL) == -signal.SIGKILL
    agent = reside(client)
    until_wish(client, "server-1-2", "attached")
    until_wish(client, "SER-0001", "attached")
    assert (sessions(server), ports_in_use(client)) == (before, ports)
    assert program.stop(signal.SIGKILL) == -signal.SIGKILL
    until(lambda: sorted(sessions(server)) == ["2-1"])
    until(lambda: len(ports_in_use(client)) == 1)

    client.sh(READ.format(DISK)).ok()  # or the silence would have begun before the cut
    with unplugged(server, 4):
        pass
    client.sh(READ.format(DISK)).ok()
    assert sessions(server)["2-1"] == before["2-1"]  # nobody has noticed
    with unplugged(server, 30):
        assert agent.stop(signal.SIGKILL) == -signal.SIGKILL
        reside(client)  # which has never heard of that server
        until(lambda: ports_in_use(client) == [])
    until_wish(client, "SER-0001", "attached")
    client.sh(READ.format(DISK)).ok()
    assert len(ports_in_use(client)) == 1


@contextlib.contextmanager
def unplugged(machine: VM, seconds: float) -> Iterator[None]:
    """Pull out a machine's network cable for so long, whatever is done meanwhile."""
    end = time.monotonic() + seconds
    machine.set_link(False)
    yield
    time.sleep(max(0.0, end - time.monotonic()))
    machine.set_link(True)


def test_a_board_is_kept_by_its_place_while_firmware_changes_what_it_is(
    pair: tuple[VM, VM],
) -> None:
    server, client = pair
    flash(server, "1209:0001")
    serve(server)
    (place,) = until(lambda: devices(server))
    access = "group: dialout, mode: '0640'"
    reside(client, f"attach: [{{server: server, port: '{place}', name: board, {access}}}]\n")
    first = until_wish(client, "board", "attached")
    flash(server, "1209:0002", serial="F2")  # as a boot loader that becomes an application
    until(lambda: wish(client, "board")["losses"])
    again = until_wish(client, "board", "attached")
    assert first["attached"]["device"]["id"] == "1209:0001:F1"
    assert again["attached"]["device"]["id"] == "1209:0002:F2"
    assert again["attached"]["paths"]["tty0"] == "/dev/usb-remote/board/tty0"
    node = client.sh("stat -L -c '%F %G %a' /dev/usb-remote/board/tty0").ok().out
    assert node == "character special file dialout 640\n"
    assert len(ports_in_use(client)) == 1


def test_each_port_of_a_hub_that_is_wished_for_has_a_path_of_its_own(pair: tuple[VM, VM]) -> None:
    server, client = pair
    server.usb_add("usb-hub", "hub", "6")
    server.usb_add("usb-kbd", "kbd", "6.1")
    server.usb_add("usb-mouse", "mouse", "6.2")
    serve(server)
    reside(client, "attach: [{server: server, port: '1-6.*', name: rack}]\n")
    until_wish(client, "rack-1-6.1", "attached")
    until_wish(client, "rack-1-6.2", "attached")
    until(lambda: links(client).keys() >= {"rack-1-6.1/event0", "rack-1-6.2/event0"})

    server.usb_del("mouse")
    until_wish(client, "rack-1-6.2", "absent")
    server.usb_add("usb-mouse", "mouse", "6.3")
    until_wish(client, "rack-1-6.3", "attached")
    until(
        lambda: {link.partition("/")[0] for link in links(client)} == {"rack-1-6.1", "rack-1-6.3"}
    )

    assert run(client, "detach rack").ok().out == "detached: rack-1-6.1, rack-1-6.3\n"
    assert (ports_in_use(client), links(client)) == ([], {})
    until(lambda: server.sh("ls /sys/bus/usb/drivers/usbip-host | grep -- -").rc == 1)


@pytest.mark.soak  # the minute of the bad day in the gate reboots clients, too
def test_after_the_clients_reboot_the_agent_attaches_whether_it_starts_first_or_last(
    pair: tuple[VM, VM], disk: Path
) -> None:
    server, client = pair
    plug_disk(server, disk)
    program = serve(server)
    reside(client, WANTED)
    until_wish(client, "SER-0001", "attached")
    client.reboot()  # at once: the server still thinks that we have it
    reside(client, WANTED)
    until_wish(client, "SER-0001", "attached")
    client.sh(READ.format(DISK)).ok()

    assert program.stop(signal.SIGTERM) == 0
    client.reboot()
    reside(client, WANTED)
    serve(server)
    until_wish(client, "SER-0001", "attached")
    client.sh(READ.format(DISK)).ok()


@pytest.mark.soak  # unit tests have the queue, the takeover and its end; here it is once for real
def test_what_two_clients_wish_for_goes_from_one_to_the_other(
    trio: tuple[VM, VM, VM], disk: Path
) -> None:
    server, client, other = trio
    plug_disk(server, disk)
    serve(server)
    reside(client, WANTED)
    until_wish(client, "SER-0001", "attached")
    reside(other, WANTED)
    until_wish(other, "SER-0001", "waiting")
    assert "root@client; place 1" in wish(other, "SER-0001")["note"]
    ask_agent(client, "detach", handle="SER-0001")
    until_wish(other, "SER-0001", "attached")
    assert wish(client, "SER-0001")["stage"] == "ended"
    other.sh(READ.format(DISK)).ok()
    run(client, "attach SER-0001 --force").ok()  # asked for again
    assert wish(client, "SER-0001")["stage"] == "attached"
    lost = until_wish(other, "SER-0001", "ended")["losses"][-1]
    assert (lost["cause"], lost["by"]) == ("taken_over", "root@client")
