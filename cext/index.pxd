# Questions to a fleet; what it is made of and its units are in state.pxd.

from cext.state cimport FleetState


cdef class FleetIndex(FleetState):
    pass
