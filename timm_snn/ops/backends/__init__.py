"""Implementations of the neuron and the ops fused with it: one file each, described by a row in `ops/backend.py`."""
