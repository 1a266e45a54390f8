"""`python -m patches`."""

from patches.cli import main

if __name__ == "__main__":
    main()
