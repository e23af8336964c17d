"""Virtual machines of this node: the driver's protocol, libvirt, and a fake for scale."""
