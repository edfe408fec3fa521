"""The nearest images of a feature file to one of its own, or to another image."""

from vggfeat.similar.search import Neighbour, Neighbours, nearest, query_of_row

__all__ = ["Neighbour", "Neighbours", "nearest", "query_of_row"]
