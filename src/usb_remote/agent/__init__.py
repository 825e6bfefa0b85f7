"""The resident client: what is wished for is attached here, and comes back by itself.

Rule of this folder: nothing here talks to people or to the kernel; it puts client, watcher and
links to work, and every decision follows from what the servers and this machine say now.
"""
