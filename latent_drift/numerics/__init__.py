"""Pure tensor functions: what run time, toolbox and models share. Imports torch and `latent_drift.errors` only."""
