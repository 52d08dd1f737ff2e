"""`python -m rfft`, and so `accelerate launch -m rfft train ...`."""

from rfft.cli.main import main

if __name__ == "__main__":
    main()
