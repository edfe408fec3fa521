"""Table 11 of the VGG paper, VOC-2007, net D & E: mean average precision 89.7 %.

Expected: 89.7 +- 0.5; the paper does not name its rule; 11-point here, the area rule stands beside it.
Full run: python pipelines/voc2007_de.py --root DATA --weights D.safetensors --weights E.safetensors
Twin:     python pipelines/voc2007_de.py --twin
"""

from vggfeat.reproduce import PaperRow, reproduce

ROW = PaperRow(
    table=11,
    dataset="voc2007",
    nets=("D", "E"),
    expected=89.7,
    spread=0.5,
)

if __name__ == "__main__":
    reproduce(ROW)
