"""Keeping a training alive: buffers and optimizer state put back, learning rates that can be used, the last good state, and what failed."""
