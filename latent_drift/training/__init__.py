"""Training runs of the two models: data, optimizers and schedules by name, a results folder, checkpoints that continue bitwise.

The command line's room below `latent_drift.cli`; nothing here prints. This package imports nothing by itself.
"""
