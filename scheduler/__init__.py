"""Pure planning: a view and requests in, a plan with every reason out. No clock, no I/O."""
