"""/dev/usb-remote: links that lead to the nodes that there are, and who may use those."""

from __future__ import annotations

import grp
import os
import pwd
import stat
from pathlib import Path

import pytest

from tests.fakes.nodes import Nodes
from usb_remote.agent.links import Access, Links, name_nodes

RW = Access(mode=0o666)


@pytest.fixture
def nodes(tmp_path: Path) -> Nodes:
    return Nodes(tmp_path / "nodes")


@pytest.fixture
def links(tmp_path: Path, nodes: Nodes) -> Links:
    return Links(nodes.list_parts, tmp_path / "dev", tmp_path / "udev")


def targets(folder: Path) -> dict[str, str]:
    return {link.name: link.readlink().name for link in folder.iterdir()}


def mode_of(path: str | Path) -> int:
    return stat.S_IMODE(Path(path).stat().st_mode)


# -- links


def test_a_directory_shows_the_nodes_that_there_are_now(
    nodes: Nodes, links: Links, tmp_path: Path
) -> None:
    board = tmp_path / "dev/board"
    nodes.appear("9-1")
    paths = links.update("board", "9-1", Access())
    assert paths == {"usb": str(board / "usb"), "tty0": str(board / "tty0")}
    assert targets(board) == {"usb": "001", "tty0": "ttyACM1"}
    nodes.add("9-1", "hidraw", "hidraw3")
    nodes.remove("9-1", "ttyACM1")
    assert set(links.update("board", "9-1", Access())) == {"usb", "hidraw0"}
    assert targets(board) == {"usb": "001", "hidraw0": "hidraw3"}


def test_a_link_leads_to_the_new_node_under_the_same_path(
    nodes: Nodes, links: Links, tmp_path: Path
) -> None:
    nodes.appear("9-1")
    before = links.update("board", "9-1", Access())
    nodes.vanish("9-1")
    nodes.appear("9-1")
    assert links.update("board", "9-1", Access()) == before
    assert targets(tmp_path / "dev/board") == {"usb": "002", "tty0": "ttyACM2"}
    assert all(Path(path).exists() for path in before.values())


def test_a_link_that_is_right_is_left_alone(nodes: Nodes, links: Links, tmp_path: Path) -> None:
    nodes.appear("9-1")
    links.update("board", "9-1", Access())
    link = tmp_path / "dev/board/tty0"
    before = link.lstat().st_ino, link.lstat().st_mtime_ns
    links.update("board", "9-1", Access())
    assert (link.lstat().st_ino, link.lstat().st_mtime_ns) == before


def test_what_is_no_link_of_ours_gives_way(nodes: Nodes, links: Links, tmp_path: Path) -> None:
    board = tmp_path / "dev/board"
    board.mkdir(parents=True)
    for name in ("tty0", ".usb", "stray"):
        (board / name).write_text("left by somebody")
    nodes.appear("9-1")
    links.update("board", "9-1", Access())
    assert targets(board) == {"usb": "001", "tty0": "ttyACM1"}


def test_a_device_that_is_not_there_yet_has_an_empty_directory(
    links: Links, tmp_path: Path
) -> None:
    assert links.update("board", None, Access()) == {}
    assert list((tmp_path / "dev/board").iterdir()) == []


def test_a_directory_goes_with_its_device_and_again_does_nothing(
    nodes: Nodes, links: Links, tmp_path: Path
) -> None:
    nodes.appear("9-1")
    links.update("board", "9-1", Access())
    links.update("other", "9-1", Access())
    for _ in range(2):
        links.remove("board")
        assert [p.name for p in (tmp_path / "dev").iterdir()] == ["other"]


def test_what_an_earlier_agent_has_left_goes_but_for_what_is_attached(
    nodes: Nodes, links: Links, tmp_path: Path
) -> None:
    links.keep_only(["board"])  # there is no directory at all yet
    nodes.appear("9-1")
    for name in ("board", "scope", "stick"):
        links.update(name, "9-1", Access())
    links.keep_only(name for name in ("board", "stick"))
    assert sorted(p.name for p in (tmp_path / "dev").iterdir()) == ["board", "stick"]
    assert targets(tmp_path / "dev/board") == {"usb": "001", "tty0": "ttyACM1"}


def test_where_no_directory_can_be_made_the_nodes_themselves_are_the_paths(
    nodes: Nodes, links: Links, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "dev").write_text("no directory")
    nodes.appear("9-1")
    assert links.update("board", "9-1", RW) == {
        "usb": str(tmp_path / "nodes/bus/usb/009/001"),
        "tty0": str(tmp_path / "nodes/ttyACM1"),
    }
    assert f"no links in {tmp_path / 'dev/board'}: " in caplog.text
    assert mode_of(tmp_path / "nodes/ttyACM1") == 0o666  # it is granted all the same
    links.keep_only([])


def test_without_root_nothing_is_made_and_nothing_granted(nodes: Nodes, tmp_path: Path) -> None:
    nodes.appear("9-1")
    links = Links(nodes.list_parts, None)
    paths = links.update("board", "9-1", RW)
    assert paths["tty0"] == str(tmp_path / "nodes/ttyACM1")
    assert mode_of(paths["tty0"]) == 0o600
    assert links.directory("board") is None
    links.remove("board")
    links.keep_only([])
    assert [p.name for p in tmp_path.iterdir()] == ["nodes"]


def test_its_directory_has_a_path(links: Links, tmp_path: Path) -> None:
    assert links.directory("board") == str(tmp_path / "dev/board")


# -- grants


def test_every_node_is_granted_also_one_that_appears_later(nodes: Nodes, links: Links) -> None:
    nodes.appear("9-1")
    assert {mode_of(path) for path in links.update("board", "9-1", RW).values()} == {0o666}
    nodes.add("9-1", "hidraw", "hidraw0")
    assert mode_of(links.update("board", "9-1", RW)["hidraw0"]) == 0o666
    nodes.add("9-1", "hidraw", "hidraw0")  # another one, before anybody has looked
    assert mode_of(links.update("board", "9-1", RW)["hidraw0"]) == 0o666


def test_what_is_granted_by_nobody_stays_as_the_system_has_it(nodes: Nodes, links: Links) -> None:
    nodes.appear("9-1")
    assert mode_of(links.update("board", "9-1", Access())["tty0"]) == 0o600


def test_grants_end_with_the_device(nodes: Nodes, links: Links) -> None:
    """Whoever plays with the same node later is granted it anew, as the same file may be there."""
    nodes.appear("9-1")
    tty = links.update("board", "9-1", RW)["tty0"]
    Path(tty).chmod(0o600)
    links.remove("board")
    assert mode_of(links.update("board", "9-1", RW)["tty0"]) == 0o666


def test_a_node_that_goes_and_comes_is_granted_again(nodes: Nodes, links: Links) -> None:
    nodes.appear("9-1")
    links.update("board", "9-1", RW)
    nodes.remove("9-1", "ttyACM1")
    links.update("board", "9-1", RW)
    nodes.add("9-1", "tty", "ttyACM1")
    assert mode_of(links.update("board", "9-1", RW)["tty0"]) == 0o666


def test_a_node_that_goes_while_it_is_granted_is_no_failure(
    nodes: Nodes, links: Links, tmp_path: Path
) -> None:
    nodes.appear("9-1")
    (tmp_path / "nodes/bus/usb/009/001").unlink()  # udev has not told yet
    paths = links.update("board", "9-1", RW)
    assert set(paths) == {"usb", "tty0"}
    assert mode_of(paths["tty0"]) == 0o666


def test_udev_that_handles_a_node_again_has_reset_it(
    nodes: Nodes, links: Links, tmp_path: Path
) -> None:
    nodes.appear("9-1")
    tty = links.update("board", "9-1", RW)["tty0"]
    handled = tmp_path / "udev/c0:0"  # what a plain file's number is
    handled.parent.mkdir()
    for time in (1, 2):
        Path(tty).chmod(0o600)
        handled.touch()
        os.utime(handled, (time, time))
        assert mode_of(links.update("board", "9-1", RW)["tty0"]) == 0o666
    Path(tty).chmod(0o640)
    for _ in range(3):  # whoever does that has reasons
        assert mode_of(links.update("board", "9-1", RW)["tty0"]) == 0o640


def test_udev_knows_a_disk_as_a_block_device_and_all_else_as_characters(tmp_path: Path) -> None:
    disks = [path for path in Path("/dev").iterdir() if path.is_block_device()]
    for letter, node in [("c", Path("/dev/null")), *(("b", disk) for disk in disks[:1])]:
        links = Links(lambda bus_id: [], tmp_path / "dev", tmp_path / "udev")
        number = node.stat().st_rdev
        about = tmp_path / f"udev/{letter}{os.major(number)}:{os.minor(number)}"
        about.parent.mkdir(exist_ok=True)
        about.touch()
        assert links._grant_of(str(node), Access()).handled == about.stat().st_mtime_ns


OUR_USER, OUR_GROUP = pwd.getpwuid(os.geteuid()).pw_name, grp.getgrgid(os.getegid()).gr_name


@pytest.mark.parametrize(
    ("access", "kept"),
    [
        (Access(group=OUR_GROUP), "st_uid"),
        (Access(user="nobody at all"), "st_uid"),
        (Access(user=OUR_USER), "st_gid"),
        (Access(group="no such group"), "st_gid"),
    ],
)
def test_who_has_a_node_keeps_it_unless_another_is_named(
    nodes: Nodes, links: Links, access: Access, kept: str
) -> None:
    nodes.appear("9-1")
    tty = Path(links.update("board", "9-1", Access())["tty0"])
    if os.geteuid() == 0:
        os.chown(tty, 1000, 1000)
    before = getattr(tty.stat(), kept)
    links.update("board", "9-1", access)
    assert getattr(tty.stat(), kept) == before


@pytest.mark.parametrize("access", [Access(user="nobody at all"), Access(group="no such group")])
def test_somebody_who_is_not_known_here_changes_nothing(
    nodes: Nodes, links: Links, access: Access, caplog: pytest.LogCaptureFixture
) -> None:
    nodes.appear("9-1")
    tty = Path(links.update("board", "9-1", access._replace(mode=0o660))["tty0"])
    found = tty.stat()
    assert (found.st_uid, found.st_gid, mode_of(tty)) == (os.geteuid(), os.getegid(), 0o660)
    assert f"there is no {'user' if access.user else 'group'} " in caplog.text


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give things away")
def test_a_node_is_given_to_a_user_and_to_a_group(nodes: Nodes, links: Links) -> None:
    group = grp.getgrnam("daemon")
    nodes.appear("9-1")
    tty = Path(links.update("board", "9-1", Access(group="daemon"))["tty0"])
    assert (tty.stat().st_uid, tty.stat().st_gid) == (0, group.gr_gid)
    links.update("board", "9-1", Access(user="nobody"))
    assert (tty.stat().st_uid, tty.stat().st_gid) == (65534, group.gr_gid)


# -- names


@pytest.mark.parametrize(
    ("nodes", "names"),
    [
        ([("tty", "/dev/ttyUSB7"), ("tty", "/dev/ttyUSB3")], ["tty0", "tty1"]),
        ([("block", "/dev/sda"), ("block", "/dev/sdaa")], ["disk", "disk1"]),
        ([("block", "/dev/nvme0n1"), ("block", "/dev/nvme0n1p2")], ["disk", "disk-part2"]),
        ([("block", "/dev/mmcblk0"), ("block", "/dev/mmcblk0boot0")], ["disk", "disk1"]),
        (
            [("block", f"/dev/{name}") for name in ("sda", "sdb", "sdb1", "sda1", "sdc")],
            ["disk", "disk1", "disk1-part1", "disk-part1", "disk2"],
        ),
        ([("usb", "/dev/bus/usb/001/002")], ["usb"]),
        (
            [("sound", "/dev/snd/pcmC1D0p"), ("sound", "/dev/snd/pcmC1D1p")],
            ["pcmCD0p0", "pcmCD1p0"],
        ),
        ([("sound", "/dev/snd/controlC12")], ["controlC0"]),
        ([("input", "/dev/input/js0"), ("input", "/dev/input/js1")], ["js0", "js1"]),
    ],
)
def test_names_do_not_depend_on_what_else_is_attached(
    nodes: list[tuple[str, str]], names: list[str]
) -> None:
    assert list(name_nodes(nodes)) == names
    assert list(name_nodes(nodes).values()) == [node for _, node in nodes]
