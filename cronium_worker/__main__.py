"""`python -m cronium_worker` is `cronium`."""

from cronium_worker.cli.main import main

if __name__ == "__main__":
    main()
