"""The two models: a deterministic latent ODE over characters, and a continual learner over log lines.

Names are imported from the package root (`from latent_drift import DeterministicLatentODE`) or from the
module that defines them; this package imports nothing by itself, so each half loads only what it needs.
"""
