"""mDNS (RFC 6762) and DNS-SD (RFC 6763): advertise this server, browse for others.

Rule of this folder: the only importer of zeroconf and ifaddr. Discovery is an optimisation: what
fails here is a warning, and the configured servers work all the same.
"""

TYPE = "_usbremote._tcp.local."
