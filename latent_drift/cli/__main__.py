"""`python -m latent_drift.cli` is the command `latent-drift`, for launchers such as torchrun that start a module."""

from latent_drift.cli import main

if __name__ == "__main__":
    main()
