"""The store: one protocol, `etcd` and `memory` implementations, one table of keys."""
