"""`python -m featherweight`."""

from featherweight.cli import main

if __name__ == "__main__":  # workers that are spawned import this file again
    main()
