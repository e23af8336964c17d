"""Networks and ports of this node: the driver's protocol, the kernel, and a fake for scale."""
