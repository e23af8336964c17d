"""Benchmarks: measured figures as JSON lines, never timed tests."""
