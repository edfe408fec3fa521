"""Table 11 of the VGG paper, Caltech-101, net D: mean class recall over three splits 91.8 %.

Expected: 91.8 +- 1.0; our splits are drawn by a published rule, the paper's are not published.
Full run: python pipelines/caltech101_d.py --root DATA --weights D.safetensors
Twin:     python pipelines/caltech101_d.py --twin
"""

from vggfeat.reproduce import PaperRow, reproduce

ROW = PaperRow(
    table=11,
    dataset="caltech101",
    nets=("D",),
    expected=91.8,
    spread=1.0,
)

if __name__ == "__main__":
    reproduce(ROW)
