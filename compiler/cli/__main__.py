"""`python -m flexspec.compiler.cli`: the command line without its script on the path."""

from . import main

if __name__ == "__main__":
    main()
