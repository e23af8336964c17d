"""What goes into the full Debian image: release, packages, kernel command line, sizes.

**Pure**: constants. Their file and those below `root/` are part of the digest that names an image.
"""

from __future__ import annotations

from typing import Final

NAME: Final = "debian-12"
SUITE: Final = "bookworm"
ARCH: Final = "x86_64"

# What a cloud's user expects, and what these need: ifupdown and dhclient make cloud-init's network.
PACKAGES: Final = (
    "ca-certificates",
    "cloud-init",
    "dbus",
    "ifupdown",
    "initramfs-tools",
    "iproute2",
    "iputils-ping",
    "isc-dhcp-client",
    "libpam-systemd",
    "linux-image-cloud-amd64",
    "netbase",
    "openssh-server",
    "openssh-sftp-server",
    "procps",
    "qemu-guest-agent",
    "sudo",
    "systemd-sysv",
    "systemd-timesyncd",
    "udev",
)
# debootstrap's own choice is the packages of this priority, and these.
BASE_PRIORITY: Final = "required"
BASE_PACKAGES: Final = ("apt", "usr-is-merged")

KERNEL_CMDLINE: Final = "console=ttyS0 root=/dev/vda rw net.ifnames=0 quiet loglevel=3"

# The file system grows with the instance's disk at its first boot (cloud-init's resizefs).
DISK_SIZE_MIB: Final = 2048
MIN_DISK_GIB: Final = 2
MIN_MEMORY_MIB: Final = 384
FILESYSTEM_LABEL: Final = "cloudimg-root"

# Raised by hand when image.json changes its meaning.
MANIFEST_VERSION: Final = 1
