# Nothing of it is for Python: see _bare.pxd.
