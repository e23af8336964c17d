"""What sets a cloud up: the single-machine supervisor, guest images, units, dashboards.

**Pure**: a namespace only.
"""
