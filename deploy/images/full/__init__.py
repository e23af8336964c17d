"""A full Debian with cloud-init, ssh and the guest agent, built from Debian's packages and cached.

**Edge**, except for `recipe` and `archive`. Needs root, debootstrap and Python's standard library.
"""
