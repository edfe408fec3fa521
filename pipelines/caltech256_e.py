"""Table 11 of the VGG paper, Caltech-256, net E: mean class recall over three splits 85.1 %.

Expected: 85.1 +- 0.3; our splits are drawn by a published rule, the paper's are not published.
Full run: python pipelines/caltech256_e.py --root DATA --weights E.safetensors
Twin:     python pipelines/caltech256_e.py --twin
"""

from vggfeat.reproduce import PaperRow, reproduce

ROW = PaperRow(
    table=11,
    dataset="caltech256",
    nets=("E",),
    expected=85.1,
    spread=0.3,
)

if __name__ == "__main__":
    reproduce(ROW)
