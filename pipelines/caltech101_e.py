"""Table 11 of the VGG paper, Caltech-101, net E: mean class recall over three splits 92.3 %.

Expected: 92.3 +- 0.5; our splits are drawn by a published rule, the paper's are not published.
Full run: python pipelines/caltech101_e.py --root DATA --weights E.safetensors
Twin:     python pipelines/caltech101_e.py --twin
"""

from vggfeat.reproduce import PaperRow, reproduce

ROW = PaperRow(
    table=11,
    dataset="caltech101",
    nets=("E",),
    expected=92.3,
    spread=0.5,
)

if __name__ == "__main__":
    reproduce(ROW)
