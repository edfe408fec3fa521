"""`python -m vggfeat`: the same as the command vggfeat."""

from vggfeat.cli import entry_point

if __name__ == "__main__":
    entry_point()
