"""Load on `lastword serve`, from a process of its own, with every answer checked."""
