"""pyudev and sysfs: the USB devices of this machine, wake-ups when they may have changed, nodes.

Rule of this folder: the only importer of pyudev. What a device *is* gets read from sysfs at that
moment; udev is asked for names and for when to look again.
"""
