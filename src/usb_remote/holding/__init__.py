"""Devices that are attached for one program, as long as it wants them.

Rule of this folder: a device is asked for, followed and given back, through the agent if there is
one, else by this process itself. What programs call is aio.py.
"""
