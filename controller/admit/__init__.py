"""Admission: what a write must be to be accepted, one file a kind. Pure: State and request in, Change out."""
