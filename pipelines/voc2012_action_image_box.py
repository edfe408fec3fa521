"""Table 12 of the VGG paper, VOC-2012 actions, images and boxes, net D & E: mean average precision 84.0 %.

Expected: 84.0 +- 1.5; the paper's number is the server's on test, ours is on val; the paper does not say
how boxes are cropped, ours are cropped exactly.
Full run: python pipelines/voc2012_action_image_box.py --root DATA --weights D.safetensors --weights E.safetensors
Twin:     python pipelines/voc2012_action_image_box.py --twin
"""

from vggfeat.reproduce import PaperRow, reproduce

ROW = PaperRow(
    table=12,
    dataset="voc2012-action",
    nets=("D", "E"),
    expected=84.0,
    spread=1.5,
    regions="image,box",
)

if __name__ == "__main__":
    reproduce(ROW)
