"""Integrators: explicit Euler for ODEs, Euler-Maruyama for SDEs, and the methods of torchdiffeq and torchsde as an extra."""
