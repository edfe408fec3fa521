"""Table 11 of the VGG paper, Caltech-256, net D & E: mean class recall over three splits 86.2 %.

Expected: 86.2 +- 0.3; our splits are drawn by a published rule, the paper's are not published.
Full run: python pipelines/caltech256_de.py --root DATA --weights D.safetensors --weights E.safetensors
Twin:     python pipelines/caltech256_de.py --twin
"""

from vggfeat.reproduce import PaperRow, reproduce

ROW = PaperRow(
    table=11,
    dataset="caltech256",
    nets=("D", "E"),
    expected=86.2,
    spread=0.3,
)

if __name__ == "__main__":
    reproduce(ROW)
