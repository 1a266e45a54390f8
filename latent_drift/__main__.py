"""`python -m latent_drift` is the command `latent-drift`."""

from latent_drift.cli import main

if __name__ == "__main__":
    main()
