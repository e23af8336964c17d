"""The `cumulet` command."""
