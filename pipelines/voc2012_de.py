"""Table 11 of the VGG paper, VOC-2012, net D & E: mean average precision 89.3 %.

Expected: 89.3 +- 1.0; the paper's number is the server's on test; without a submission ours is on val.
Full run: python pipelines/voc2012_de.py --root DATA --weights D.safetensors --weights E.safetensors
Twin:     python pipelines/voc2012_de.py --twin
"""

from vggfeat.reproduce import PaperRow, reproduce

ROW = PaperRow(
    table=11,
    dataset="voc2012",
    nets=("D", "E"),
    expected=89.3,
    spread=1.0,
)

if __name__ == "__main__":
    reproduce(ROW)
