"""What is wrong with this machine, or with the way to a server, and what mends it.

Rule of this folder: a check only looks, is over within seconds, and never raises; it takes what it
looks at as arguments, and what it found is a Finding. Nothing here prints or asks.
"""
