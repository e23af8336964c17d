"""The embedded single-machine cloud: `cumulet up`, `down`, `status`, `doctor`.

**Pure**: a namespace only. Processes are started by command line; neither controller nor agent is imported.
"""
