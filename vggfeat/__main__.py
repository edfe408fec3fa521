"""`python -m vggfeat`: the same as the command vggfeat."""

from vggfeat.cli import main

if __name__ == "__main__":
    main()
