"""What `make bench` runs: usb-remote beside the alternatives (`python -m bench`)."""
