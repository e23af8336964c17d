"""Disks, seeds and cached image files of this node: the driver's protocol, qemu-img, and a fake."""
