"""The gRPC API: one handler per method, errors and metrics in one place, no decisions."""
