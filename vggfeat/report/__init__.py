"""Results as a person reads them, as a program reads them, as a picture, and as the VOC server takes them."""

from vggfeat.report.plots import draw
from vggfeat.report.submission import server_archive
from vggfeat.report.writing import PAPER, headline, paper_numbers, results_json, scores_npz, text_table, write_results

__all__ = [
    "PAPER",
    "draw",
    "headline",
    "paper_numbers",
    "results_json",
    "scores_npz",
    "server_archive",
    "text_table",
    "write_results",
]
