"""Shadow execution, taps, lockstep and traces: how one forward pass is observed."""
