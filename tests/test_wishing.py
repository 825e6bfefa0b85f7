"""`status` and `detach`: what they print of what the agent says."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.commands import Shell
from tests.residing import Here
from usb_remote.agent_protocol import Attached, Kind, Loss, Stage, Status, Told
from usb_remote.cli import output
from usb_remote.cli.wishing import describe
from usb_remote.model import Attachment, Cause, Device, Server
from usb_remote.values import BusId

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
SCOPE = Device(bus_id=BusId("1-1"), vendor_id="0403", product_id="6001", name="scope")
HERE = Attached(
    server=Server(name="pi"), device=SCOPE, attachment=Attachment(vhci_port=3), directory="/dev/x"
)


@pytest.fixture
def shell(here: Here, tmp_path: Path) -> Shell:
    return Shell(tmp_path, here.socket)


def described(**more: object) -> list[str]:
    """All but the first line."""
    words = {"wish": "scope", "name": "x", "kind": Kind.KEPT, "by": "ann", "since": NOW, **more}
    first, *others = describe(Status.model_validate(words))
    at = output.local_time(NOW)
    assert first == f"x  {more.get('stage', Stage.ABSENT)} since {at}  (kept by ann: scope)"
    return others


def test_a_wish_says_what_is_known_of_it_and_nothing_else() -> None:
    at = output.local_time(NOW)
    assert described() == []
    device = output.describe_device(HERE.match)
    assert described(stage=Stage.ATTACHED, attached=HERE, note="soon") == [
        f"  {device}", "  vhci port 3, /dev/x", "  soon",
    ]  # fmt: skip
    error = Told(code="system", message="failed")
    assert described(error=error) == ["  failed"]
    hint = error.model_copy(update={"hint": "look"})
    assert described(error=hint, retry_at=NOW) == [
        f"  failed; trying again at {at}",
        "  hint: look",
    ]
    assert described(stage=Stage.ENDED) == ["  usb-remote attach scope asks for it again"]


def test_a_wish_tells_of_its_newest_losses() -> None:
    losses = [Loss(at=NOW, by=str(number), cause=Cause.TAKEN_OVER) for number in range(5)]
    at = output.local_time(NOW)
    assert described(losses=losses) == [f"  lost {at}: taken over by {n}" for n in (2, 3, 4)]


async def test_the_wishes_of_the_agent_are_for_people_and_for_programs(
    here: Here, shell: Shell
) -> None:
    status, out, err = await shell.run("status")
    assert (status, out, err.count("nothing is wished for")) == (0, "", 1)
    await here.attach("1-1", keep=True)
    status, out, err = await shell.run("status")
    assert (status, err) == (0, "")
    assert out.startswith("1-1  attached since ")
    status, out, err = await shell.run("status", "--json")
    assert (status, err) == (0, "")
    (wish,) = json.loads(out)["wishes"]
    assert (wish["name"], wish["stage"]) == ("1-1", "attached")


async def test_without_an_agent_nothing_is_wished_for(tmp_path: Path) -> None:
    status, out, err = await Shell(tmp_path, "").run("status")
    assert (status, out) == (3, "")
    assert "there is no agent on this machine" in err


async def test_what_is_detached_is_said(here: Here, shell: Shell) -> None:
    await here.attach("1-1", keep=True)
    port = (await here.attach("1-2"))["attachment"]["vhci_port"]
    status, out, err = await shell.run("detach", "1-1")
    assert (status, out.startswith("detached: ")) == (0, True)
    assert "not kept any more: 1-1" in err
    status, out, _ = await shell.run("detach", "1-2", "--json")
    said = json.loads(out)
    assert (status, said["device"]["bus_id"], said["vhci_port"]) == (0, "1-2", port)
