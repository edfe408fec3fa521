"""Table 11 of the VGG paper, VOC-2012, net E: mean average precision 89.0 %.

Expected: 89.0 +- 1.0; the paper's number is the server's on test; without a submission ours is on val.
Full run: python pipelines/voc2012_e.py --root DATA --weights E.safetensors
Twin:     python pipelines/voc2012_e.py --twin
"""

from vggfeat.reproduce import PaperRow, reproduce

ROW = PaperRow(
    table=11,
    dataset="voc2012",
    nets=("E",),
    expected=89.0,
    spread=1.0,
)

if __name__ == "__main__":
    reproduce(ROW)
