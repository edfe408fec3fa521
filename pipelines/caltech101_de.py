"""Table 11 of the VGG paper, Caltech-101, net D & E: mean class recall over three splits 92.7 %.

Expected: 92.7 +- 0.5; our splits are drawn by a published rule, the paper's are not published.
Full run: python pipelines/caltech101_de.py --root DATA --weights D.safetensors --weights E.safetensors
Twin:     python pipelines/caltech101_de.py --twin
"""

from vggfeat.reproduce import PaperRow, reproduce

ROW = PaperRow(
    table=11,
    dataset="caltech101",
    nets=("D", "E"),
    expected=92.7,
    spread=0.5,
)

if __name__ == "__main__":
    reproduce(ROW)
