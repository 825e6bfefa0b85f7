"""``python -m usb_remote`` is ``usb-remote``."""

from usb_remote.cli import main

if __name__ == "__main__":
    main()
