"""sharing: what names, rules and the queue cost.

* A device that is attached by its name, on a server with 1,000 names and 100 rules, and the same
  device on the same server without any; the server loads its configuration again in between.
* From the moment at which the holder is told to detach until the node exists at the client that
  waits for it, and a fresh attach by that client, both seen from outside (the host).
* A listing of 30 devices with those names and rules, and without, in a process that is warm; and
  when all of it has to be decided again. Runs in the machine of `enumerate`.
"""

from __future__ import annotations

import json
import signal
import time
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.kernel.guest import Running
from tests.kernel.lab import until
from tests.kernel.product import devices
from tests.kernel.vm import VM

from bench import report
from bench.attaching import Pair, Thing, plug, restored, start_client, start_ours, things
from bench.enumerating import plug as plug_many
from bench.machines import PYTHON, machines, obstacle

__all__ = ["obstacle", "run"]

CONFIG = "/run/bench.config"
NAMES, RULES = 1000, 100


def run(pairs: int) -> list[report.Row]:
    return [*attaching(pairs), *listing(pairs)]


def configuration(serial: str) -> str:
    """As JSON, which is YAML; the rules are in the way of the device, and do not mean it."""
    names = {f"name{number}": {"serial": f"NOBODY{number}"} for number in range(NAMES - 1)}
    rules = [{"deny": {"serial": f"NOBODY-{number}-*"}} for number in range(RULES)]
    return json.dumps({"server": {"names": {**names, "bench": {"serial": serial}}, "share": rules}})


def attaching(pairs: int) -> list[report.Row]:
    with (
        TemporaryDirectory() as place,
        machines("server", "client", "other") as (server, client, other),
    ):
        plug(server, Path(place))
        server.sh(f"echo '{{}}' > {CONFIG}").ok()
        running = start_ours(server, f"--config {CONFIG}")
        pair, holder = (Pair(server, vm, start_client(vm)) for vm in (client, other))
        thing = things(server)[0]
        a, b = report.in_turns(
            pairs, partial(attach_named, pair, thing, running), partial(attach_plain, pair, thing)
        )
        handed, fresh = report.in_turns(
            pairs, partial(hand_over, pair, holder, thing), partial(attach_fresh, pair, thing)
        )
    target, handing = report.Target(1.1), report.Target(1.3)
    what = "sharing: detached there until the node is here"
    return [
        report.compare("sharing: attach by name, 1000 names, 100 rules", a, b, "ms", target),
        report.compare(what, handed, fresh, "ms", handing),
    ]


def attach_named(pair: Pair, thing: Thing, running: Running) -> float:
    load(pair.server, running, configuration("BENCH2"))
    try:
        return finish(pair, thing, pair.order("named", "bench", thing.node))
    finally:
        load(pair.server, running, "{}")


def load(server: VM, running: Running, text: str) -> None:
    server.sh(f"cat > {CONFIG}", stdin=text).ok()
    running.send_signal(signal.SIGHUP)
    running.wait_for("loaded again", 60)


def attach_plain(pair: Pair, thing: Thing) -> float:
    return finish(pair, thing, pair.order("ours", thing.bus_id, thing.node))


def finish(pair: Pair, thing: Thing, answer: str) -> float:
    give_back(pair, thing)
    return float(json.loads(answer)["ms"])


def give_back(pair: Pair, thing: Thing) -> None:
    pair.order("ours_back", thing.bus_id)
    restored(pair, thing)


def attach_fresh(pair: Pair, thing: Thing) -> float:
    start = time.perf_counter()
    pair.order("ours", thing.bus_id, thing.node)
    taken = (time.perf_counter() - start) * 1000
    give_back(pair, thing)
    return taken


def hand_over(pair: Pair, holder: Pair, thing: Thing) -> float:
    holder.order("ours", thing.bus_id, thing.node)
    pair.begin("waits", thing.bus_id, thing.node)
    until(lambda: devices(pair.server)[thing.bus_id]["waiting"] == 1)
    start = time.perf_counter()
    holder.begin("ours_back", thing.bus_id)
    pair.done()
    taken = (time.perf_counter() - start) * 1000
    holder.done()
    give_back(pair, thing)
    return taken


def listing(pairs: int) -> list[report.Row]:
    with machines("many") as (vm,):
        plug_many(vm)
        measured = vm.sh(f"{PYTHON} -m bench.guest_sharing {pairs}", timeout=600).ok()
    numbers = json.loads(measured.out)
    (known, plain), (changed, changed_plain) = numbers["known"], numbers["changed"]
    what = "sharing: listing 30 devices, 1000 names, 100 rules"
    return [
        report.compare(what, known, plain, "ms", report.Target(1.1)),
        report.compare(f"{what}, after a change", changed, changed_plain, "ms"),
    ]
