"""Table 11 of the VGG paper, Caltech-256, net D: mean class recall over three splits 85.0 %.

Expected: 85.0 +- 0.2; our splits are drawn by a published rule, the paper's are not published.
Full run: python pipelines/caltech256_d.py --root DATA --weights D.safetensors
Twin:     python pipelines/caltech256_d.py --twin
"""

from vggfeat.reproduce import PaperRow, reproduce

ROW = PaperRow(
    table=11,
    dataset="caltech256",
    nets=("D",),
    expected=85.0,
    spread=0.2,
)

if __name__ == "__main__":
    reproduce(ROW)
