"""What goes into the guest image: packages, the files taken from them, kernel modules, the command line.

**Pure**: constants and the digest over them. Everything that decides the image's content is here or in
`guest/`, so that the digest of both names the image.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

NAME = "cumulet-guest"
ARCH = "x86_64"

# Its one dependency is the package of the kernel that is current in Debian.
KERNEL_METAPACKAGE = "linux-image-cloud-amd64"

# Package -> patterns of the files that the root file system takes from it. dropbear and resize2fs are
# dynamically linked in Debian, hence the libraries; all the rest is one static busybox.
ROOT_FILES: Mapping[str, tuple[str, ...]] = {
    "busybox-static": ("bin/busybox",),
    "dropbear-bin": ("usr/sbin/dropbear", "usr/bin/dropbearkey"),
    "e2fsprogs": ("sbin/resize2fs",),
    "libblkid1": ("*/libblkid.so.1*",),
    "libc6": ("*/libc.so.6", "*/ld-linux-x86-64.so.2"),
    "libcom-err2": ("*/libcom_err.so.2*",),
    "libcrypt1": ("*/libcrypt.so.1*",),
    "libext2fs2": ("*/libext2fs.so.2*", "*/libe2p.so.2*"),
    "libgmp10": ("*/libgmp.so.10*",),
    "libtomcrypt1": ("*/libtomcrypt.so.1*",),
    "libtommath1": ("*/libtommath.so.1*",),
    "libuuid1": ("*/libuuid.so.1*",),
    "zlib1g": ("*/libz.so.1*",),
}

# Needed before the root disk is there. virtio_net comes along: probing it is as cheap here as later.
INITRAMFS_MODULES = ("virtio_pci", "virtio_blk", "virtio_net")

# Loaded from the root disk: the seed's file system, the power button and its events, entropy, the CD-ROM
# drive that a seed may also be on, and what a VNF made from this image commonly wants.
ROOT_MODULES = (
    "isofs",
    "button",
    "evdev",
    "virtio_rng",
    "virtio_console",
    "virtio_balloon",
    "sr_mod",
    "ata_piix",
    "virtio_scsi",
    "sd_mod",
    "8021q",
    "nf_tables",
    "nft_ct",
    "nft_chain_nat",
    "nft_masq",
    "tun",
    "vxlan",
    "wireguard",
)

# Each word earns its place: `quiet` because a serial port under emulation is slow; the 8250 and the
# self-test words skip probes; mitigations=off because the guest has one user, root.
KERNEL_CMDLINE = (
    "console=ttyS0 root=/dev/vda rw quiet loglevel=3 panic=10 net.ifnames=0 "
    "8250.nr_uarts=1 mitigations=off random.trust_cpu=on cryptomgr.notests raid=noautodetect"
)

# The file system has the smallest disk's size from the start, so that only larger disks need growing.
DISK_SIZE_MIB = 1024
MIN_DISK_GIB = 1
# Measured: boots and serves with 96 MiB; half as much again leaves room for the user's script.
MIN_MEMORY_MIB = 144

# Any constant does: an ext4 UUID and hash seed that do not change with each build.
FILESYSTEM_UUID = "6b7a3f3e-5d0c-4d4e-9f6e-63756d756c65"
FILESYSTEM_LABEL = "cumulet-root"

DISK_FORMAT = "qcow2"
# Raised by hand when image.json changes its meaning.
MANIFEST_VERSION = 1


@dataclass(frozen=True, slots=True, order=True)
class Package:
    """One Debian package at one version; `sha256` is what the signed package lists say."""

    name: str
    version: str
    filename: str
    sha256: str


def digest_recipe(sources: Mapping[str, bytes]) -> str:
    """The digest of the builder and the guest's files (path -> content): all that this checkout decides."""
    digest = hashlib.sha256()
    for path in sorted(sources):
        digest.update(f"{path}\0{len(sources[path])}\0".encode())
        digest.update(sources[path])
    return digest.hexdigest()


def digest_inputs(recipe_digest: str, packages: Iterable[Package]) -> str:
    """The digest that names the image: recipe and packages."""
    digest = hashlib.sha256(recipe_digest.encode())
    for package in sorted(packages):
        digest.update(f"\0{package.name}\0{package.version}\0{package.sha256}".encode())
    return digest.hexdigest()
