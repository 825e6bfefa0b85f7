"""Every command with its options; what they do is in the other files of this folder."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
import typer.core

from usb_remote import __version__
from usb_remote.config import Config, load_in_force
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
Json = Annotated[bool, typer.Option("--json", help="Print JSON (docs/reference/json.md).")]
Wait = Annotated[
    float, typer.Option("--wait", min=0, help="Look for servers for at least this many seconds.")
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

    finding.list_devices(_options.loaded, host, wait, as_json=json)


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
    finding.find(_options.loaded, query, as_json=json)


class _AttachCommand(typer.core.TyperCommand):
    """``--wait`` may stand alone: then it waits for as long as it takes."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, ["--wait=0" if a == "--wait" else a for a in args])


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
    json: Json = False,
) -> None:
    """Make a device of a server appear on this machine."""
    from usb_remote.cli import attaching

    query = _query(device, id, serial, desc, bus, host, first)
    attaching.attach(_options.loaded, query, wait, duration, force=force, as_json=json)


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
    attaching.detach(_options.loaded, query, as_json=json)


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
def watch(host: Host = None, json: Json = False) -> None:
    """Show every plug, pull, attach and detach until Ctrl-C."""
    from usb_remote.cli import watching

    watching.watch(_options.loaded, host, as_json=json or not sys.stdout.isatty())


@app.command()
def info(host: Host = None, json: Json = False, wait: Wait = 0) -> None:
    """Show the servers: name, version, addresses, ports."""
    from usb_remote.cli import finding

    finding.info(_options.loaded, host, wait, as_json=json)


@app.command()
def server(
    virtual: Annotated[
        bool, typer.Option("--virtual", help="Share three devices that are programs.")
    ] = False,
    name: Annotated[str | None, typer.Option(help="What clients call this server.")] = None,
    listen: Annotated[list[str] | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="TCP port of the control protocol.")
    ] = None,
    usbip_port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="TCP port for USB/IP.")
    ] = None,
    advertise: Annotated[
        bool | None, typer.Option("--advertise/--no-advertise", help="Announce by mDNS.")
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
def config_path() -> None:
    """Show which file is in force, and where files are looked for."""
    from usb_remote.cli import configuring

    configuring.show_path(_options.config)


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
