"""`python -m scorecraft` is the command `scorecraft`."""

from scorecraft.cli import main

if __name__ == "__main__":
    main()
