"""`python -m replicate` is the `replicate` command."""

from replicate.cli import main

if __name__ == "__main__":
    main()
