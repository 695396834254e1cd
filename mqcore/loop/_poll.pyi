# Nothing of it is for Python: see _poll.pxd.
