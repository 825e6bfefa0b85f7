"""Record what usb-remote 2.3.2 says, byte for byte, into tests/data/2x/.

Run it with the Python of an environment that has ``usb-remote==2.3.2`` and nothing of ours:

    python3 -m venv /tmp/2x && /tmp/2x/bin/pip install usb-remote==2.3.2
    /tmp/2x/bin/python tests/data/record_2x.py

Its real client and its real server talk over loopback; only the devices are made up, because the
machine that records needs none (tests/kernel runs the whole old program on real ones).
"""

import socket
import threading
from pathlib import Path

from usb_remote.api import DeviceRequest, ListRequest

from usb_remote import client, server, usbdevice

HERE = Path(__file__).parent / "2x"
DEVICES = [
    usbdevice.UsbDevice(
        bus_id="1-1.4", vendor_id="0403", product_id="6001", bus=1, port_numbers=(1, 4),
        device_name="/dev/bus/usb/001/005", serial="FT1ABC",
        description="Future Technology Devices International, Ltd FT232 Serial (UART) IC",
    ),
    usbdevice.UsbDevice(
        bus_id="2-1", vendor_id="46f4", product_id="0001", bus=2, port_numbers=(1,),
        device_name="/dev/bus/usb/002/002", serial=None, description="QEMU QEMU USB HARDDRIVE",
    ),
]  # fmt: skip
REQUESTS = {
    "list": ListRequest(),
    "find-serial": DeviceRequest(command="find", serial="FT1ABC"),
    "find-nothing": DeviceRequest(command="find", id="dead:beef"),
    "find-several": DeviceRequest(command="find", bus="*"),
    "find-first": DeviceRequest(command="find", bus="*", first=True),
    "attach": DeviceRequest(command="attach", bus="1-1.4"),
    "detach": DeviceRequest(command="detach", bus="1-1.4"),
}


def record(name: str, request: object) -> None:
    """Let the old client ask a socket of ours, and the old server answer what it said."""
    listener = socket.create_server(("127.0.0.1", 0))
    asking = threading.Thread(target=_ask, args=(request, listener.getsockname()[1]))
    asking.start()
    connection, _ = listener.accept()
    said = connection.recv(4096)
    (HERE / f"{name}.request").write_bytes(said)
    (HERE / f"{name}.reply").write_bytes(_answer(said))
    connection.close()
    listener.close()
    asking.join()


def _ask(request: object, port: int) -> None:
    try:
        client.send_request(request, "127.0.0.1", port, timeout=5)
    except Exception as error:
        print(f"client, after its request was recorded: {type(error).__name__}")


def _answer(request: bytes) -> bytes:
    ours, theirs = socket.socketpair()
    ours.sendall(request)
    old = server.CommandServer()
    old.attach = old.detach = lambda device, check=True: None
    old.handle_client(theirs, ("127.0.0.1", 1))
    reply = b""
    while part := ours.recv(65536):
        reply += part
    ours.close()
    return reply


usbdevice.get_devices = server.get_devices = lambda: DEVICES
HERE.mkdir(exist_ok=True)
for key, value in REQUESTS.items():
    record(key, value)
(HERE / "unknown-key.reply").write_bytes(_answer(b'{"v":1,"command":"list"}\n'))
