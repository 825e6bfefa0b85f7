"""Every command with its options; what they do is in the other files of this folder.

The reference, the man page and the completions are made of this file: `make generate`.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
import typer.core

from usb_remote import __version__
from usb_remote.config import Config
from usb_remote.config_file import find_path, load_in_force
from usb_remote.matching import Query

app = typer.Typer(
    help="USB devices on your network, as if they were plugged in here.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
config_app = typer.Typer(
    help="Show or change the configuration file.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(config_app, name="config")


def obey() -> None:
    """Do what the command line says, and exit.

    Raises:
        UsageError: it makes no sense.

    """
    try:
        status = app(prog_name="usb-remote", standalone_mode=False)
    except typer.TyperException as error:
        raise _explained(error) from None
    sys.exit(status if isinstance(status, int) else 0)


def _explained(error: typer.TyperException) -> BaseException:
    """In our form; no arguments at all are no mistake, but a wish for help."""
    from usb_remote.errors import UsageError

    context = getattr(error, "ctx", None)
    said = error.format_message().rstrip(".")
    if context is not None and error.format_message() == context.get_help():
        print(error.format_message(), file=sys.stderr)
        return SystemExit(error.exit_code)
    command = context.command_path if context is not None else "usb-remote"
    return UsageError(said, hint=f"{command} --help")


@dataclass
class _Options:
    """What stands before the command."""

    config: Path | None = None

    @property
    def loaded(self) -> Config:
        return load_in_force(self.config)


_options = _Options()

Handle = Annotated[
    str | None,
    typer.Argument(
        metavar="DEVICE",
        help="A device's name, id, bus id or serial number, or SERVER/ and one of these.",
        show_default=False,
    ),
]
Id = Annotated[
    str | None, typer.Option("--id", "-d", help="Hardware id such as 0403:6001, or device id.")
]
Serial = Annotated[str | None, typer.Option("--serial", "-s", help="Serial number.")]
Desc = Annotated[str | None, typer.Option("--desc", help="Part of the description.")]
Bus = Annotated[str | None, typer.Option("--bus", "-b", help="Bus id such as 1-1.4.")]
Host = Annotated[
    str | None, typer.Option("--host", "-H", help="Only this server: its name or address.")
]
First = Annotated[bool, typer.Option("--first", "-f", help="Take the first of several matches.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Wait = Annotated[
    float,
    typer.Option("--wait", min=0, metavar="SECONDS", help="Look for servers for at least so long."),
]


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"usb-remote {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print version."),
    ] = False,
    config: Annotated[
        Path | None, typer.Option("--config", help="Configuration file to use.")
    ] = None,
    debug: Annotated[
        bool, typer.Option("--debug", help="Tell on stderr what is going on.")
    ] = False,
) -> None:
    from usb_remote.cli.output import log_to_stderr

    log_to_stderr(verbose=debug)
    _options.config = config


@app.command("list")
def list_command(host: Host = None, json: Json = False, wait: Wait = 0) -> None:
    """List the USB devices of all servers."""
    from usb_remote.cli import finding

    finding.list_devices(_options.loaded, _options.config, host, wait, as_json=json)


@app.command()
def find(
    device: Handle = None,
    id: Id = None,
    serial: Serial = None,
    desc: Desc = None,
    bus: Bus = None,
    host: Host = None,
    first: First = False,
    json: Json = False,
) -> None:
    """Show the one device that matches."""
    from usb_remote.cli import finding

    query = _query(device, id, serial, desc, bus, host, first)
    finding.find(_options.loaded, _options.config, query, as_json=json)


class _AttachCommand(typer.core.TyperCommand):
    """``--wait`` may stand alone: then it waits for as long as it takes."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ours = self.count_ours(args)
        words = ["--wait=0" if a == "--wait" else a for a in args[:ours]]
        return super().parse_args(ctx, words + args[ours:])

    def count_ours(self, args: list[str]) -> int:
        return args.index("--") if "--" in args else len(args)


class _RunCommand(_AttachCommand):
    """What stands after the command is its own, also without ``--``."""

    def count_ours(self, args: list[str]) -> int:
        count = 0
        while count < len(args) and args[count].startswith("-") and args[count] != "--":
            count += 2 if args[count] == "--with" else 1
        return count


@app.command(cls=_AttachCommand)
def attach(
    device: Handle = None,
    id: Id = None,
    serial: Serial = None,
    desc: Desc = None,
    bus: Bus = None,
    host: Host = None,
    first: First = False,
    wait: Annotated[
        str | None,
        typer.Option(
            "--wait", metavar="[=TIME]", help="If it is in use, wait for it (for at most TIME)."
        ),
    ] = None,
    duration: Annotated[
        str | None,
        typer.Option("--for", metavar="TIME", help="Give it back by itself after 90s, 30m, 2h …"),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Take it from whoever has it.")] = False,
    keep: Annotated[
        bool | None,
        typer.Option(
            "--keep/--once", help="Attach it again whenever it was away, or do so no more."
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Of its directory below /dev/usb-remote (with an agent).")
    ] = None,
    json: Json = False,
) -> None:
    """Make a device of a server appear on this machine."""
    from usb_remote.cli import attaching

    query = _query(device, id, serial, desc, bus, host, first)
    attaching.attach(
        _options.loaded,
        _options.config,
        query,
        wait,
        duration,
        force=force,
        keep=keep,
        name=name,
        as_json=json,
    )


@app.command()
def detach(
    device: Handle = None,
    id: Id = None,
    serial: Serial = None,
    desc: Desc = None,
    bus: Bus = None,
    host: Host = None,
    first: First = False,
    json: Json = False,
) -> None:
    """Give a device back to its server."""
    from usb_remote.cli import attaching

    query = _query(device, id, serial, desc, bus, host, first)
    attaching.detach(_options.loaded, _options.config, query, as_json=json)


@app.command(cls=_RunCommand, context_settings={"allow_interspersed_args": False})
def run(
    devices: Annotated[
        list[str], typer.Option("--with", metavar="DEVICE", help="As in attach; may be repeated.")
    ],
    command: Annotated[
        list[str] | None,
        typer.Argument(metavar="-- COMMAND …", help="What to run, and its arguments."),
    ] = None,
    wait: Annotated[
        str | None,
        typer.Option("--wait", metavar="[=TIME]", help="Wait until all are there and free."),
    ] = None,
    fail_on_loss: Annotated[
        bool, typer.Option("--fail-on-loss", help="End with status 7 if a device was lost.")
    ] = False,
    notify: Annotated[
        bool,
        typer.Option("--notify", help="No command: tell systemd, and end when one is lost."),
    ] = False,
) -> None:
    """Run a command with devices attached as long as it runs."""
    from usb_remote.cli import running
    from usb_remote.cli.attaching import parse_time

    seconds = None if wait is None else parse_time("--wait", wait, least=0)
    status = running.run(
        _options.loaded,
        _options.config,
        devices,
        running.checked(command or [], notify=notify),
        seconds,
        fail_on_loss=fail_on_loss,
    )
    raise typer.Exit(status)


@app.command()
def release(
    device: Handle = None,
    id: Id = None,
    serial: Serial = None,
    desc: Desc = None,
    bus: Bus = None,
    host: Host = None,
    first: First = False,
    message: Annotated[
        str | None, typer.Option("--message", "-m", help="What to tell whoever has it.")
    ] = None,
    json: Json = False,
) -> None:
    """Ask whoever has a device to let it go."""
    from usb_remote.cli import arranging

    query = _query(device, id, serial, desc, bus, host, first)
    arranging.release(_options.loaded, query, message, as_json=json)


@app.command()
def name(
    device: Annotated[str, typer.Argument(metavar="DEVICE", help="As in attach.")],
    new_name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", help="Letters, digits, . _ -", show_default=False),
    ] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Take its name away.")] = False,
    host: Host = None,
    json: Json = False,
) -> None:
    """Name a device, for everybody who sees its server."""
    from usb_remote.cli import arranging

    query = _query(device, None, None, None, None, host, False)
    arranging.name(_options.loaded, query, new_name, remove=remove, as_json=json)


@app.command()
def history(
    device: Annotated[
        str | None, typer.Argument(metavar="DEVICE", help="As in attach; it may be unplugged.")
    ] = None,
    host: Host = None,
    json: Json = False,
) -> None:
    """Show who had which device, and why it ended, newest last."""
    from usb_remote.cli import arranging

    arranging.history(_options.loaded, device, host, as_json=json)


def _query(
    device: str | None,
    id: str | None,
    serial: str | None,
    desc: str | None,
    bus: str | None,
    host: str | None,
    first: bool,
) -> Query:
    from usb_remote.errors import UsageError

    query = Query(handle=device, id=id, serial=serial, desc=desc, bus=bus, host=host, first=first)
    if query == Query(first=first):
        raise UsageError(
            "which device?",
            hint="name it as SERVER/NAME, SERVER/BUS-ID or with --serial; see usb-remote list",
        )
    return query


@app.command()
def ports(json: Json = False) -> None:
    """List the devices that are attached to this machine."""
    from usb_remote.cli import attaching

    attaching.list_ports(as_json=json)


@app.command()
def status(json: Json = False) -> None:
    """Show what the agent of this machine keeps attached, and how that goes."""
    from usb_remote.cli import wishing

    wishing.show_status(_options.config, as_json=json)


@app.command()
def watch(host: Host = None, json: Json = False) -> None:
    """Show every plug, pull, attach and detach until Ctrl-C."""
    from usb_remote.cli import watching

    as_json = json or not sys.stdout.isatty()
    watching.watch(_options.loaded, _options.config, host, as_json=as_json)


@app.command()
def info(host: Host = None, json: Json = False, wait: Wait = 0) -> None:
    """Show the servers: name, version, addresses, ports."""
    from usb_remote.cli import finding

    finding.info(_options.loaded, _options.config, host, wait, as_json=json)


@app.command()
def server(
    virtual: Annotated[
        bool,
        typer.Option(
            "--virtual", help="Share three devices that are programs; needs no USB, no root."
        ),
    ] = False,
    name: Annotated[
        str | None, typer.Option(help="What clients call this server; default the host name.")
    ] = None,
    listen: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ADDRESS", help="IP address to listen on; may be repeated; default all."
        ),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            min=0, max=65535, help="TCP port of the control protocol, 5055; 0 takes a free one."
        ),
    ] = None,
    usbip_port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="TCP port for USB/IP, 3240; 0 takes a free one."),
    ] = None,
    advertise: Annotated[
        bool | None, typer.Option("--advertise/--no-advertise", help="Announce it by mDNS, or not.")
    ] = None,
) -> None:
    """Share the USB devices of this machine."""
    from usb_remote.cli import serving
    from usb_remote.config import overridden

    chosen = {
        "name": name,
        "listen": listen or None,
        "port": port,
        "usbip_port": usbip_port,
        "advertise": advertise,
    }
    given = {key: value for key, value in chosen.items() if value is not None}
    serving.serve(lambda: overridden(_options.loaded.server, given), virtual=virtual)


class _Service(StrEnum):
    server = "server"
    agent = "agent"


OfUser = Annotated[bool, typer.Option("--user", help="For this user, not for the machine.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")]


@app.command("install-service")
def install_service(
    service: Annotated[_Service, typer.Argument(help="What to run at boot.")],
    user: OfUser = False,
    dry_run: DryRun = False,
    start: Annotated[
        bool, typer.Option("--start/--no-start", help="Start it now, or only at the next boot.")
    ] = True,
) -> None:
    """Run the server, or the agent, at each boot of this machine (systemd)."""
    from usb_remote.cli import installing
    from usb_remote.services import Kind

    kind = Kind(service.value)
    installing.install(kind, _options.config, user=user, dry_run=dry_run, start=start)


@app.command("uninstall-service")
def uninstall_service(
    service: Annotated[_Service, typer.Argument(help="As it was installed.")],
    user: OfUser = False,
    dry_run: DryRun = False,
    purge: Annotated[
        bool, typer.Option("--purge", help="Forget names, history and group, too.")
    ] = False,
) -> None:
    """Undo install-service."""
    from usb_remote.cli import installing
    from usb_remote.services import Kind

    kind = Kind(service.value)
    installing.uninstall(kind, user=user, dry_run=dry_run, purge=purge)


@app.command()
def agent() -> None:
    """Keep devices attached to this machine, for all its users."""
    from usb_remote.cli import residing

    residing.serve(lambda: _options.loaded, find_path(_options.config))


@app.command()
def doctor(
    role: Annotated[
        str | None,
        typer.Argument(metavar="[server|client]", help="What to examine; default what it is."),
    ] = None,
    host: Host = None,
    fix: Annotated[bool, typer.Option("--fix", help="Mend what is safe, after asking.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    json: Json = False,
) -> None:
    """Find out what is wrong with this machine, or on the way to a server."""
    from usb_remote.cli import doctoring

    doctoring.examine(_options.config, role, host, fix=fix, yes=yes, as_json=json)


@app.command()
def demo() -> None:
    """Show on this machine, without USB and root, what usb-remote does."""
    from usb_remote.cli import demo as demonstration

    demonstration.run()


@config_app.command("show")
def config_show(json: Json = False) -> None:
    """Show the configuration that is in force."""
    from usb_remote.cli import configuring

    configuring.show(_options.config, as_json=json)


@config_app.command("path")
def config_path(json: Json = False) -> None:
    """Show which file is in force, and where files are looked for."""
    from usb_remote.cli import configuring

    configuring.show_path(_options.config, as_json=json)


@config_app.command("add-server")
def config_add_server(host: Annotated[str, typer.Argument(help="HOST or HOST:PORT.")]) -> None:
    """Ask this server too, besides those that mDNS finds."""
    from usb_remote.cli import configuring

    configuring.add_server(_options.config, host)


@config_app.command("rm-server")
def config_rm_server(host: Annotated[str, typer.Argument(help="As it was added.")]) -> None:
    """Do not ask this server any more."""
    from usb_remote.cli import configuring

    configuring.remove_server(_options.config, host)


@config_app.command("set-timeout")
def config_set_timeout(seconds: Annotated[float, typer.Argument(help="More than 0.")]) -> None:
    """Set how long a server may take to answer."""
    from usb_remote.cli import configuring

    configuring.set_timeout(_options.config, seconds)
