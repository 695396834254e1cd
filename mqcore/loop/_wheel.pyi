# Nothing of it is for Python: see _wheel.pxd.
