"""One node's agent: observe, diff (pure), apply, observe. Entry point: `agent.main`."""
