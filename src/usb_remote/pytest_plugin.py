"""The pytest plugin: a test says which device it needs, and has it as long as it runs.

Rule of this file: the device is asked for, held and given back with the functions that everybody
has (blocking.py); what is here is how pytest says it. Registered as an entry point in pyproject.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from usb_remote.agent_protocol import Loss
    from usb_remote.blocking import AttachedDevice

WAIT = 60.0
"""Seconds that a test waits for its devices, unless --usb-wait says otherwise."""
MARKER = (
    "usb(device=None, *, id, serial, desc, bus, host, first, name, wait, force): a device that the "
    "fixture usb_device attaches for this test (usb-remote)"
)
DEVICES = pytest.StashKey[list["AttachedDevice"]]()
"""What a test has attached, for its report."""
NETWORK = pytest.StashKey[bool]()
"""Whether a test has failed after the network had lost its device."""


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("usb-remote", "USB devices on the network")
    group.addoption(
        "--usb-wait",
        type=float,
        default=WAIT,
        metavar="SECONDS",
        help="how long a test waits for its USB devices (default: %(default)s; 0: for ever)",
    )
    group.addoption(
        "--usb-rerun-infra",
        type=int,
        default=0,
        metavar="N",
        help="repeat a test, at most N times, that failed after the network or a server had lost "
        "its device, or had not let it be reached; not if the device itself went away, or somebody "
        "else took it",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", MARKER)


@pytest.fixture
def usb_devices(request: pytest.FixtureRequest) -> Iterator[list[AttachedDevice]]:
    """The devices of all `usb` markers of this test, the nearest marker first."""
    markers = list(request.node.iter_markers("usb"))
    if not markers:
        pytest.fail(
            f"{request.node.nodeid}: which device? mark it with @pytest.mark.usb('SERVER/NAME')",
            pytrace=False,
        )
    with ExitStack() as stack:
        devices = _attached(stack, markers, request)
        request.node.stash.setdefault(DEVICES, []).extend(dict.fromkeys(devices))
        yield devices


def _attached(
    stack: ExitStack, markers: list[pytest.Mark], request: pytest.FixtureRequest
) -> list[AttachedDevice]:
    """Attach all until the stack is closed; what is wrong is said in our words, with no trace."""
    from usb_remote import attach_all, errors, wanted

    wait = request.config.getoption("--usb-wait")
    try:
        devices = [wanted(*m.args, **{"wait": wait, **m.kwargs}) for m in markers]
        return list(stack.enter_context(attach_all(devices)))
    except errors.UsbRemoteError as error:
        request.node.stash[NETWORK] = isinstance(error, errors.Unreachable)
        hint = f"\nhint: {error.hint}" if error.hint else ""
        pytest.fail(f"usb-remote: {error.message}{hint}", pytrace=False)


@pytest.fixture
def usb_device(usb_devices: list[AttachedDevice]) -> AttachedDevice:
    """The device of the `usb` marker of this test."""
    return usb_devices[0]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Say in the report of a failed test what its devices went through."""
    report: pytest.TestReport = yield  # type: ignore[assignment]
    devices = item.stash.get(DEVICES, [])
    for device in devices if report.failed and report.when == "call" else ():
        device.hear_why()
    losses = [(device.name, loss) for device in devices for loss in device.losses]
    if report.failed and losses:
        lines = [_describe(name, loss) for name, loss in losses]
        report.sections.append(("USB devices that were lost during this test", "\n".join(lines)))
        if all(loss.blame == "network" for _, loss in losses):
            item.stash[NETWORK] = True
    return report  # type: ignore[return-value]


def _describe(name: str, loss: Loss) -> str:
    whose = {
        "network": "the network or the server, not the device and not this test",
        "user": "another user",
        "device": "the device itself (or whoever unplugged it)",
    }
    return f"{name} was lost at {loss.at:%H:%M:%S} UTC: {loss}; the cause: {whose[loss.blame]}"


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """Repeat what only the network has made fail."""
    repeats = item.config.getoption("--usb-rerun-infra")
    if not repeats or item.get_closest_marker("usb") is None:
        return None
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for attempt in range(repeats + 1):
        reports = _run_once(item, nextitem)
        is_last = attempt == repeats or not item.stash.get(NETWORK, False)
        for report in reports:
            if not is_last and report.failed:
                report.outcome = "rerun"  # type: ignore[assignment]
            item.ihook.pytest_runtest_logreport(report=report)
        if is_last:
            break
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def _run_once(item: pytest.Item, nextitem: pytest.Item | None) -> list[pytest.TestReport]:
    from _pytest.runner import runtestprotocol

    item.stash[DEVICES], item.stash[NETWORK] = [], False
    if hasattr(item, "_request"):
        item._initrequest()  # type: ignore[attr-defined]
    return runtestprotocol(item, nextitem=nextitem, log=False)


def pytest_report_teststatus(report: pytest.TestReport) -> tuple[str, str, str] | None:
    """How a repeated test is shown, as pytest-rerunfailures does."""
    return ("rerun", "R", "RERUN") if report.outcome == "rerun" else None  # type: ignore[comparison-overlap]
