"""What the leader does: place, compile plans, judge liveness, write status, clean up, keep the journal."""
