"""Which checks there are for whom, all at once, and within a few seconds.

Rule of this file: a check that fails itself is a finding like any other; nothing stops the others.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass
from functools import partial

from usb_remote import errors, identity, protocol, vhci
from usb_remote.config import Config
from usb_remote.doctor import firewall, kernel, local, multicast, path, ports, servers
from usb_remote.doctor.machine import Machine
from usb_remote.doctor.report import Check, Finding, Report, Role, failed, ok, skipped, warning
from usb_remote.matching import is_called, is_same_server
from usb_remote.mdns.probe import Probed
from usb_remote.model import Server

LONGEST = 8.0
"""Seconds after which a check is given up; each has shorter limits of its own."""

Findings = Finding | list[Finding]
Heard = asyncio.Task[tuple[list[Server], OSError | None]]


Look = tuple[Check, Callable[[], Findings | Awaitable[Findings]]]
"""A check by its name, and how it is done: at once or in some time."""


@dataclass(frozen=True)
class Doctor:
    """Examines this machine, and the way to its servers.

    Args:
        machine: what is looked at.
        config: of client and server; or why there is none.
        browse: looks for servers by mDNS, once.
        probe: tries multicast on each interface.
        version: of usb-remote here.

    """

    machine: Machine
    config: Config | errors.ConfigError
    browse: Callable[[], AsyncIterator[Server]]
    probe: Callable[[], Awaitable[list[Probed]]]
    version: str

    async def examine(self, role: Role | None = None, host: str | None = None) -> Report:
        """Everything that is worth a look, for this role or for what the machine seems to be."""
        here = await local.ask_here(self._config.server)
        roles, why = self._roles(role, here)
        heard = asyncio.create_task(self._heard())
        looks: list[Look] = [(Check.CONFIGURATION, self._configuration)]
        if Role.CLIENT in roles:
            looks += self._as_client()
        if Role.SERVER in roles:
            looks += self._as_server(here, heard, asked=role is not None)
        looks += self._multicast(Role.SERVER if Role.SERVER in roles else Role.CLIENT)
        if Role.CLIENT in roles or host:
            looks.append((Check.SERVERS, partial(self._servers, host, heard)))
        found = await asyncio.gather(*(_safely(check, look) for check, look in looks))
        await asyncio.gather(heard, return_exceptions=True)
        findings = tuple(finding for findings in found for finding in findings)
        return Report(roles=roles, why=why, findings=findings)

    @property
    def _config(self) -> Config:
        return Config() if isinstance(self.config, errors.ConfigError) else self.config

    def _roles(self, role: Role | None, here: path.Answer) -> tuple[tuple[Role, ...], str]:
        if role is not None:
            return (role,), "you said so"
        if here.info is not None:
            return (Role.CLIENT, Role.SERVER), "a server runs here"
        if self.machine.exists("sys/module/usbip_host"):
            return (Role.CLIENT, Role.SERVER), "usbip_host is loaded"
        return (Role.CLIENT,), "no server runs here, and usbip_host is not loaded"

    def _configuration(self) -> Finding:
        if isinstance(self.config, errors.ConfigError):
            return failed(Check.CONFIGURATION, self.config.message, "usb-remote config path")
        return ok(Check.CONFIGURATION, "the configuration is right, or there is none")

    # -- this machine

    def _as_client(self) -> list[Look]:
        machine = self.machine
        driver = vhci.Vhci(machine.root / "sys", machine.root / "var/run/vhci_hcd")
        module = Check.CLIENT_MODULE
        return [
            (module, lambda: kernel.check_module(machine, module, "vhci_hcd")),
            (Check.USBIP_TOOL, lambda: kernel.check_tool(machine)),
            (Check.PERMISSION, lambda: kernel.check_permission(machine)),
            (Check.AGENT, lambda: kernel.check_agent(machine)),
            (Check.VHCI_PORTS, lambda: kernel.check_vhci_ports(driver.count_ports())),
            (Check.ATTACHMENTS, lambda: self._attachments(driver)),
        ]

    def _attachments(self, driver: vhci.Vhci) -> Awaitable[list[Finding]]:
        return local.check_attachments(
            driver.list_attachments(), self._config.server_at, identity.server_id("client")
        )

    def _as_server(self, here: path.Answer, heard: Heard, *, asked: bool) -> list[Look]:
        machine, config = self.machine, self._config.server
        runs = here.info is not None
        usbip = here.info.usbip_port if here.info else config.usbip_port or vhci.PORT
        both = (config.port or protocol.PORT, usbip)
        return [
            (Check.SERVER_MODULE, self._server_module),
            (
                Check.SERVER,
                lambda: local.check_server(machine, config, here, self.version, asked=asked),
            ),
            (
                Check.SERVER_USBIP_PORT,
                lambda: ports.check_usbip_port_here(machine, usbip, served=runs),
            ),
            (
                Check.SERVER_PERMISSION,
                lambda: local.check_server_permission(machine, config, runs=runs),
            ),
            (Check.SERVER_DEVICES, lambda: kernel.check_devices(machine)),
            (Check.FIREWALL, lambda: firewall.check_firewall(machine, both)),
            (Check.ANNOUNCED, lambda: self._announced(here, heard)),
        ]

    async def _server_module(self) -> Finding:
        check = Check.SERVER_MODULE
        if local.is_virtual(self.machine, self._config.server):
            return skipped(check, "the server's devices are virtual, so it needs no module")
        return await kernel.check_module(self.machine, check, "usbip_host")

    async def _announced(self, here: path.Answer, heard: Heard) -> Finding:
        found, _ = await asyncio.shield(heard)
        return local.check_announced(here, found, advertise=self._config.server.advertise)

    def _multicast(self, role: Role) -> list[Look]:
        return [
            (Check.MDNS_PORT, lambda: ports.check_mdns_port(self.machine, role)),
            (Check.MULTICAST_OUT, lambda: self._probed(role)),
        ]

    async def _probed(self, role: Role) -> list[Finding]:
        probed = multicast.linked(self.machine, await self.probe())
        return [multicast.check_out(probed), multicast.check_in(probed, role)]

    # -- servers

    async def _servers(self, host: str | None, browsing: Heard) -> list[Finding]:
        """Each one that is configured, named or heard; one finding if there is none."""
        heard, error = await asyncio.shield(browsing)
        chosen = self._named(host, heard) if host else self._all(heard)
        if not chosen:
            return [_nobody(error)]
        ways = [
            servers.check_path(self.machine, s, is_heard, self.version) for s, is_heard in chosen
        ]
        found = await asyncio.gather(*ways)
        return [
            ok(Check.SERVERS, f"{_count(len(chosen))}: {', '.join(s.name for s, _ in chosen)}"),
            *(finding for findings in found for finding in findings),
        ]

    async def _heard(self) -> tuple[list[Server], OSError | None]:
        if not self._config.discovery:
            return [], None
        try:
            return [server async for server in self.browse()], None
        except OSError as error:
            return [], error

    def _named(self, host: str, heard: Iterable[Server]) -> list[tuple[Server, bool]]:
        by_name = [server for server in heard if is_called(server, host)]
        configured = [s for s in self._config.configured_servers if is_called(s, host)]
        if by_name:
            return [(by_name[0], True)]
        return [(configured[0] if configured else self._config.server_at(host), False)]

    def _all(self, heard: Iterable[Server]) -> list[tuple[Server, bool]]:
        """Those that are heard go by the name that the configuration gives them."""
        heard = {server.id or server.name: server for server in heard}.values()
        silent = [
            (configured, False)
            for configured in self._config.configured_servers
            if not any(is_same_server(configured, server) for server in heard)
        ]
        return [*silent, *((server, True) for server in heard)]


def _count(number: int) -> str:
    return "1 server" if number == 1 else f"{number} servers"


def _nobody(error: OSError | None) -> Finding:
    why = f" ({error})" if error else ""
    return failed(
        Check.SERVERS,
        f"no server is heard by mDNS, and none is configured{why}; one that runs is not reached by "
        "multicast",
        "usb-remote config add-server HOST  # or, where the devices are: sudo usb-remote server",
    )


async def _safely(
    check: Check, look: Callable[[], Findings | Awaitable[Findings]]
) -> list[Finding]:
    try:
        async with asyncio.timeout(LONGEST):
            found = look()
            found = await found if isinstance(found, Awaitable) else found
    except TimeoutError:
        found = skipped(check, f"gave up after {LONGEST:g} s")
    except Exception as error:  # whatever it is, the other checks are worth seeing
        found = warning(check, f"this check itself failed: {type(error).__name__}: {error}")
    return found if isinstance(found, list) else [found]
