"""How long an agent waits: for servers, for this machine, for people.

Rule of this file: numbers, and why they are what they are. Who waits gets them as an argument.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Times:
    """Seconds, but for `flapping`.

    Attributes:
        look_again: after an event of this machine, until we look once more: udev tells that a
            device is gone before vhci-hcd calls its port free.
        storm: after a look, in which events are taken together: each part of a new device makes
            some, and each look would be in the way of udev and the drivers.
        look_around: after the start, in which a server may only not have been heard of yet: three
            questions by mDNS within 0.25 s, and an answer over TCP.
        unheard: after the start; a server of which nothing was heard by then is as good as dead.
        slow_look: between two looks without any event: a backstop, should one have been missed.
        tick: between two looks at the clock, while time alone may change what we say.
        settle: in which a server may not have told yet that a device is ours.
        last_word: that a server may take to say why what is over here is over.
        ask_again: between two questions for the end of a session that a server has only just seen.
        free_again: doubled each time, between two tries to free a vhci port (FACTS: `usbip` fails
            now and then).
        claim_again: after the start, in which those for whom we held a device may come back.
        answer: until whoever makes a wish is told in any case how it goes.
        adopt_after: after which an attachment that nobody here has made is followed, too.
        first_delay, longest_delay: between two tries, doubled with each failure; some of it by
            chance.
        flapping, within: a device that was lost so many times within so many seconds is attached
            again with delay.

    """

    look_again: float = 0.3
    storm: float = 0.05
    look_around: float = 0.6
    unheard: float = 10.0
    slow_look: float = 60.0
    tick: float = 1.0
    settle: float = 5.0
    last_word: float = 3.0
    ask_again: float = 0.25
    free_again: float = 0.25
    claim_again: float = 10.0
    answer: float = 30.0
    adopt_after: float = 5.0
    first_delay: float = 0.5
    longest_delay: float = 30.0
    flapping: int = 5
    within: float = 60.0
