"""A timing wheel in plain C, for Cython: see _wheel.pxd. Nothing of it is for Python."""
