"""`python -m convserve`, the same as the `convserve` program."""

from convserve.cli import main

if __name__ == "__main__":
    main()
