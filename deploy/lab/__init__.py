"""A cloud of several nodes on this machine, each in namespaces of its own: `make lab`, and the e2e tests.

**Pure**: a namespace only. Processes are started by command line; neither controller nor agent is imported.
"""
