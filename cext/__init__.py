"""Kernels in Cython: arrays in, arrays out, without the GIL. Imports nothing of ours."""
